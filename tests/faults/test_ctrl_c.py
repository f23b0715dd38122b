"""Ctrl-C, which a terminal sends to every process of the sweep on this machine at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.faults.faulty_sweep import FaultySweep, finish, is_alive, wait_for
from tests.faults.slurm import Slurm
from tests.sweep_entries import claims

INTERRUPTED = 130


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=joblib"], id="joblib"),
        pytest.param(["hydra/launcher=ray"], id="ray-local"),
        pytest.param(["hydra/launcher=slurm"], id="slurm"),
    ],
)
def test_ctrl_c_leaves_checkpoints_that_the_same_command_goes_on_from(
    launcher: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    store: Path,
    mnist: Path,
    client: MlflowClient,
) -> None:
    environment = {}
    if launcher[0] == "hydra/launcher=ray":
        pytest.importorskip("ray")
    if launcher == ["hydra/launcher=slurm"]:
        slurm: Slurm = request.getfixturevalue("slurm")
        environment = slurm.environment
    name = f"ctrl-c-{request.node.callspec.id}"
    sweep = FaultySweep(tmp_path, mnist, name, ["dropout=0.0,0.02,0.04", f"output_dir={store}"])
    command = [*launcher, "sweep.workers=2"]

    slow = sweep.start(*command, environment={**environment, "FAULTS_SLOW": "1"})
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, slow, 180)
    os.killpg(slow.pid, signal.SIGINT)
    code, said = finish(slow, 90)
    assert code == INTERRUPTED, said
    assert "Traceback" not in said
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    begun = [run for run in client.search_runs([experiment.experiment_id]) if claims(client, run)]
    assert {run.data.tags["mnist_hydra.state"] for run in begun} == {"interrupted"}

    code, said = finish(sweep.start(*command, environment=environment))
    assert code == 0, said
    trials = sweep.trials(client)
    assert len(trials) == 3
    resumed = [claims(client, run)[1] for run in trials if len(claims(client, run)) == 2]
    assert len(resumed) == 2
    assert all(claim["from_step"] > -1 for claim in resumed)


def test_ctrl_c_twice_leaves_at_once_and_takes_all_workers_of_this_machine_along(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "ctrl-c-twice", ["seed=1,2", f"output_dir={store}"])
    command = ["hydra/launcher=joblib", "sweep.workers=2"]
    slow = sweep.start(*command, environment={"FAULTS_SLOW": "60"})
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, slow, 180)
    workers = [int(path.name.removeprefix("slow-")) for path in sweep.faults.glob("slow-*")]
    os.killpg(slow.pid, signal.SIGINT)
    time.sleep(1)
    os.killpg(slow.pid, signal.SIGINT)
    code, said = finish(slow, 10)
    assert code == INTERRUPTED, said
    assert "Traceback" not in said
    until = time.monotonic() + 5  # to be taken apart, a process with torch needs a moment
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, "a worker goes on"
        time.sleep(0.1)
    code, said = finish(sweep.start(*command))
    assert code == 0, said
    assert len(sweep.trials(client)) == 2
