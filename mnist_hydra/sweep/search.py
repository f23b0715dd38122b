"""Proposes a search's next point and says which trials to prune; it keeps nothing.

Optuna's study is made anew in memory from what the ledger holds, and a proposal follows from that,
the seed and the point's number alone.
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

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

FINISHED, PRUNED, RUNNING, FAILED = "finished", "pruned", "running", "failed"
TRIES = 10
"""Proposals that may be refused before the rest of the space is listed, or given up."""
MAX_LISTED = 100_000

Space = Mapping[str, Mapping[str, Any]]
"""By key: `{"type": "float" | "int", "low": , "high": , "log": , "step": }`, both ends included, or
`{"type": "categorical", "choices": }`."""
Refused = Callable[[Mapping[str, Any]], bool]
"""Whether a proposed point is one that there is already, or of no use."""


@dataclass(frozen=True)
class Result:
    """One point of the search and what is known of it."""

    values: Mapping[str, Any]
    """By key."""
    state: str
    """`finished`, `pruned`, `failed`; any other counts as running."""
    objective: float | None = None
    """For a finished one."""
    history: Mapping[int, float] = field(default_factory=dict)
    """The objective's metric by epoch."""


def propose(
    space: Space,
    results: Sequence[Result],
    *,
    sampler: str,
    minimize: bool,
    seed: int,
    refused: Refused = lambda values: False,
) -> dict[str, Any] | None:
    """The next point, by key; `None` when every point of a finite space is taken.

    The same arguments give the same point. Points that run are avoided like bad ones, so that
    several processes do not crowd where one looks already.

    Args:
        space: what is searched.
        results: of all points so far, in the order in which they were proposed.
        sampler: `tpe` or `random`.
        minimize: whether less is better.
        seed: of the search.
        refused: asked for each candidate that is not in `results`.
    """
    distributions = {key: _distribution(axis) for key, axis in space.items()}
    taken = {_point_key(result.values) for result in results}
    # A named sweep may have been begun over other axes or ranges.
    past = [_past(result, distributions) for result in results if _fits(result.values, space)]
    for attempt in range(TRIES):
        # A sampler seeded anew for each point and try never repeats itself.
        chosen = _sampler(sampler, _mixed(seed, len(results), attempt))
        study = _study(minimize, sampler=chosen)
        study.add_trials(past)
        params = study.ask(distributions).params
        values = {key: _readable(params[key], axis) for key, axis in space.items()}
        if _point_key(values) not in taken and not refused(values):
            return values
        taken.add(_point_key(values))
    rest = _all_points(space)
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
    """Whether a trial is to be given up after its last epoch.

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


def is_minimized(metric: str) -> bool:
    """Whether less of a metric is better: of losses and of times."""
    name = metric.rpartition("/")[2]
    return "loss" in name or name == "epoch_s"


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
    result: Result, distributions: Mapping[str, BaseDistribution]
) -> optuna.trial.FrozenTrial:
    """A point as Optuna knows it; what can tell nothing any more is failed."""
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
        params={key: result.values[key] for key in distributions},
        distributions=dict(distributions),
        intermediate_values=dict(result.history),
    )


def _fits(values: Mapping[str, Any], space: Space) -> bool:
    for key, axis in space.items():
        if key not in values:
            return False
        if axis["type"] == "categorical":
            if values[key] not in axis["choices"]:
                return False
        elif isinstance(values[key], str) or not axis["low"] <= values[key] <= axis["high"]:
            return False
    return values.keys() == space.keys()


def _readable(value: Any, axis: Mapping[str, Any]) -> Any:
    """A continuous value to about four digits more than its range needs to be told apart."""
    if axis["type"] != "float" or axis.get("step"):
        return value
    low, high = float(axis["low"]), float(axis["high"])
    needed = math.log10(max(abs(low), abs(high)) / (high - low)) if high > low else 0.0
    rounded = float(f"{value:.{4 + max(0, math.floor(needed))}g}")
    return min(max(rounded, low), high)


def _replay(study: optuna.Study, result: Result) -> bool:
    """Tell the study a trial's epochs as they came; whether it would have pruned the last."""
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


def _distribution(axis: Mapping[str, Any]) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if axis["type"] == "categorical":
        return CategoricalDistribution(list(axis["choices"]))
    log = bool(axis.get("log", False))
    step = None if log else axis.get("step")
    if axis["type"] == "int":
        return IntDistribution(int(axis["low"]), int(axis["high"]), log=log, step=int(step or 1))
    return FloatDistribution(float(axis["low"]), float(axis["high"]), log=log, step=step)


def _all_points(space: Space) -> list[dict[str, Any]]:
    """Every point of a space that is finite and small; of another, none."""
    choices: list[Sequence[Any]] = []
    for axis in space.values():
        if axis["type"] == "categorical":
            choices.append(list(axis["choices"]))
        elif axis.get("step"):
            count = math.floor((axis["high"] - axis["low"]) / axis["step"] + 1e-9) + 1
            choices.append([axis["low"] + i * axis["step"] for i in range(min(count, MAX_LISTED))])
        elif axis["type"] == "int":
            choices.append(range(int(axis["low"]), int(axis["high"]) + 1))
        else:
            return []
    if math.prod(len(choice) for choice in choices) > MAX_LISTED:
        return []
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]


def _point_key(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(values.items()))


def _mixed(*numbers: int) -> int:
    """A seed below 2**32 from several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:4], "big")
