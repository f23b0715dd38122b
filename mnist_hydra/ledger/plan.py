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
    """The numbers from `low` to `high`, both included."""

    low: float
    high: float
    step: float | None
    """Distance between neighbours; `None` if every number is allowed."""
    integer: bool
    log: bool
    """Whether it is searched on a logarithmic scale: `tag(log, interval(...))`."""


@dataclass(frozen=True)
class Axis:
    """One swept key and its values."""

    key: str
    """As typed: `lr`, `+model.width`, `db/engine`, `model@teacher`."""
    text: str
    """What was typed after the `=`."""
    values: tuple[str, ...]
    """As texts for overrides, in the order typed; empty for a continuous axis."""
    span: Span | None
    """Of an interval or a range."""
    tags: frozenset[str] = frozenset()

    def override(self, value: str | float) -> str:
        """The override that sets `value`; on a discrete axis a number becomes the nearest value."""
        if not isinstance(value, str) and self.values:
            number = float(value)
            value = min(self.values, key=lambda text: abs(float(text) - number))
        return f"{self.key}={value}"


@dataclass(frozen=True)
class Arguments:
    """A sweep's command line: the overrides that all trials share, and the axes."""

    items: tuple[str | Axis, ...]
    """In the order in which Hydra applies them."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The swept keys, in the order of the command line."""
        return tuple(item for item in self.items if isinstance(item, Axis))

    @property
    def fixed(self) -> tuple[str, ...]:
        """The overrides that all trials share."""
        return tuple(item for item in self.items if isinstance(item, str))

    def count(self) -> int:
        """How many points the grid has."""
        return math.prod(len(axis.values) for axis in self.axes)

    def points(self) -> Iterator[tuple[str, ...]]:
        """Every combination of the axes' values as overrides, the last axis fastest."""
        return itertools.product(*([f"{a.key}={v}" for v in a.values] for a in self.axes))

    def overrides(self, point: Sequence[str]) -> list[str]:
        """All overrides of the trial at a point, in the order of the command line."""
        swept = iter(point)
        return [next(swept) if isinstance(item, Axis) else item for item in self.items]


def title(point: Sequence[str]) -> str:
    """A trial's name for people: `model=model3, dropout=0.02`."""
    return ", ".join(part.lstrip("+") for part in point) or "no axis"


@dataclass(frozen=True)
class Planned:
    """A trial that belongs to the sweep, whether it was begun or not."""

    fingerprint: str
    overrides: tuple[str, ...]
    """The swept ones."""
    name: str
    """For people: `model=model3, dropout=0.02`."""
    epochs: int | None = None
    """How many it has; `None` if that is only known once it is composed."""


@dataclass(frozen=True)
class Plan:
    """What the workers of one command train, checked."""

    kind: str
    """`grid` or `search`."""
    arguments: Arguments
    trials: tuple[Planned, ...]
    """All trials of a grid, in the sweep's order; none for a search."""
    flags: tuple[str, ...]
    """Hydra's own, by which another command finds the same configuration files."""
    at: str
    """The epoch of the objective that ranks, `last` or `best`."""

    def text(self) -> str:
        """As JSON, which `read_plan` reads."""
        items = [
            item if isinstance(item, str) else asdict(item) | {"tags": sorted(item.tags)}
            for item in self.arguments.items
        ]
        trials = [[p.fingerprint, p.overrides, p.name, p.epochs] for p in self.trials]
        about = {"kind": self.kind, "flags": self.flags, "at": self.at}
        return json.dumps({**about, "arguments": items, "trials": trials})


def read_plan(text: str) -> Plan:
    """The plan that `Plan.text` wrote."""
    raw = json.loads(text)
    items = tuple(item if isinstance(item, str) else _read_axis(item) for item in raw["arguments"])
    trials = tuple(Planned(key, tuple(point), *rest) for key, point, *rest in raw["trials"])
    flags, at = tuple(raw.get("flags", ())), raw.get("at", "last")  # plans of 2026-11-25 lack them
    return Plan(raw["kind"], Arguments(items), trials, flags, at)


def plan_file(sweeper: str) -> str:
    """The artifact of the parent run that holds a command's plan.

    Args:
        sweeper: the token of the command's sweeper.
    """
    return f"{PLANS}/{sweeper}.json"


def _read_axis(raw: Mapping[str, Any]) -> Axis:
    span = None if raw["span"] is None else Span(**raw["span"])
    return Axis(raw["key"], raw["text"], tuple(raw["values"]), span, frozenset(raw["tags"]))
