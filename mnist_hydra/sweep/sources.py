"""Where a worker's trials come from: the plan of a grid, or a search that goes on and on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_hydra.config import SweepConfig, fingerprint, settle
from mnist_hydra.errors import UserError
from mnist_hydra.sweep import search
from mnist_hydra.sweep.axes import Arguments, title
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.sweep.ledger import Ledger, View
from mnist_hydra.sweep.trial import DIED, FAILURES, FINISHED, PRUNED, RUNNING, Planned, Point, Trial

log = logging.getLogger(__name__)


class GridSource:
    """The trials of a plan."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._planned = planned

    def wanted(self, view: View) -> Sequence[Planned]:
        return self._planned

    def propose(self, view: View) -> bool:
        return False

    def prune(self, trial: Trial) -> Callable[[int, dict[str, float]], bool] | None:
        return None


class SearchSource:
    """The points that a search has proposed, and its next one.

    Args:
        ledger: for the points, and the metrics of those that are done.
        arguments: their axes are what is searched.
        composer: for a point's fingerprint.
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
        self._minimize = search.is_minimized(settings.objective)
        self._space = {axis.key: axis.space() for axis in arguments.axes}
        self._histories: dict[tuple[str, int], Mapping[int, float]] = {}

    def wanted(self, view: View) -> Sequence[Planned]:
        return [Planned(p.fingerprint, p.overrides, title(p.overrides)) for p in view.points]

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

        search.propose(
            self._space,
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
            return search.is_to_prune(own, others, pruner=pruner, minimize=self._minimize)

        return give_up

    def _point(self, number: int, values: Mapping[str, Any]) -> Point | None:
        """A proposal as a point; `None` if no trial can be made of it."""
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

    def _result(self, point: Point, view: View, with_history: bool = False) -> search.Result:
        trial = view.trials.get(point.fingerprint)
        if trial is None:
            return search.Result(point.values, search.RUNNING)
        state = {FINISHED: search.FINISHED, PRUNED: search.PRUNED}.get(trial.state, search.RUNNING)
        if trial.state in FAILURES or trial.state == DIED:
            state = search.FAILED
        history: Mapping[int, float] = {}
        at = self._settings.objective_at
        if with_history or state == search.PRUNED or (state == search.FINISHED and at == "best"):
            history = self._history(trial)
        objective = None
        if state == search.FINISHED:
            name = self._settings.objective
            last = {trial.epoch: trial.metrics[name]} if name in trial.metrics else {}
            objective = search.objective_value(history or last, at, self._minimize)
        return search.Result(point.values, state, objective, history)

    def _history(self, trial: Trial) -> Mapping[int, float]:
        """The objective by epoch; of a trial that does not run it is read once."""
        key = trial.run_id, trial.number
        if key in self._histories:
            return self._histories[key]
        history = self._ledger.history(trial, self._settings.objective)
        if trial.state != RUNNING:
            self._histories[key] = history
        return history
