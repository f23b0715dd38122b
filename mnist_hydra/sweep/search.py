"""Proposes a search's next point and decides which trials to prune; it stores nothing.

Optuna's study is rebuilt in memory from the ledger each time, so a proposal depends only on the
ledger, the seed and the point's number.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mnist_hydra.config import SweepConfig, fingerprint, settle
from mnist_hydra.errors import UserError
from mnist_hydra.ledger.ledger import Ledger, View
from mnist_hydra.ledger.plan import Arguments, Axis, Planned, title
from mnist_hydra.ledger.trial import (
    DIED,
    DONE,
    FAILED,
    FAILURES,
    FINISHED,
    PRUNED,
    RUNNING,
    Point,
    Trial,
)
from mnist_hydra.metrics import is_minimized
from mnist_hydra.sweep.compose import Composer

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

TRIES = 10
"""So many proposals may be refused before the remaining points are listed instead."""
MAX_LISTED = 100_000

log = logging.getLogger(__name__)

Refused = Callable[[Mapping[str, Any]], bool]
"""Whether a proposed point is to be passed over, since there is such a trial or can be none."""


@dataclass(frozen=True)
class Result:
    """One point of the search, and how its trial does."""

    values: Mapping[str, Any]
    """By key."""
    state: str
    """`finished`, `pruned`, `failed`; any other counts as running."""
    objective: float | None = None
    """Of a finished trial."""
    history: Mapping[int, float] = field(default_factory=dict)
    """The objective's metric by epoch."""


def propose(
    axes: Sequence[Axis],
    results: Sequence[Result],
    *,
    sampler: str,
    minimize: bool,
    seed: int,
    refused: Refused = lambda values: False,
) -> dict[str, Any] | None:
    """The next point, by key; `None` when every point of finite axes is taken.

    The same arguments give the same point. Running points count as bad ones, so that processes
    do not all search near the same point.

    Args:
        axes: what is searched.
        results: of all points so far, in the order in which they were proposed.
        sampler: `tpe` or `random`.
        minimize: whether less is better.
        seed: of the search.
        refused: asked about each candidate that is not in `results`.
    """
    taken = {_point_key(result.values) for result in results}
    space = {axis.key: _distribution(axis) for axis in axes}
    past = [_past(result, space) for result in results if _fits(result.values, axes)]
    for attempt in range(TRIES):
        # Seeded anew for each point and try: a sampler with one seed would repeat itself.
        chosen = _sampler(sampler, _mixed(seed, len(results), attempt))
        study = _study(minimize, sampler=chosen)
        study.add_trials(past)
        params = study.ask(space).params
        values = {axis.key: _readable(params[axis.key], axis) for axis in axes}
        if _point_key(values) not in taken and not refused(values):
            return values
        taken.add(_point_key(values))
    rest = _all_points(axes)
    random.Random(_mixed(seed, len(results), TRIES)).shuffle(rest)
    for values in rest:
        if _point_key(values) not in taken and not refused(values):
            return values
    return None


def is_to_prune(
    own: Mapping[int, float],
    others: Sequence[Result],
    *,
    pruner: str,
    minimize: bool,
) -> bool:
    """Whether to give a trial up after the last of its epochs so far.

    The median pruner waits for five finished trials; successive halving keeps the better quarter
    at epochs 1, 4, 16, ... (Optuna's `MedianPruner` and `SuccessiveHalvingPruner`).

    Args:
        own: the trial's objective by epoch; NaN prunes.
        others: all other trials, with their histories.
        pruner: `none`, `median` or `halving`.
        minimize: whether less is better.
    """
    if pruner == "none" or not own:
        return False
    if math.isnan(own[max(own)]):
        return True
    study = _study(minimize, pruner=_pruner(pruner))
    told = [other for other in others if other.history]
    if pruner == "median":
        study.add_trials([_past(other, {}) for other in told])
    else:
        for other in told:
            _replay(study, other)
    return _replay(study, Result({}, RUNNING, None, own))


