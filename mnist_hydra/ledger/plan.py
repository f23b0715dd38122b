"""What a sweep goes over: its axes and its trials; and which sweep that is: a hash of its name, or
of its base configuration and its axes.

Its workers, and the report, read the plan from an artifact of the parent run. Only pure functions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mnist_hydra.config import has_no_effect, leaves
from mnist_hydra.errors import UserError

PLANS = "plans"
"""Folder of a parent run's artifacts that holds the plan of each of its commands."""
SWEEPER = "hydra/sweeper"
MAX_CHANGES = 5
"""Differences that an error names."""


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
    tags: tuple[str, ...] = ()

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
        """All overrides of the trial at a point, in the order of the command line.

        A search's point may be of an earlier command, over other axes: of an axis that it lacks
        there is none, and what it has besides comes last.
        """
        swept = {text.partition("=")[0]: text for text in point}
        placed = [swept.pop(i.key, None) if isinstance(i, Axis) else i for i in self.items]
        return [text for text in placed if text is not None] + [*swept.values()]

    def are_of(self, point: Sequence[str]) -> bool:
        """Whether a point is over these axes."""
        return {axis.key for axis in self.axes} == {text.partition("=")[0] for text in point}

    def count_others(self, points: Iterable[Sequence[str]]) -> int:
        """How many of these are none of `self.points()`."""
        listed = {f"{axis.key}={value}" for axis in self.axes for value in axis.values}
        return sum(not (self.are_of(point) and listed.issuperset(point)) for point in points)


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
    written_ms: int = 0
    """When it was written, in milliseconds since 1970; 0 for plans of before 2026-11-27."""

    def text(self) -> str:
        """As JSON, which `read_plan` reads."""
        trials = [[p.fingerprint, p.overrides, p.name, p.epochs] for p in self.trials]
        what = vars(self) | {"arguments": self.arguments.items, "trials": trials}
        return json.dumps(what, default=vars)


def read_plan(text: str) -> Plan:
    """The plan that `Plan.text` wrote."""
    raw = json.loads(text)
    items = tuple(item if isinstance(item, str) else _read_axis(item) for item in raw["arguments"])
    trials = tuple(Planned(key, tuple(point), *rest) for key, point, *rest in raw["trials"])
    flags, at = tuple(raw.get("flags", ())), raw.get("at", "last")  # plans of 2026-11-25 lack them
    return Plan(raw["kind"], Arguments(items), trials, flags, at, raw.get("written_ms", 0))


def plan_file(sweeper: str) -> str:
    """The artifact of the parent run that holds a command's plan.

    Args:
        sweeper: the token of the command's sweeper.
    """
    return f"{PLANS}/{sweeper}.json"


def _read_axis(raw: Mapping[str, Any]) -> Axis:
    span = None if raw["span"] is None else Span(**raw["span"])
    return Axis(raw["key"], raw["text"], tuple(raw["values"]), span, tuple(raw["tags"]))


def base_settings(master: DictConfig, kind: str) -> dict[str, str]:
    """The settings that all trials of a sweep share, by dotted name, as text.

    Interpolations are not resolved. Settings that change no result are left out.

    Args:
        master: the configuration composed without the axes.
        kind: `grid` or `search`; stands in the result under `hydra/sweeper`.
    """
    raw = OmegaConf.to_container(master, resolve=False)
    assert isinstance(raw, dict)
    raw.pop("hydra", None)
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in leaves(raw)
        if not has_no_effect(name)
    }
    return {SWEEPER: kind} | texts


def identity_of(name: str | None, base: Mapping[str, str], axes: Sequence[Axis]) -> str:
    """The sweep's identity: 16 hexadecimal digits.

    With a name it follows from that alone, else from the base configuration and the axes. The order
    of axes and values does not count, nor does what the base holds at a swept key.
    """
    content: Any = ["name", name]
    if name is None:
        swept = sorted([_place(axis.key), sorted(axis.values), _span(axis)] for axis in axes)
        content = ["axes", _outside(base, [axis.key for axis in axes]), swept]
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_same_base(
    name: str, old: Mapping[str, str], new: Mapping[str, str], swept: Iterable[str]
) -> None:
    """Check that a command has the base configuration of the sweep whose name it gives.

    Args:
        name: the sweep's name.
        old: base settings of the command that began the sweep.
        new: base settings of this command.
        swept: the keys of both sets of axes; what the bases hold there is not compared.
    Raises:
        UserError: the base settings differ; shows where.
    """
    keys = list(swept)
    before, after = _outside(old, keys), _outside(new, keys)
    changed = [
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if changed:
        more = f" and {len(changed) - MAX_CHANGES} more" if len(changed) > MAX_CHANGES else ""
        raise UserError(
            f"sweep.name={name} is taken by a sweep with another base configuration "
            f"({'; '.join(changed[:MAX_CHANGES])}{more}); right: that configuration, another "
            "sweep.name, or sweep.fresh=true to start over"
        )


def _place(key: str) -> str:
    """Where a key's value ends up: `db/engine` in `db.engine`, `model@teacher` in `teacher`."""
    return key.lstrip("+").split("@")[-1].replace("/", ".")


def _outside(settings: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    places = [_place(key) for key in keys]
    return {
        key: value
        for key, value in settings.items()
        if not any(key == place or key.startswith(place + ".") for place in places)
    }


def _span(axis: Axis) -> list[Any]:
    """Ends and scale of a continuous axis; the scale alone of a discrete one, if it is `log`."""
    if axis.span is None:
        return []
    if axis.values:
        return ["log"] if axis.span.log else []
    return [axis.span.low, axis.span.high, axis.span.integer, axis.span.log]
