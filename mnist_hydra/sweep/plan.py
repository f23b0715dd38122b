"""Which trials a sweep has, each of them checked before any starts, and the plan for its workers.

It never touches the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from omegaconf import OmegaConf

from mnist_hydra import metrics
from mnist_hydra.config import Config, SweepConfig, fingerprint, settle
from mnist_hydra.errors import UserError, did_you_mean
from mnist_hydra.sweep.axes import Arguments, Axis, Span, title
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.sweep.torch_tasks import kind_of
from mnist_hydra.sweep.trial import Planned

PLANS = "plans"
"""Folder of a parent run's artifacts that holds the plan of each of its commands."""
MAX_KINDS = 100
ALMOST = 1 - 1e-9
MODEL2, MODEL3 = "mnist_hydra.models.Model2", "mnist_hydra.models.Model3"
"""They differ in their default dropout alone."""


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


@dataclass
class Trials:
    """The trials of a sweep and what was found out about them all."""

    planned: dict[str, Planned] = field(default_factory=dict)
    """By fingerprint, in the sweep's order."""
    kinds: dict[str, str] = field(default_factory=dict)
    """By fingerprint, what there is to check about it with torch, see `torch_tasks.kind_of`."""
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """Names of points that are the same trial as another, and of that other."""
    as_model2: dict[str, str] = field(default_factory=dict)
    """Names of trials of model3, by the fingerprint that they had under model2's name."""
    samples: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Per kind the name and the resolved configuration of one trial."""
    holdout: bool = True
    """Whether every trial holds out training images as `val`."""
    epochs: int = 0
    """The most that a trial has."""

    @property
    def first(self) -> tuple[str, ...]:
        """A point that has been checked."""
        return next(iter(self.planned.values())).overrides

    def same_as_others(self) -> str | None:
        """One line where points come to the same training as others."""
        told = self.repeated + [
            (name, self.planned[twin].name)
            for twin, name in self.as_model2.items()
            if twin in self.planned
        ]
        if not told:
            return None
        count, (one, other) = len(told), told[0]
        are = "is the same training as another" if count == 1 else "are the same as others"
        points = len(self.repeated) + len(self.planned)
        return f"{count} of {points} points {are}, such as {one} and {other}"

    def add(self, point: Sequence[str], config: Config) -> None:
        """Take in a trial."""
        key, kind = fingerprint(config), kind_of(config)
        planned = Planned(key, tuple(point), title(point), config.epochs)
        twin = self.planned.setdefault(key, planned)
        if twin is not planned:
            self.repeated.append((planned.name, twin.name))
        elif config.model.target == MODEL3:
            model2 = replace(config.model, name="model2", target=MODEL2)
            self.as_model2[fingerprint(replace(config, model=model2))] = planned.name
        self.kinds[key] = kind
        if kind not in self.samples and len(self.samples) < MAX_KINDS:
            raw: Any = OmegaConf.to_container(config.composed, resolve=True)
            self.samples[kind] = (planned.name, raw)
        self.holdout = self.holdout and config.data.val_size > 0
        self.epochs = max(self.epochs, config.epochs)


def check_points(
    arguments: Arguments, points: Iterable[Sequence[str]], composer: Composer
) -> Trials:
    """Compose and range-check every trial.

    Raises:
        UserError: naming the trial, also where it would be kept elsewhere than the first.
    """
    trials = Trials()
    first: Config | None = None
    for point in points:
        try:
            config = settle(composer.compose(arguments.overrides(point)))
        except UserError as error:
            raise UserError(f"trial {title(point)}: {error}") from None
        if config.resume is not None:
            raise UserError(
                f"resume={config.resume} goes on with one run and has no place in a sweep; right: "
                "the same --multirun command again, which goes on with the whole sweep"
            )
        first = first or config
        for key in ("output_dir", "tracking", "sweep"):
            here, there = getattr(config, key), getattr(first, key)
            if here != there:
                raise UserError(
                    f"trial {title(point)} has another {key} than the first trial; right: the same "
                    "for the whole sweep, on the command line"
                )
        trials.add(point, config)
    return trials


def corners(arguments: Arguments) -> list[tuple[str, ...]]:
    """Points of a search that stand for all: each value or end of an axis once, others at first."""
    ends = [_ends(axis) for axis in arguments.axes]
    first = tuple(values[0] for values in ends)
    found = [first]
    for place, values in enumerate(ends):
        found += [(*first[:place], value, *first[place + 1 :]) for value in values[1:]]
    return found


def objective(settings: SweepConfig, kind: str, trials: Trials) -> str:
    """The metric by which trials are ranked: a search's own, a grid's by its hold-out.

    Raises:
        UserError: `sweep.objective` is no metric of a trial, or of the test set; a search has no
            hold-out.
    """
    chosen = settings.objective
    if chosen.startswith("test/"):
        raise UserError(
            f"sweep.objective={chosen} would choose by the test set; right: a metric of the "
            "hold-out, such as sweep.objective=val/acc"
        )
    each_epoch = metrics.of_epoch("val")
    known = [name for name in (*each_epoch, *metrics.at_end("val")) if name[:5] != "test/"]
    if chosen not in known:
        near = did_you_mean(chosen, known)
        right = ", ".join(known)
        raise UserError(f"sweep.objective={chosen} is no metric{near}; right: one of {right}")
    if kind == "grid":
        return "val/acc" if trials.holdout else "test/acc_last"
    if settings.pruner != "none" and chosen not in each_epoch:
        raise UserError(
            f"sweep.pruner={settings.pruner} needs a metric of each epoch, got "
            f"sweep.objective={chosen}; right: one of {', '.join(each_epoch)}"
        )
    if not trials.holdout:
        raise UserError(
            f"a search by sweep.objective={chosen} needs a hold-out, got data.val_size=0; right: "
            "data.val_size=5000"
        )
    return chosen


def _ends(axis: Axis) -> list[str]:
    if axis.values:
        return [f"{axis.key}={value}" for value in axis.values]
    assert axis.span is not None
    low, high = axis.span.low, axis.span.high
    # An interval ends just below its upper end.
    last = high if axis.span.integer else low + (high - low) * ALMOST
    return [axis.override(low), axis.override(last)]


def _read_axis(raw: Mapping[str, Any]) -> Axis:
    span = None if raw["span"] is None else Span(**raw["span"])
    return Axis(raw["key"], raw["text"], tuple(raw["values"]), span, frozenset(raw["tags"]))