def objective_value(history: Mapping[int, float], at: str, minimize: bool) -> float | None:
    """A trial's objective from its metric by epoch; `None` if it has none or it is not finite.

    Args:
        at: `last` or `best` epoch.
    """
    finite = [value for value in history.values() if math.isfinite(value)]
    if not finite:
        return None
    if at == "best":
        return min(finite) if minimize else max(finite)
    last = history[max(history)]
    return last if math.isfinite(last) else None


class SearchSource:
    """The trials of a search: those it has proposed, and the next one (a `worker.Source`).

    Args:
        ledger: holds the points and the metrics.
        arguments: of the sweep; their axes are searched.
        composer: composes a point, for its fingerprint.
        settings: of the search.
        seed: of the search.
    """

    def __init__(
        self,
        ledger: Ledger,
        arguments: Arguments,
        composer: Composer,
        settings: SweepConfig,
        seed: int,
    ) -> None:
        self._ledger = ledger
        self._arguments = arguments
        self._composer = composer
        self._settings = settings
        self._seed = seed
        self._minimize = is_minimized(settings.objective)
        self._histories: dict[tuple[str, int], Mapping[int, float]] = {}

    def wanted(self, view: View) -> Sequence[Planned]:
        return [point.planned for point in view.points]

    def propose(self, view: View) -> bool:
        number = len(view.points)
        if number >= self._settings.n_trials:
            return False
        taken = {point.fingerprint for point in view.points}
        found: list[Point] = []

        def refused(values: Mapping[str, Any]) -> bool:
            point = self._point(number, values)
            if point is None or point.fingerprint in taken:
                return True
            found.append(point)
            return False

        propose(
            self._arguments.axes,
            [self._result(point, view) for point in view.points],
            sampler=self._settings.sampler,
            minimize=self._minimize,
            seed=self._seed,
            refused=refused,
        )
        if not found:
            log.warning("the search has tried every point of its axes: %d of them", number)
            return False
        self._ledger.propose(found[-1])
        return True

    def prune(self, trial: Trial) -> Callable[[int, dict[str, float]], bool] | None:
        pruner, objective = self._settings.pruner, self._settings.objective
        if pruner == "none":
            return None
        own = self._ledger.history(trial, objective) if trial.step >= 0 else {}

        def give_up(epoch: int, metrics: dict[str, float]) -> bool:
            own[epoch] = metrics.get(objective, float("nan"))
            view = self._ledger.read()
            others = [
                self._result(point, view, with_history=True)
                for point in view.points
                if point.fingerprint != trial.fingerprint
            ]
            return is_to_prune(own, others, pruner=pruner, minimize=self._minimize)

        return give_up

    def _point(self, number: int, values: Mapping[str, Any]) -> Point | None:
        """A proposal as a point; `None` if its configuration is refused."""
        overrides, chosen = [], {}
        for axis in self._arguments.axes:
            override = axis.override(values[axis.key])
            overrides.append(override)
            value = values[axis.key]
            if axis.values and not isinstance(value, str):
                value = type(value)(float(override.partition("=")[2]))
            chosen[axis.key] = value
        try:
            composed = self._composer.compose(self._arguments.overrides(overrides))
            key = fingerprint(settle(composed))
        except UserError as error:
            log.warning("the search passes over %s: %s", title(overrides), error)
            return None
        return Point(number, key, tuple(overrides), chosen)

    def _result(self, point: Point, view: View, with_history: bool = False) -> Result:
        trial = view.trials.get(point.fingerprint)
        if trial is None:
            return Result(point.values, RUNNING)
        state = trial.state if trial.state in DONE else RUNNING
        if trial.state in FAILURES or trial.state == DIED:
            state = FAILED
        history: Mapping[int, float] = {}
        at = self._settings.objective_at
        if with_history or state == PRUNED or (state == FINISHED and at == "best"):
            history = self._history(trial)
        objective = None
        if state == FINISHED:
            name = self._settings.objective
            last = {trial.epoch: trial.metrics[name]} if name in trial.metrics else {}
            objective = objective_value(history or last, at, self._minimize)
        return Result(point.values, state, objective, history)

    def _history(self, trial: Trial) -> Mapping[int, float]:
        """The objective by epoch; read only once for a trial that has ended."""
        key = trial.run_id, trial.number
        if key in self._histories:
            return self._histories[key]
        history = self._ledger.history(trial, self._settings.objective)
        if trial.state != RUNNING:
            self._histories[key] = history
        return history


