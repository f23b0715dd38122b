"""What a sweep goes over: its axes and its trials, as one command checked them.

Its workers, and the report, read them from an artifact of the parent run.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

PLANS = "plans"
"""Folder of a parent run's artifacts that holds the plan of each of its commands."""


@dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, both of them included."""

    low: float
    high: float
    step: float | None
    """Distance between neighbours; `None` where every number is allowed."""
    integer: bool
    log: bool
    """Whether ratios count and not differences: `tag(log, interval(...))`."""


@dataclass(frozen=True)
class Axis:
    """One swept key and what it is swept over."""

    key: str
    """As typed: `lr`, `+model.width`, `db/engine`, `model@teacher`."""
    text: str
    """What was typed behind the `=`."""
    values: tuple[str, ...]
    """Texts for overrides, in the order asked for; empty for a continuous axis."""
    span: Span | None
    """For an interval or a range."""
    tags: frozenset[str] = frozenset()

    def override(self, value: str | float) -> str:
        """The override that sets `value`; a number on a discrete axis picks the nearest value."""
        if not isinstance(value, str) and self.values:
            number = float(value)
            value = min(self.values, key=lambda text: abs(float(text) - number))
        return f"{self.key}={value}"


@dataclass(frozen=True)
class Arguments:
    """A sweep's command line: overrides that are the same in every trial, and axes."""

    items: tuple[str | Axis, ...]
    """In the order in which Hydra applies them."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The swept keys, in the order of the command line."""
        return tuple(item for item in self.items if isinstance(item, Axis))

    @property
    def fixed(self) -> tuple[str, ...]:
        """The overrides that every trial has."""
        return tuple(item for item in self.items if isinstance(item, str))

    def count(self) -> int:
        """How many points the grid has."""
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[tuple[str, ...]]:
        """Every combination of the axes' values as overrides, the last axis fastest."""
        return itertools.product(*([f"{a.key}={v}" for v in a.values] for a in self.axes))

    def overrides(self, point: Sequence[str]) -> list[str]:
        """All overrides of the trial at `point`, in the order of the command line."""
        swept = iter(point)
        return [next(swept) if isinstance(item, Axis) else item for item in self.items]


def title(point: Sequence[str]) -> str:
    """A trial's name for people: `model=model3, dropout=0.02`."""
    return ", ".join(part.lstrip("+") for part in point) or "no axis"


@dataclass(frozen=True)
class Planned:
    """A trial that the sweep is to have."""

    fingerprint: str
    overrides: tuple[str, ...]
    """The swept ones."""
    name: str
    """For people: `model=model3, dropout=0.02`."""
    epochs: int | None = None
    """How many it is to have; `None` where that is not known before it is composed."""


@dataclass(frozen=True)
class Plan:
    """What a command's workers work on, checked."""

    kind: str
    """`grid` or `search`."""
    arguments: Arguments
    trials: tuple[Planned, ...]
    """All of a grid's, in the sweep's order; of a search none."""

    def text(self) -> str:
        """As `read_plan` reads it."""
        items = [
            item if isinstance(item, str) else asdict(item) | {"tags": sorted(item.tags)}
            for item in self.arguments.items
        ]
        trials = [[p.fingerprint, p.overrides, p.name, p.epochs] for p in self.trials]
        return json.dumps({"kind": self.kind, "arguments": items, "trials": trials})


def read_plan(text: str) -> Plan:
    """The plan that `Plan.text` wrote."""
    raw = json.loads(text)
    items = tuple(item if isinstance(item, str) else _read_axis(item) for item in raw["arguments"])
    trials = tuple(Planned(key, tuple(point), *rest) for key, point, *rest in raw["trials"])
    return Plan(raw["kind"], Arguments(items), trials)


def plan_file(by: str) -> str:
    """The artifact of the parent run that holds the plan of the command with this sweeper."""
    return f"{PLANS}/{by}.json"


def _read_axis(raw: Mapping[str, Any]) -> Axis:
    span = None if raw["span"] is None else Span(**raw["span"])
    return Axis(raw["key"], raw["text"], tuple(raw["values"]), span, frozenset(raw["tags"]))
