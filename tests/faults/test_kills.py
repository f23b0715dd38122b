"""`kill -9` at a random moment: of a sweep's own process, of a worker, of both."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mnist_hydra.tracking import tag
from tests.commands import Commands, read_until
from tests.faults.faulty_sweep import FaultySweep, finish, is_alive, wait_for
from tests.faults.slurm import Slurm
from tests.sweep_entries import ends

LAUNCHERS = {
    "in-process": [],
    "joblib": ["hydra/launcher=joblib", "sweep.workers=2"],
    "ray": ["hydra/launcher=ray", "sweep.workers=2"],
    "slurm": ["hydra/launcher=slurm", "sweep.workers=2"],
}
SEEDS = "seed=1,2,3,4,5,6"
WITHIN_S = 6.0
"""After the first step, while trials are under way."""
TEN_TIMES = [
    pytest.param(name, victims, seed, id=f"{name}-{victims}-{seed}", marks=pytest.mark.long)
    for name in LAUNCHERS
    for victims in (("sweeper",) if name == "in-process" else ("sweeper", "worker", "both"))
    for seed in range(10)
]


@pytest.mark.parametrize(
    ("name", "victims", "seed"),
    [pytest.param("joblib", "both", 10, id="joblib-both"), *TEN_TIMES],
)
def test_the_same_command_finishes_what_was_killed_and_trains_no_trial_twice(
    name: str,
    victims: str,
    seed: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    store: Path,
    mnist: Path,
    client: MlflowClient,
    commands: Commands,
) -> None:
    launcher, environment = list(LAUNCHERS[name]), {}
    if name == "ray":
        pytest.importorskip("ray")
    if name == "slurm":
        slurm: Slurm = request.getfixturevalue("slurm")
        environment = slurm.environment
        launcher += request.getfixturevalue("on_server")
    experiment = f"kill-{name}-{victims}-{seed}"
    sweep = FaultySweep(tmp_path, mnist, experiment, [SEEDS, f"output_dir={store}"])
    going = sweep.start(*launcher, environment={**environment, "FAULTS_SLOW": "0.2"})
    wait_for(lambda: any(sweep.faults.glob("slow-*")), going, 180)
    time.sleep(random.Random(seed).uniform(0, WITHIN_S))
    found = [int(path.name.removeprefix("slow-")) for path in sweep.faults.glob("slow-*")]
    worker = next(pid for pid in found if is_alive(pid))
    if victims in ("sweeper", "both"):
        going.kill()
    if victims in ("worker", "both"):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    code, said = finish(going)
    assert code == (0 if victims == "worker" else -signal.SIGKILL), said
    code, said = sweep.again(commands, *launcher, environment=environment)
    assert code == 0, said
    assert "Traceback" not in said
    trials = sweep.trials(client)
    assert len({run.data.tags[tag.FINGERPRINT] for run in trials}) == len(trials) == 6
    assert all(ends(client, run).count("finished") == 1 for run in trials)


def test_a_report_that_a_killed_process_owes_is_made_by_the_same_command(
    tmp_path: Path, store: Path, mnist: Path, client: MlflowClient, commands: Commands
) -> None:
    sweep = FaultySweep(tmp_path, mnist, "owes", [f"output_dir={store}"], epochs=1)
    named = ["sweep.name=grows", "sweep.report=true"]

    def reported() -> int:
        [table] = (store / "reports").glob("grows-*/report.csv")
        return len(table.read_text().splitlines()) - 1

    code, said = sweep.again(commands, *named, "seed=1,2")
    assert (code, reported()) == (0, 2), said
    going = sweep.start(*named, "seed=1,2,3")
    read_until("first in the table", going.stdout)
    going.kill()
    finish(going)
    assert reported() == 2, "it was killed before"
    code, said = sweep.again(commands, *named, "seed=1,2,3")
    assert (code, reported()) == (0, 3), said
    assert "3 done and skipped" in said and "of the whole sweep:" not in said
    code, said = sweep.again(commands, *named, "seed=1,2,3")
    assert code == 0 and "report: " not in said, "it is there"
    code, said = sweep.again(commands, *named, "seed=4")
    assert (code, reported()) == (0, 4) and "of the whole sweep:\n" in said
    assert sweep.again(commands, *named, "seed=5", "sweep.report=false")[0] == 0
    assert reported() == 4
    code, said = sweep.again(commands, *named, "seed=5")
    assert (code, reported()) == (0, 5), "also where a command before was to make none"
