"""The sweep that every launcher has to bring to its end, and what its ledger must say then.

Nine tiny trials on real images. One raises the first time, and one waits to be killed in its second
epoch; each does so once, however often and wherever it is tried.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

EPOCHS = 3
STEPS = 8  # an epoch
AXES = ("dropout=0.0,0.02,0.04", "lr=0.05,0.1,0.15")
MODEL = '''
import os
import time
from pathlib import Path

import torch


class Fragile(torch.nn.Module):
    """A linear classifier that fails as the test of the launchers wants it to."""

    def __init__(self, dropout: float = 0.0, faults: str = "") -> None:
        super().__init__()
        self.rate, self.faults, self.steps = dropout, Path(faults), 0
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.LogSoftmax(1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            if self.rate == 0.04 and is_first(self.faults / "raised"):
                raise RuntimeError("this dropout is refused once")
            if self.steps == 12 and "FAULTS_VICTIM" in os.environ:
                if is_first(self.faults / "victim"):
                    time.sleep(600)
        return self.layers(images)


def is_first(path: Path) -> bool:
    """Whether no process was here before this one, whose pid it leaves."""
    try:
        with path.open("x") as file:
            file.write(f"{os.getpid()}\\n")
    except FileExistsError:
        return False
    return True
'''


class NineTrials:
    """One sweep in a folder of its own.

    Args:
        folder: an empty one.
        store: what several sweeps share, as `output_dir`.
        mnist: the real data.
        name: of its MLflow experiment.
    """

    def __init__(self, folder: Path, store: Path, mnist: Path, name: str) -> None:
        self.faults = folder / "faults"
        self.config = folder / "config"
        self.store, self.mnist, self.name, self.folder = store, mnist, name, folder
        (self.config / "model").mkdir(parents=True)
        self.faults.mkdir()
        (self.config / "fragile.py").write_text(MODEL)
        (self.config / "model" / "fragile.yaml").write_text(
            f"_target_: fragile.Fragile\nname: fragile\ndropout: 0.0\nfaults: {self.faults}\n"
        )

    def command(self, *overrides: str) -> list[str]:
        """The command line, the same each time."""
        return [
            *(sys.executable, "-m", "mnist_hydra.train", "--multirun"),
            *("--config-dir", str(self.config), "model=fragile", *AXES),
            *(f"epochs={EPOCHS}", "batch_size=128", f"data.limit={128 * STEPS}"),
            *("data.val_size=0", f"data.root={self.mnist}", "data.offline=true", "device=cpu"),
            *("compile=false", "sweep.retries=0", f"output_dir={self.store}"),
            *(f"tracking.experiment_name={self.name}", *overrides),
        ]

    def start(
        self,
        *overrides: str,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start the command, in a network or another namespace where `inside` leads there."""
        return subprocess.Popen(
            [*inside, *self.command(*overrides)],
            cwd=self.folder,
            env={**os.environ, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def victim(self, sweep: subprocess.Popen[str], seconds: float = 180.0) -> int:
        """Wait for the process that is to be killed; its pid."""
        found = self.faults / "victim"
        wait_for(lambda: found.exists() and found.read_text().endswith("\n"), sweep, seconds)
        return int(found.read_text())

    def check(self, client: MlflowClient) -> None:
        """Insist that the ledger is complete and that no trial was trained twice."""
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert len(runs) - len(trials) == 1, "one parent"
        assert len(trials) == 9
        assert {run.info.status for run in trials} == {"FINISHED"}
        for run in trials:
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert len({metric.step for metric in history}) == len(history) == EPOCHS
        again = {run.info.run_name: claims(run) for run in trials if len(claims(run)) > 1}
        assert sorted(len(attempts) for attempts in again.values()) == [2, 2], again
        from_steps = sorted(attempts[1]["from_step"] for attempts in again.values())
        assert from_steps[0] == -1 < from_steps[1], "one anew, one from where it was killed"


def claims(run: Run) -> list[dict[str, Any]]:
    """A trial's attempts, the first one first."""
    found = {k: v for k, v in run.data.params.items() if k.startswith("claim/")}
    return [json.loads(found[key]) for key in sorted(found)]


def finish(sweep: subprocess.Popen[str], seconds: float = 240.0) -> tuple[int, str]:
    """Wait for a sweep's own end: its exit code and what it wrote."""
    try:
        said, _ = sweep.communicate(timeout=seconds)
    finally:
        sweep.kill()
    return sweep.returncode, said


def wait_for(what: Callable[[], bool], sweep: subprocess.Popen[str], seconds: float) -> None:
    """Wait until something is true, but not longer than the sweep runs."""
    until = time.monotonic() + seconds
    while not what():
        if sweep.poll() is not None or time.monotonic() > until:
            sweep.send_signal(signal.SIGKILL)
            raise AssertionError(f"it did not happen; the sweep said:\n{sweep.communicate()[0]}")
        time.sleep(0.1)
