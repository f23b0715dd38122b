"""What a person can click in MLflow's UI, while a sweep runs and after it, `mlflow gc` included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from tests.commands import Commands
from tests.faults.faulty_sweep import FaultySweep, finish, wait_for
from tests.sweep_entries import claims

SLOW = {"FAULTS_SLOW": "1"}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="in-process"),
        pytest.param(["hydra/launcher=joblib", "sweep.workers=2"], id="joblib"),
    ],
)
def test_a_sweep_that_is_deleted_while_it_runs_says_so_and_the_same_command_begins_it_anew(
    tmp_path: Path,
    store: Path,
    mnist: Path,
    client: MlflowClient,
    commands: Commands,
    launcher: list[str],
    request: pytest.FixtureRequest,
) -> None:
    name = f"deleted-{request.node.callspec.id}"
    sweep = FaultySweep(tmp_path, mnist, name, ["seed=1,2", f"output_dir={store}"])
    going = sweep.start(*launcher, environment=SLOW)
    wait_for(lambda: any(sweep.faults.glob("slow-*")), going, 180)
    [parent] = [run for run in _runs(client, name) if "mlflow.parentRunId" not in run.data.tags]
    client.delete_run(parent.info.run_id)
    code, said = finish(going, 180)
    assert code == 2, said
    assert f"error: this sweep (run {parent.info.run_id}) was deleted in MLflow" in said
    assert "Traceback" not in said
    begun = [run for run in _runs(client, name) if claims(client, run)]
    assert begun and {run.info.status for run in begun} == {"KILLED"}
    for run in begun:
        client.delete_run(run.info.run_id)
    code, said = sweep.again(commands, *launcher)
    assert code == 0, said
    assert len(sweep.trials(client)) == 2


def test_a_trial_that_is_deleted_while_it_runs_is_begun_anew(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient
) -> None:
    name = "deleted-trial"
    sweep = FaultySweep(tmp_path, mnist, name, ["seed=1,2", f"output_dir={store}"])
    going = sweep.start(environment=SLOW)
    wait_for(lambda: any(sweep.faults.glob("slow-*")), going, 180)
    [trial] = [run for run in _runs(client, name) if "mlflow.parentRunId" in run.data.tags]
    client.delete_run(trial.info.run_id)
    wait_for(lambda: len(_runs(client, name)) > 1, going, 180)  # its parent and another one
    sweep.hurry()
    code, said = finish(going)
    assert code == 0, said
    assert "Traceback" not in said
    trials = sweep.trials(client)
    assert len(trials) == 2 and trial.info.run_id not in {run.info.run_id for run in trials}


@pytest.mark.long
def test_whatever_was_deleted_or_renamed_the_same_command_does_what_is_missing_or_says_one_line(
    tmp_path: Path, mnist: Path
) -> None:
    name, outputs = "clicks", tmp_path / "outputs"
    sweep = FaultySweep(tmp_path, mnist, name, ["seed=1,2", f"output_dir={outputs}"], epochs=1)
    assert "2 to run" in _said(sweep)
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    [first, _] = sweep.trials(client)
    client.delete_run(first.info.run_id)
    _garbage_collect(outputs)
    assert "1 to run, 1 done and skipped" in _said(sweep)
    [parent] = [run for run in _runs(client, name) if "mlflow.parentRunId" not in run.data.tags]
    client.delete_run(parent.info.run_id)
    _garbage_collect(outputs)
    assert "2 to run" in _said(sweep)

    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    client.rename_experiment(experiment.experiment_id, "renamed")
    assert "tracking.experiment_name=renamed" in _refused(sweep)
    assert "2 done and skipped" in _said(sweep, "tracking.experiment_name=renamed")
    emptied = client.get_experiment_by_name(name)
    assert emptied is not None
    client.delete_experiment(emptied.experiment_id)
    client.delete_experiment(experiment.experiment_id)
    assert "mlflow experiments restore" in _refused(sweep)
    _garbage_collect(outputs)
    assert "2 to run" in _said(sweep)

    ledgers = client.get_experiment_by_name(f"{name}.ledger")
    assert ledgers is not None
    client.delete_experiment(ledgers.experiment_id)
    assert "mlflow experiments restore" in _refused(sweep)
    _garbage_collect(outputs)
    assert "sweep.fresh=true" in _refused(sweep)
    assert "2 to run" in _said(sweep, "sweep.fresh=true")


def _runs(client: MlflowClient, name: str) -> list[Run]:
    """The runs of an experiment that are not deleted."""
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], run_view_type=ViewType.ACTIVE_ONLY))


def _said(sweep: FaultySweep, *overrides: str) -> str:
    """What the command says, which ends well."""
    code, said = finish(sweep.start(*overrides))
    assert code == 0 and "Traceback" not in said, said
    return said


def _refused(sweep: FaultySweep) -> str:
    """The one line by which the command is refused."""
    code, said = finish(sweep.start())
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and "Traceback" not in said, said
    return line


def _garbage_collect(outputs: Path) -> None:
    """Remove for good what was deleted."""
    store = f"sqlite:///{outputs / 'mlflow.db'}"
    subprocess.run(
        [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", store],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        check=True,
        capture_output=True,
    )
