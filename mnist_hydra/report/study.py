"""A sweep's trials as Optuna has them: for its importances, and for `optuna-dashboard`."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_hydra.ledger.trial import PRUNED, RUNNING
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import TrialRecord
from mnist_hydra.report.statistics import in_order, number
from mnist_hydra.whole_file import whole_file

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

MAX_TRIALS = 400
MIN_TRIALS = 9
TREES = 32


def importances(findings: Findings) -> dict[str, float]:
    """The share (0 to 1) of the objective's variance that each axis accounts for by itself.

    Hutter, Hoos and Leyton-Brown, "An efficient approach for assessing hyperparameter importance"
    (ICML 2014), as Optuna has it, with a fixed seed: a forest is fitted to the trials that have a
    rank. The seed is an axis where it was swept, and its share is that of chance. The shares sum to
    less than 1: what axes do only together, and more of chance, is in none of them. Of more than
    400 trials a random 400 takes part. Nothing is said (an empty answer) of fewer than nine trials,
    of one axis alone, which a forest cannot tell from chance, or where all came out the same.
    """
    records = findings.results.ranked_trials
    if len(records) < MIN_TRIALS or len({record.score for record in records}) == 1:
        return {}
    if len(records) > MAX_TRIALS:
        records = random.Random(0).sample(records, MAX_TRIALS)
    swept = {axis: {record.values[axis] for record in records} for axis in findings.results.swept}
    places = {axis: in_order(sorted(found)) for axis, found in swept.items() if len(found) > 1}
    if len(places) < 2:
        return {}
    with _quiet():
        import optuna
        from optuna.distributions import FloatDistribution
        from optuna.importance import FanovaImportanceEvaluator

        # By their places, since a value weighs there as much as lies between its neighbours.
        spaces: dict[str, BaseDistribution] = {
            axis: FloatDistribution(-0.5, len(found) - 0.5) for axis, found in places.items()
        }
        study = optuna.create_study()
        for record in records:
            at = {axis: float(found.index(record.values[axis])) for axis, found in places.items()}
            trial = optuna.create_trial(params=at, distributions=spaces, value=record.objective)
            study.add_trial(trial)
        # not get_param_importances, which makes the shares sum to 1
        found = FanovaImportanceEvaluator(n_trees=TREES, seed=0).evaluate(study)
    return {axis: float(share) for axis, share in found.items()}


def write_study(
    findings: Findings, histories: Mapping[str, Mapping[int, float]], path: Path
) -> None:
    """Write the study; a file that is there already is replaced once the new one is whole.

    Args:
        findings: whose title is the study's name.
        histories: the objective by epoch of each run.
        path: of the file, an Optuna journal.

    Raises:
        OSError: it cannot be written.
    """
    with _quiet(), whole_file(path) as beside:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        study = optuna.create_study(
            study_name=findings.title,
            storage=JournalStorage(JournalFileBackend(str(beside))),
            direction="minimize" if findings.results.minimize else "maximize",
        )
        study.set_metric_names([findings.results.objective])
        study.add_trials(optuna_trials(findings, findings.records, histories))


def optuna_trials(
    findings: Findings,
    records: Sequence[TrialRecord],
    histories: Mapping[str, Mapping[int, float]],
) -> list[FrozenTrial]:
    """Each trial as Optuna has it: settings, state, times, objective, and the objective by epoch.

    A pruned trial's objective is the last that it reported, as where Optuna itself prunes. A
    setting with one value in all trials is left out, as Optuna's pictures have no use for it.
    """
    from optuna.trial import TrialState, create_trial

    states = {PRUNED: TrialState.PRUNED, RUNNING: TrialState.RUNNING}
    spaces = _spaces(findings, records)
    found = []
    for record in records:
        attributes = {"run": record.run_id, "test/acc": record.metrics.get("test/acc_last")}
        state = TrialState.COMPLETE if record.counts else states.get(record.state, TrialState.FAIL)
        history = histories.get(record.run_id, {})
        value = record.objective if record.counts else None
        if history and state == TrialState.PRUNED:
            value = history[max(history)]
        trial = create_trial(
            state=state,
            value=None if value is None or math.isnan(value) else value,
            params={name: _plain_value(record.values[name]) for name in spaces},
            distributions=spaces,
            user_attrs={key: value for key, value in attributes.items() if value is not None},
            intermediate_values=dict(history),
        )
        if record.began_s is not None:
            trial.datetime_start = datetime.fromtimestamp(record.began_s)
            if state.is_finished():
                trial.datetime_complete = trial.datetime_start + timedelta(
                    seconds=record.seconds or 0
                )
        found.append(trial)
    return found


def _spaces(
    findings: Findings, records: Sequence[TrialRecord]
) -> dict[str, BaseDistribution]:
    """What the values of each axis are of, as Optuna has it; the seed is one where it was swept."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {}
    for axis in findings.results.swept:
        values = in_order([record.values[axis] for record in records])
        plain = [_plain_value(value) for value in values]
        numbers = [value for value in plain if isinstance(value, float)]
        if len(numbers) == len(values) and numbers[0] < numbers[-1]:
            log = findings.drawn.get(axis, False) and numbers[0] > 0
            found[axis] = FloatDistribution(numbers[0], numbers[-1], log=log)
        elif len(values) > 1:
            found[axis] = CategoricalDistribution(plain)
    return found


def _plain_value(text: str) -> str | float:
    """The number that a text is, or the text."""
    found = number(text)
    return text if found is None else found


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna, which logs nothing from now on, warns of nothing meanwhile."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
