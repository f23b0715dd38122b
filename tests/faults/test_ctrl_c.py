"""Ctrl-C, which a terminal sends to every process of a sweep on this machine at once, and SIGTERM,
which goes to one process alone.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import Commands, read_until
from tests.faults.faulty_sweep import FaultySweep, finish, is_alive, wait_for
from tests.faults.slurm import Slurm
from tests.sweep_entries import claims

INTERRUPTED = 130
TERMINATED = 143
IN_PROCESS: list[str] = []
JOBLIB = ["hydra/launcher=joblib", "sweep.workers=2"]
RAY = ["hydra/launcher=ray", "sweep.workers=2"]
SLURM = ["hydra/launcher=slurm", "sweep.workers=2"]
ONCE = [
    pytest.param(JOBLIB, signal.SIGINT, id="joblib-ctrl-c"),
    pytest.param(RAY, signal.SIGINT, id="ray-local-ctrl-c"),
    pytest.param(
        SLURM, signal.SIGTERM, id="slurm-sigterm", marks=pytest.mark.xdist_group("on_server")
    ),
]
TEN_TIMES = [
    pytest.param(launcher, number, id=f"{name}-{number.name}-{count}", marks=pytest.mark.long)
    for name, launcher in {
        "in-process": IN_PROCESS,
        "joblib": JOBLIB,
        "ray-local": RAY,
        "slurm": SLURM,
    }.items()
    for number in (signal.SIGINT, signal.SIGTERM)
    for count in range(10)
]


@pytest.mark.parametrize(("launcher", "number"), [*ONCE, *TEN_TIMES])
def test_a_signal_leaves_checkpoints_that_the_same_command_goes_on_from(
    launcher: list[str],
    number: signal.Signals,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    store: Path,
    mnist: Path,
    client: MlflowClient,
    commands: Commands,
) -> None:
    environment = {}
    if launcher == RAY:
        pytest.importorskip("ray")
    elsewhere = []
    if launcher == SLURM:
        slurm: Slurm = request.getfixturevalue("slurm")
        environment = slurm.environment
        elsewhere = request.getfixturevalue("on_server")
    name = f"signal-{request.node.callspec.id}"
    axes = ["dropout=0.0,0.02,0.04", f"output_dir={store}"]
    at_once = 2 if launcher else 1
    sweep = FaultySweep(tmp_path, mnist, name, axes, together=at_once)
    command = [*launcher, *elsewhere]
    is_measured = "-SIG" in name

    slow_s = "0.3" if is_measured else "1"
    slow = sweep.start(*command, environment={**environment, "FAULTS_SLOW": slow_s})
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == at_once, slow, 180)
    sent = time.time()
    if number == signal.SIGINT:
        os.killpg(slow.pid, number)
    else:
        slow.send_signal(number)
    code, said = finish(slow, 180)
    assert code == (INTERRUPTED if number == signal.SIGINT else TERMINATED), said
    assert "Traceback" not in said
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    begun = [run for run in client.search_runs([experiment.experiment_id]) if claims(client, run)]
    assert {run.data.tags["state"] for run in begun} == {"interrupted"}, said
    took = max(run.info.end_time / 1000 - sent for run in begun)
    assert took < (2 if is_measured else 60), "how long the checkpoints took, in seconds"

    code, said = sweep.again(commands, *command, environment=environment)
    assert code == 0, said
    trials = sweep.trials(client)
    assert len(trials) == 3
    resumed = [claims(client, run)[1] for run in trials if len(claims(client, run)) == 2]
    assert len(resumed) == at_once
    assert all(claim["from_step"] > -1 for claim in resumed)


def test_ctrl_c_twice_leaves_at_once_and_takes_all_workers_of_this_machine_along(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient, commands: Commands
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "ctrl-c-twice", ["seed=1,2", f"output_dir={store}"])
    command = ["hydra/launcher=joblib", "sweep.workers=2"]
    slow = sweep.start(*command, environment={"FAULTS_SLOW": "600"})
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, slow, 180)
    workers = [int(path.name.removeprefix("slow-")) for path in sweep.faults.glob("slow-*")]
    os.killpg(slow.pid, signal.SIGINT)
    said = read_until("once more to leave at once", slow.stdout)
    os.killpg(slow.pid, signal.SIGINT)
    code, said_then = finish(slow, 120)
    assert code == INTERRUPTED, said + said_then
    assert "Traceback" not in said + said_then
    until = time.monotonic() + 120  # to be taken apart, a process with torch needs a moment
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, "a worker goes on"
        time.sleep(0.1)
    code, said = sweep.again(commands, *command)
    assert code == 0, said
    assert len(sweep.trials(client)) == 2
