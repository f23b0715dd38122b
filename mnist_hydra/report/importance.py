"""How much of the differences between trials each setting accounts for, by Optuna's fANOVA."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnist_hydra.report.statistics import in_order, number

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

MAX_TRIALS = 400
MIN_TRIALS = 9
TREES = 32


def importances(
    axes: Sequence[str], points: Sequence[Sequence[str]], objectives: Sequence[float]
) -> dict[str, float]:
    """The share (0 to 1) of the objective's variance that each axis accounts for by itself.

    Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance"
    (ICML 2014), as Optuna has it, with a fixed seed: a forest is fitted to the trials. Of more than
    400 trials a random 400 takes part. Nothing is said (an empty answer) of fewer than nine
    trials, or where all came out the same.

    Args:
        axes: names; the seed is one where it was swept, and its share is that of chance.
        points: of each trial a value for each axis.
        objectives: of each trial.
    """
    if len(objectives) < MIN_TRIALS or min(objectives) == max(objectives):
        return {}
    chosen = list(range(len(points)))
    if len(chosen) > MAX_TRIALS:
        chosen = random.Random(0).sample(chosen, MAX_TRIALS)
    columns = {axis: [points[i][place] for i in chosen] for place, axis in enumerate(axes)}
    spaces = {axis: space_of(values) for axis, values in columns.items()}
    varied = [(place, axis) for place, axis in enumerate(axes) if spaces[axis] is not None]
    if len(varied) < 2:
        return {axis: 1.0 for _, axis in varied}
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        space = {axis: found for axis, found in spaces.items() if found is not None}
        study.add_trials(
            optuna.trial.create_trial(
                params={axis: plain_value(points[index][place]) for place, axis in varied},
                distributions=space,
                value=objectives[index],
            )
            for index in chosen
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(
                study, evaluator=FanovaImportanceEvaluator(n_trees=TREES, seed=0), normalize=True
            )
    finally:
        optuna.logging.set_verbosity(before)
    return {axis: float(share) for axis, share in found.items()}


def space_of(values: Sequence[str], log: bool = False) -> BaseDistribution | None:
    """What the values are of, as Optuna has it; `None` where there is only one.

    Args:
        log: whether ratios of numbers count and not differences.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    unique = in_order(values)
    if len(unique) < 2:
        return None
    numbers = [found for value in unique if (found := number(value)) is not None]
    if len(numbers) == len(unique) and max(numbers) > min(numbers):
        return FloatDistribution(min(numbers), max(numbers), log=log)
    return CategoricalDistribution([plain_value(value) for value in unique])


def plain_value(text: str) -> str | float:
    """The number that a text is, or the text."""
    found = number(text)
    return text if found is None else found
