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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from mnist_hydra.config import SweepConfig, fingerprint, settle
from mnist_hydra.errors import UserError, first_line
from mnist_hydra.ledger.ledger import Ledger, View
from mnist_hydra.ledger.plan import Arguments, Axis, title
from mnist_hydra.ledger.trial import DIED, FAILED, FAILURES, FINISHED, PRUNED, RUNNING, Point, Trial
from mnist_hydra.metrics import is_minimized, objective_value
from mnist_hydra.sweep.attempt import Prune
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.tracking.tracker import history_of, is_away

TRIES = 10
"""So many proposals may be refused before the remaining points are listed instead."""
MAX_LISTED = 100_000
ENDED = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}

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
    space = {axis.key: _distribution(axis) for axis in axes}
    past = [_past(result, space) for result in results if _fits(result.values, axes)]

    def candidates() -> Iterator[dict[str, Any]]:
        for attempt in range(TRIES):
            # Seeded anew for each point and try: a sampler with one seed would repeat itself.
            chosen = _sampler(sampler, _mixed(seed, len(results), attempt))
            study = _study(minimize, sampler=chosen)
            study.add_trials(past)
            params = study.ask(space).params
            yield {axis.key: _as_written(params[axis.key], axis) for axis in axes}
        rest = _all_points(axes)
        random.Random(_mixed(seed, len(results), TRIES)).shuffle(rest)
        yield from rest

    taken = {frozenset(result.values.items()) for result in results}
    for values in candidates():
        key = frozenset(values.items())
        if key not in taken and not refused(values):
            return values
        taken.add(key)
    return None


def is_to_prune(
    own: Mapping[int, float], others: Sequence[Result], *, pruner: str, minimize: bool
) -> bool:
    """Whether to give a trial up after the last of its epochs so far.

    The median pruner waits for five finished trials; successive halving keeps the better quarter
    at epochs 1, 4, 16, ... (Optuna's `MedianPruner` and `SuccessiveHalvingPruner`).

    Args:
        own: the trial's objective by epoch, of at least one; NaN prunes.
        others: all other trials, with their histories.
        pruner: `median` or `halving`.
        minimize: whether less is better.
    """
    if math.isnan(own[max(own)]):
        return True
    others = [other for other in others if other.history]
    if pruner == "median":
        study = _study(minimize, pruner=MedianPruner())
        study.add_trials([_past(other, {}) for other in others])
        return _would_prune(study, own)
    assert pruner == "halving"
    study = _study(minimize, pruner=SuccessiveHalvingPruner(min_resource=1))
    for other in others:
        _would_prune(study, other.history)
    return _would_prune(study, own)


@dataclass
class Search:
    """Proposes a search's trials, and decides which of them to prune."""

    ledger: Ledger
    """Holds the points and the metrics."""
    arguments: Arguments
    """Of the sweep; their axes are searched."""
    composer: Composer
    """Composes a point, for its fingerprint."""
    settings: SweepConfig
    """Of the search."""
    seed: int
    """Of the search."""
    _histories: dict[tuple[str, int], Mapping[int, float]] = field(default_factory=dict)
    """The objective by epoch of trials that have ended, by run and attempt."""
    _is_exhausted: bool = False
    """Whether it was said that every point is proposed."""

    @property
    def minimize(self) -> bool:
        """Whether less of the objective is better."""
        return is_minimized(self.settings.objective)

    def propose(self, view: View) -> bool:
        """Add one more trial to the ledger, unless another process just did.

        Returns:
            False if the search has all its trials.
        """
        number = len(view.points)
        if number >= self.settings.n_trials:
            return False
        taken = {point.fingerprint for point in view.points}

        def refused(values: Mapping[str, Any]) -> bool:
            point = self._point(number, values)
            return point is None or point.fingerprint in taken

        values = propose(
            self.arguments.axes,
            [self._result(point, view) for point in view.points],
            sampler=self.settings.sampler,
            minimize=self.minimize,
            seed=self.seed,
            refused=refused,
        )
        point = None if values is None else self._point(number, values)
        if point is None:
            if not self._is_exhausted:
                log.warning("the search has proposed every point of its axes: %d of them", number)
            self._is_exhausted = True
            return False
        self.ledger.propose(point)
        return True

    def prune(self, trial: Trial) -> Prune | None:
        """What decides after each epoch of a trial whether to give it up; `None` never does."""
        pruner, objective = self.settings.pruner, self.settings.objective
        if pruner == "none":
            return None
        own: dict[int, float] = {}

        def give_up(epoch: int, metrics: dict[str, float]) -> bool:
            own[epoch] = metrics.get(objective, float("nan"))
            try:
                # Of attempts before, too; what they told of later epochs does not count.
                told = history_of(self.ledger.client, trial.run_id, objective) | own
                so_far = {e: value for e, value in told.items() if e <= epoch}
                view = self.ledger.read()
                others = [
                    self._result(point, view, with_history=True)
                    for point in view.points
                    if point.fingerprint != trial.fingerprint
                ]
            except Exception as error:
                if not is_away(error):
                    raise
                log.warning("after epoch %d nothing is pruned: %s", epoch, first_line(error))
                return False
            return is_to_prune(so_far, others, pruner=pruner, minimize=self.minimize)

        return give_up

    def _point(self, number: int, values: Mapping[str, Any]) -> Point | None:
        """A proposal as a point; `None` if its configuration is refused."""
        overrides = [axis.override(values[axis.key]) for axis in self.arguments.axes]
        try:
            composed = self.composer.compose(self.arguments.overrides(overrides))
            key = fingerprint(settle(composed))
        except UserError as error:
            log.warning("the search passes over %s: %s", title(overrides), error)
            return None
        name = title(overrides)
        return Point(key, tuple(overrides), name, number=number, values=values)

    def _result(self, point: Point, view: View, with_history: bool = False) -> Result:
        trial = view.trials.get(point.fingerprint)
        if trial is None:
            return Result(point.values, RUNNING)
        state = FAILED if trial.state in FAILURES | {DIED} else trial.state
        name, at = self.settings.objective, self.settings.objective_at
        history: Mapping[int, float] = {}
        if with_history or state == PRUNED or (state == FINISHED and at == "best"):
            history = self._history(trial)
        objective = None
        if state == FINISHED:
            last = {trial.epoch: trial.metrics[name]} if name in trial.metrics else {}
            objective = objective_value(history or last, at, self.minimize)
        return Result(point.values, state, objective, history)

    def _history(self, trial: Trial) -> Mapping[int, float]:
        """The objective by epoch; read only once for a trial that has ended."""
        key = trial.run_id, trial.number
        if key in self._histories:
            return self._histories[key]
        history = history_of(self.ledger.client, trial.run_id, self.settings.objective)
        if trial.state != RUNNING:
            self._histories[key] = history
        return history


