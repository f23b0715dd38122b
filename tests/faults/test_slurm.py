"""What is Slurm's own: jobs that go back to the queue, and a cluster that refuses a job."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from hydra_plugins.mnist_hydra.slurm_launcher import ASK_EVERY_S
from tests.commands import read_until
from tests.faults.faulty_sweep import FaultySweep, finish, wait_for
from tests.faults.slurm import Slurm
from tests.sweep_entries import claims, ends

pytestmark = pytest.mark.xdist_group("on_server")
LAUNCHER = ["hydra/launcher=slurm", "sweep.workers=1"]


def test_a_preempted_job_goes_back_to_the_queue_and_its_trial_goes_on(
    tmp_path: Path, mnist: Path, client: MlflowClient, slurm: Slurm, on_server: list[str]
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "preempted", ["seed=1,2", *on_server])
    going = sweep.start(*LAUNCHER, environment={**slurm.environment, "FAULTS_SLOW": "2"})
    wait_for(lambda: any(sweep.faults.glob("slow-*")), going, 180)
    [job] = slurm.queue()
    slurm.preempt(job)
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, going, 180)
    assert slurm.queue() == [job], "the very same one"
    sweep.hurry()
    code, said = finish(going)
    assert code == 0, said
    [preempted] = [run for run in sweep.trials(client) if len(claims(client, run)) == 2]
    assert ends(client, preempted) == ["interrupted", "finished"]
    assert claims(client, preempted)[1]["from_step"] > -1


def test_a_job_that_slurm_refuses_is_bad_input(
    tmp_path: Path, mnist: Path, client: MlflowClient, slurm: Slurm, on_server: list[str]
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "refused-by-slurm", ["seed=1,2", *on_server])
    partition = "hydra.launcher.slurm_partition=nowhere"
    code, said = finish(sweep.start(*LAUNCHER, partition, environment=slurm.environment))
    assert code == 2, said
    assert "error: Slurm refuses the workers' jobs: sbatch: error: invalid partition" in said
    assert "Traceback" not in said
    experiment = client.get_experiment_by_name("refused-by-slurm")
    [parent] = client.search_runs([experiment.experiment_id])
    assert parent.info.status == "FAILED", "and not as if it still ran"


@pytest.mark.long
@pytest.mark.parametrize("taken", ["job", "array", "requeued", "held", "node"])
def test_a_job_that_is_taken_away_costs_no_trial(
    taken: str,
    tmp_path: Path,
    mnist: Path,
    client: MlflowClient,
    slurm: Slurm,
    on_server: list[str],
) -> None:
    sweep = FaultySweep(tmp_path, mnist, f"taken-{taken}", ["seed=1,2,3", *on_server])
    environment = {**slurm.environment, "FAULTS_SLOW": "0.3"}
    going = sweep.start("hydra/launcher=slurm", environment=environment)
    wait_for(lambda: len(list(sweep.faults.glob("slow-*"))) == 2, going, 180)
    job = slurm.queue("RUNNING")[0]
    node = slurm.ask("sinfo", "--noheader", "--format=%n").strip()
    command = {
        "job": ["scancel", job],
        "array": ["scancel", job.partition("_")[0]],
        "requeued": ["scontrol", "requeue", job],
        "held": ["scontrol", "requeuehold", job],
        "node": ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"],
    }[taken]
    slurm.ask(*command)
    code, said = finish(going)
    assert code == 0 and "3 of 3 trials done" in said, said
    assert slurm.queue() == []
    attempts = sorted(len(claims(client, run)) for run in sweep.trials(client))
    assert attempts == ([1, 2, 2] if taken in ("array", "node") else [1, 1, 2])


def test_what_slurm_keeps_a_job_waiting_for_is_said(
    tmp_path: Path, mnist: Path, slurm: Slurm, on_server: list[str]
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "too-large", ["seed=1,2", *on_server])
    too_many = "hydra.launcher.cpus_per_task=64"
    going = sweep.start(*LAUNCHER, too_many, environment=slurm.environment)
    said = read_until("workers wait in Slurm's queue: ", going.stdout)
    time.sleep(3 * ASK_EVERY_S)
    going.send_signal(signal.SIGINT)
    code, said_then = finish(going)
    said += said_then
    assert code == 130 and slurm.queue() == [], said
    waits = [line for line in said.splitlines() if "workers wait in Slurm's queue: " in line]
    assert waits and len(set(waits)) == len(waits), said
