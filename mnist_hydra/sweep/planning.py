"""Which trials a sweep has, each of them checked before any starts; it never touches the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from mnist_hydra.config import Config, SweepConfig, fingerprint, settle
from mnist_hydra.errors import UserError
from mnist_hydra.sweep.axes import Axis, Plan, title
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.sweep.torch_tasks import kind_of

MAX_KINDS = 100
ALMOST = 1 - 1e-9


@dataclass(frozen=True)
class Planned:
    """One trial that a sweep is to have."""

    fingerprint: str
    point: tuple[str, ...]
    """The swept overrides."""
    epochs: int
    kind: str
    """What there is to check about it with torch, see `torch_tasks.kind_of`."""

    @property
    def title(self) -> str:
        """Its name for people."""
        return title(self.point)


@dataclass
class Trials:
    """The trials of a sweep and what was found out about them all."""

    planned: dict[str, Planned] = field(default_factory=dict)
    """By fingerprint, in the sweep's order."""
    repeated: list[tuple[str, str]] = field(default_factory=list)
    """Names of points that are the same trial as another, and of that other."""
    samples: dict[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Per kind the name and the resolved configuration of one trial."""
    holdout: bool = True
    """Whether every trial holds out training images as `val`."""
    epochs: int = 0
    """The most that a trial has."""

    @property
    def first(self) -> tuple[str, ...]:
        """A point that has been checked."""
        return next(iter(self.planned.values())).point

    def add(self, point: Sequence[str], config: Config) -> None:
        """Take in a trial."""
        planned = Planned(fingerprint(config), tuple(point), config.epochs, kind_of(config))
        twin = self.planned.setdefault(planned.fingerprint, planned)
        if twin is not planned:
            self.repeated.append((planned.title, twin.title))
        if planned.kind not in self.samples and len(self.samples) < MAX_KINDS:
            raw: Any = OmegaConf.to_container(config.composed, resolve=True)
            self.samples[planned.kind] = (planned.title, raw)
        self.holdout = self.holdout and config.data.val_size > 0
        self.epochs = max(self.epochs, config.epochs)


def check_points(plan: Plan, points: Iterable[Sequence[str]], composer: Composer) -> Trials:
    """Compose and range-check every trial.

    Raises:
        UserError: naming the trial.
    """
    trials = Trials()
    for point in points:
        try:
            config = settle(composer.compose(plan.overrides(point)))
        except UserError as error:
            raise UserError(f"trial {title(point)}: {error}") from None
        if config.resume is not None:
            raise UserError(
                f"resume={config.resume} goes on with one run and has no place in a sweep; right: "
                "the same --multirun command again, which goes on with the whole sweep"
            )
        trials.add(point, config)
    return trials


def corners(plan: Plan) -> list[tuple[str, ...]]:
    """Points of a search that stand for all: each value or end of an axis once, others at first."""
    ends = [_ends(axis) for axis in plan.axes]
    first = tuple(values[0] for values in ends)
    found = [first]
    for place, values in enumerate(ends):
        found += [(*first[:place], value, *first[place + 1 :]) for value in values[1:]]
    return found


def objective(settings: SweepConfig, kind: str, trials: Trials) -> str:
    """The metric by which trials are ranked.

    Raises:
        UserError: a search with no hold-out, or on the test set.
    """
    if kind == "grid":
        return "val/acc" if trials.holdout else "test/acc_last"
    if settings.objective.startswith("test/"):
        raise UserError(
            f"sweep.objective={settings.objective} would choose by the test set; right: a metric "
            "of the hold-out, such as sweep.objective=val/acc"
        )
    if not trials.holdout:
        raise UserError(
            f"a search by sweep.objective={settings.objective} needs a hold-out, got "
            "data.val_size=0; right: data.val_size=5000"
        )
    return settings.objective


def _ends(axis: Axis) -> list[str]:
    if axis.values:
        return [f"{axis.key}={value}" for value in axis.values]
    assert axis.span is not None
    low, high = axis.span.low, axis.span.high
    # An interval ends just below its upper end.
    last = high if axis.span.integer else low + (high - low) * ALMOST
    return [axis.override(low), axis.override(last)]