def _study(
    minimize: bool, sampler: BaseSampler | None = None, pruner: BasePruner | None = None
) -> optuna.Study:
    optuna.logging.set_verbosity(logging.WARNING)
    return optuna.create_study(
        direction="minimize" if minimize else "maximize", sampler=sampler, pruner=pruner
    )


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _past(result: Result, space: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A point as Optuna's trial; one that has ended without a value counts as failed."""
    state = ENDED.get(result.state, TrialState.RUNNING)
    without_objective = state == TrialState.COMPLETE and result.objective is None
    if without_objective or (state == TrialState.PRUNED and not result.history):
        state = TrialState.FAIL
    return create_trial(
        state=state,
        value=result.objective,
        params={key: result.values[key] for key in space},
        distributions=dict(space),
        intermediate_values=dict(result.history),
    )


def _fits(values: Mapping[str, Any], axes: Sequence[Axis]) -> bool:
    """Whether a point lies on the axes: a named sweep may have been begun over other ones."""

    def holds(axis: Axis, value: Any) -> bool:
        if listed := _listed(axis):
            return value in listed
        assert axis.span is not None
        return not isinstance(value, str) and bool(axis.span.low <= value <= axis.span.high)

    same_keys = values.keys() == {axis.key for axis in axes}
    return same_keys and all(holds(axis, values[axis.key]) for axis in axes)


def _as_written(value: Any, axis: Axis) -> Any:
    """A number as its override has it: the nearest listed one; on a continuous axis it is rounded
    to four digits more than the axis needs for its ends to be told apart.
    """
    if axis.span is None or (axis.span.integer and not axis.values):
        return value
    if axis.values:
        return min(_listed(axis), key=lambda listed: abs(listed - value))
    low, high = axis.span.low, axis.span.high
    needed = math.log10(max(abs(low), abs(high)) / (high - low)) if high > low else 0.0
    rounded = float(f"{value:.{4 + max(0, math.floor(needed))}g}")
    return min(max(rounded, low), high)


def _would_prune(study: optuna.Study, history: Mapping[int, float]) -> bool:
    """Report a trial's epochs to the study in order; whether it would prune after the last."""
    trial = study.ask()
    verdict = False
    for epoch in sorted(history):
        trial.report(history[epoch], epoch)
        verdict = bool(trial.should_prune())
    return verdict


def _distribution(axis: Axis) -> BaseDistribution:
    span = axis.span
    if span is None:
        return CategoricalDistribution(list(axis.values))
    step = None if span.log else span.step
    if span.integer:
        low, high = int(span.low), int(span.high)
        return IntDistribution(low, high, log=span.log, step=int(step or 1))
    # Optuna's own steps of 0.01 from 0 miss 0.03, which is 0.030000000000000002 in a list. The
    # nearest listed number is taken; with half a step around, the ends are as likely as the others.
    around = 0.0 if step is None else step / 2
    return FloatDistribution(span.low - around, span.high + around, log=span.log)


def _all_points(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """Every point of axes that are finite and small; of others, none."""
    choices = {axis.key: listed for axis in axes if (listed := _listed(axis))}
    if len(choices) < len(axes) or math.prod(map(len, choices.values())) > MAX_LISTED:
        return []
    return [dict(zip(choices, values)) for values in itertools.product(*choices.values())]


def _listed(axis: Axis) -> Sequence[Any]:
    """All values of a finite axis, as a search proposes them; of another, none."""
    span = axis.span
    if span is None:
        return axis.values
    if span.integer and not axis.values:
        return range(int(span.low), int(span.high) + 1)
    return [int(float(text)) if span.integer else float(text) for text in axis.values]


def _mixed(*numbers: int) -> int:
    """A seed below 2**32 from several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:4], "big")