def _study(
    minimize: bool, sampler: BaseSampler | None = None, pruner: BasePruner | None = None
) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    return optuna.create_study(
        direction="minimize" if minimize else "maximize",
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        pruner=pruner,
    )


def _sampler(name: str, seed: int) -> BaseSampler:
    import optuna

    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _pruner(name: str) -> BasePruner:
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1)


def _past(
    result: Result, space: Mapping[str, BaseDistribution]
) -> optuna.trial.FrozenTrial:
    """A point as Optuna's trial; one that has ended without a value counts as failed."""
    from optuna.trial import TrialState, create_trial

    state, value = TrialState.RUNNING, None
    if result.state == FINISHED:
        state = TrialState.COMPLETE if result.objective is not None else TrialState.FAIL
        value = result.objective
    elif result.state == PRUNED:
        state = TrialState.PRUNED if result.history else TrialState.FAIL
    elif result.state == FAILED:
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=value,
        params={key: result.values[key] for key in space},
        distributions=dict(space),
        intermediate_values=dict(result.history),
    )


def _fits(values: Mapping[str, Any], axes: Sequence[Axis]) -> bool:
    """Whether a point lies on the axes: a named sweep may have been begun over other ones."""

    def holds(axis: Axis, value: Any) -> bool:
        if axis.span is None:
            return value in axis.values
        return not isinstance(value, str) and bool(axis.span.low <= value <= axis.span.high)

    same_keys = values.keys() == {axis.key for axis in axes}
    return same_keys and all(holds(axis, values[axis.key]) for axis in axes)


def _readable(value: Any, axis: Axis) -> Any:
    """A continuous value, rounded to four digits more than its range needs to be told apart."""
    if axis.span is None or axis.span.step is not None:
        return value
    low, high = axis.span.low, axis.span.high
    needed = math.log10(max(abs(low), abs(high)) / (high - low)) if high > low else 0.0
    rounded = float(f"{value:.{4 + max(0, math.floor(needed))}g}")
    return min(max(rounded, low), high)


def _replay(study: optuna.Study, result: Result) -> bool:
    """Report a trial's epochs to the study in order; whether it would prune after the last."""
    from optuna.trial import TrialState

    trial = study.ask()
    verdict = False
    for epoch in sorted(result.history):
        trial.report(result.history[epoch], epoch)
        verdict = bool(trial.should_prune())
    if result.state == FINISHED and result.objective is not None:
        study.tell(trial, result.objective)
    elif result.state == PRUNED:
        study.tell(trial, state=TrialState.PRUNED)
    elif result.state == FAILED:
        study.tell(trial, state=TrialState.FAIL)
    return verdict


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    span = axis.span
    if span is None:
        return CategoricalDistribution(list(axis.values))
    step = None if span.log else span.step
    if span.integer:
        low, high = int(span.low), int(span.high)
        return IntDistribution(low, high, log=span.log, step=int(step or 1))
    return FloatDistribution(span.low, span.high, log=span.log, step=step)


def _all_points(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every point of axes that are finite and small; of others, none."""
    choices: list[Sequence[Any]] = []
    for axis in axes:
        span = axis.span
        if span is None:
            choices.append(axis.values)
        elif axis.values:
            choices.append([int(v) if span.integer else float(v) for v in axis.values])
        elif span.integer:
            choices.append(range(int(span.low), int(span.high) + 1))
        else:
            return []
    if math.prod(map(len, choices)) > MAX_LISTED:
        return []
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]


def _point_key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


def _mixed(*numbers: int) -> int:
    """A seed below 2**32 from several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:4], "big")
