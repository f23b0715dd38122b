"""Every launcher brings the same sweep to its end: one trial raises, one worker is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.commands import Commands
from tests.faults.faulty_sweep import FaultySweep, finish, is_alive, wait_for
from tests.faults.postgres import mlflow_server
from tests.faults.ray_cluster import RayCluster
from tests.faults.slurm import Slurm
from tests.sweep_entries import claims

VICTIM = {"FAULTS_VICTIMS": "1"}


def test_in_process_the_same_command_goes_on_after_the_process_was_killed(
    nine_trials: FaultySweep, client: MlflowClient, commands: Commands
) -> None:
    sweep = nine_trials.start(environment=VICTIM)
    os.kill(nine_trials.victim(sweep), signal.SIGKILL)
    assert finish(sweep)[0] == -signal.SIGKILL
    _fails_once(nine_trials.again(commands, environment=VICTIM))
    _then_ends(nine_trials.again(commands, environment=VICTIM))
    _check(nine_trials, client)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(["hydra/launcher=joblib"], id="joblib"),
        pytest.param(["hydra/launcher=slurm", "hydra.launcher.cluster=local"], id="submitit-local"),
    ],
)
def test_on_this_machine_a_killed_worker_costs_no_other_trial(
    nine_trials: FaultySweep, client: MlflowClient, commands: Commands, launcher: list[str]
) -> None:
    launcher = [*launcher, "sweep.workers=2"]
    sweep = nine_trials.start(*launcher, environment=VICTIM)
    os.kill(nine_trials.victim(sweep), signal.SIGKILL)
    _fails_once(finish(sweep))
    _then_ends(nine_trials.again(commands, *launcher, environment=VICTIM))
    _check(nine_trials, client)


@pytest.mark.xdist_group("on_server")
def test_on_slurm_a_killed_job_costs_no_other_trial(
    nine_trials: FaultySweep,
    client: MlflowClient,
    commands: Commands,
    slurm: Slurm,
    on_server: list[str],
) -> None:
    launcher = ["hydra/launcher=slurm", *on_server]
    environment = {**VICTIM, **slurm.environment}
    sweep = nine_trials.start(*launcher, environment=environment)
    os.kill(nine_trials.victim(sweep), signal.SIGKILL)
    ended = finish(sweep)
    assert not slurm.queue(), "nothing is left in Slurm's queue"
    _fails_once(ended)
    _then_ends(nine_trials.again(commands, *launcher, environment=environment))
    _check(nine_trials, client)


def test_on_ray_a_killed_node_costs_no_other_trial(
    nine_trials: FaultySweep, client: MlflowClient, store: Path, ray_folder: Path, tmp_path: Path
) -> None:
    database = f"sqlite:///{store / 'mlflow.db'}"
    with (
        RayCluster(ray_folder, hidden=nine_trials.config, second_node=VICTIM) as cluster,
        mlflow_server(tmp_path, database, inside=cluster.inside) as address,
    ):
        launcher = ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}"]
        launcher += ["tracking=server", f"tracking.uri={address}"]
        launcher.append("+model.together=2")  # the victim's node is not to come too late
        inside, environment = cluster.inside, cluster.environment
        sweep = nine_trials.start(*launcher, inside=inside, environment=environment)
        assert nine_trials.victim(sweep) in cluster.processes_of_second_node()
        cluster.kill_second_node()
        _fails_once(finish(sweep))
        again = nine_trials.start(*launcher, inside=inside, environment=environment)
        _then_ends(finish(again))
        _check(nine_trials, client)


def test_the_workers_of_a_killed_sweeper_write_a_checkpoint_and_end(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient, commands: Commands
) -> None:
    axes = ["seed=1,2,3,4", f"output_dir={store}"]
    sweep = FaultySweep(tmp_path, mnist, "orphans", axes, together=2)
    launcher = ["hydra/launcher=joblib", "sweep.workers=2"]
    going = sweep.start(*launcher, environment={"FAULTS_SLOW": "2"})
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, going, 180)
    workers = [int(path.name.removeprefix("slow-")) for path in sweep.faults.glob("slow-*")]
    going.kill()
    going.wait()
    until = time.monotonic() + 150
    while any(map(is_alive, workers)):
        assert time.monotonic() < until, "a worker goes on without its sweeper"
        time.sleep(0.1)
    code, said = sweep.again(commands, *launcher)
    assert code == 0, said
    assert "2 to run, 2 to be continued" in said
    attempts = [claims(client, run) for run in sweep.trials(client)]
    resumed = [each[1] for each in attempts if len(each) == 2]
    assert len(resumed) == 2
    assert all(claim["from_step"] > -1 for claim in resumed)


def test_a_trial_that_is_killed_in_every_epoch_gets_to_its_end(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "every-epoch", [f"output_dir={store}"], epochs=6)
    launcher = ["hydra/launcher=joblib", "sweep.workers=1"]
    going = sweep.start(*launcher, environment={"FAULTS_VICTIMS": "4"})
    for number in range(4):
        os.kill(sweep.victim(going, number), signal.SIGKILL)
    code, said = finish(going)
    assert code == 0, said
    [trial] = sweep.trials(client)
    assert len(claims(client, trial)) == 5


def _fails_once(ended: tuple[int, str]) -> None:
    code, said = ended
    assert code == 1, said
    assert "this dropout is refused once" in said


def _then_ends(ended: tuple[int, str]) -> None:
    code, said = ended
    assert code == 0, said
    assert "8 done and skipped" in said


def _check(nine_trials: FaultySweep, client: MlflowClient) -> None:
    """The ledger is complete, and no trial was trained twice."""
    trials = nine_trials.trials(client)
    assert len(trials) == 9
    again = [claims(client, run) for run in trials if len(claims(client, run)) > 1]
    assert [len(attempts) for attempts in again] == [2, 2]
    from_steps = sorted(attempts[1]["from_step"] for attempts in again)
    assert from_steps[0] == -1 < from_steps[1], "one anew, one from where it was killed"
