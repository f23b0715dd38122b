"""A sweep's trials as an Optuna study in a file, as `optuna-dashboard` opens it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_hydra.ledger.trial import PRUNED, RUNNING, WAITING
from mnist_hydra.report.importance import plain_value, space_of
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import SEED

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

History = Sequence[tuple[int, float]]


def write_study(findings: Findings, histories: Mapping[str, History], path: Path) -> None:
    """Write the study; a file that is there already is replaced once the new one is whole.

    Args:
        findings: whose title is the study's name.
        histories: the objective's epochs and values by run.
        path: of the file, an Optuna journal.

    Raises:
        OSError: it cannot be written.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    beside = path.with_name(f".{path.name}.{os.getpid()}")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=findings.title,
            storage=JournalStorage(JournalFileBackend(str(beside))),
            direction="minimize" if findings.minimize else "maximize",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([findings.results.objective])
        study.add_trials(trials(findings, histories))
        os.replace(beside, path)
    finally:
        optuna.logging.set_verbosity(before)
        beside.unlink(missing_ok=True)


def trials(findings: Findings, histories: Mapping[str, History]) -> list[FrozenTrial]:
    """Each trial as Optuna has it: settings, state, objective, and the objective by epoch.

    A setting with one value in all trials is left out, as Optuna's pictures have no use for it.
    """
    from optuna.trial import TrialState, create_trial

    states = {PRUNED: TrialState.PRUNED, RUNNING: TrialState.RUNNING, WAITING: TrialState.WAITING}
    names = [*findings.axes, *([SEED] if findings.results.over_seed else [])]
    spaces = {
        name: space_of([e.record.values[name] for e in findings.entries], name in findings.log_axes)
        for name in names
    }
    kept = {name: space for name, space in spaces.items() if space is not None}
    found = []
    for entry in findings.entries:
        record = entry.record
        state = states.get(record.state, TrialState.FAIL)
        if record.counts:
            state = TrialState.COMPLETE
        attributes = {"run": record.run_id, "test/acc": entry.metrics.get("test/acc_last")}
        found.append(
            create_trial(
                state=state,
                value=record.objective if record.counts else None,
                params={name: plain_value(record.values[name]) for name in kept},
                distributions=kept,
                user_attrs={key: value for key, value in attributes.items() if value is not None},
                intermediate_values=dict(histories.get(record.run_id, ())),
            )
        )
    return found
