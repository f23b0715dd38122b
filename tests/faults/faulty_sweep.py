"""Sweeps of tiny trials that fail as a test wants it, and what must be true of their ledger.

Each fault happens once, however often and wherever its trial is tried.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run

from tests.commands import Commands

STEPS = 8  # an epoch
MODEL = '''
import os
import time
from pathlib import Path

import torch


class Fragile(torch.nn.Module):
    """A linear classifier that raises, waits to be killed, or waits for others, once."""

    def __init__(
        self, dropout: float = 0.0, faults: str = "", raises_at: float = -1.0, together: int = 0
    ) -> None:
        super().__init__()
        self.rate, self.faults, self.steps = dropout, Path(faults), 0
        self.raises_at, self.together = raises_at, together
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.LogSoftmax(1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            if self.rate == self.raises_at and is_first(self.faults / "raised"):
                raise RuntimeError("this dropout is refused once")
            if self.steps == 1 and self.together:
                (self.faults / f"here-{os.getpid()}").touch()
                while len(list(self.faults.glob("here-*"))) < self.together:
                    time.sleep(0.05)
            if "FAULTS_SLOW" in os.environ:
                (self.faults / f"slow-{os.getpid()}").touch()
                until = time.monotonic() + float(os.environ["FAULTS_SLOW"])
                while time.monotonic() < until and not (self.faults / "quick").exists():
                    time.sleep(0.05)
            if self.steps == 12:
                victims = range(int(os.environ.get("FAULTS_VICTIMS", 0)))
                if any(is_first(self.faults / f"victim-{number}") for number in victims):
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


class FaultySweep:
    """One sweep, its configuration in a folder of its own.

    Args:
        folder: an empty one.
        mnist: the real data.
        name: of its MLflow experiment.
        axes: what is swept, as overrides.
        model: settings of the model `Fragile`.
    """

    def __init__(
        self,
        folder: Path,
        mnist: Path,
        name: str,
        axes: Sequence[str],
        epochs: int = 3,
        **model: float,
    ) -> None:
        self.mnist, self.name, self.folder, self.axes = mnist, name, folder, axes
        self.epochs = epochs
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.config = folder / "config"
        (self.config / "model").mkdir(parents=True)
        (self.config / "fragile.py").write_text(MODEL)
        settings = {"name": "fragile", "dropout": 0.0, "faults": str(self.faults), **model}
        lines = [f"{key}: {value}" for key, value in settings.items()]
        entry = "\n".join(["_target_: fragile.Fragile", *lines])
        (self.config / "model" / "fragile.yaml").write_text(entry)

    def command(self, *overrides: str) -> list[str]:
        """The command line, the same each time."""
        return [
            *(sys.executable, "-m", "mnist_hydra.train", "--multirun"),
            *("--config-dir", str(self.config), "model=fragile", *self.axes),
            *(f"epochs={self.epochs}", "batch_size=128", f"data.limit={128 * STEPS}"),
            *(f"data.root={self.mnist}", "data.offline=true", "device=cpu", "compile=false"),
            *("sweep.retries=0", "sweep.keep=0", "sweep.report=false"),
            f"tracking.experiment_name={self.name}",
            *overrides,
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
            start_new_session=True,
        )

    def again(
        self, commands: Commands, *overrides: str, environment: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """The command once more, to its end: its exit code and what it wrote.

        What is done to a sweep is done to processes of their own; of this one only what it makes
        of the sweep is looked at. So it is forked from one that has imported everything.
        """
        words = self.command(*overrides)[3:]
        done = commands.run_module("train", *words, cwd=self.folder, env=environment)
        return done.code, done.said

    def victim(self, sweep: subprocess.Popen[str], number: int = 0, seconds: float = 180.0) -> int:
        """Wait for a process that is to be killed, in the second epoch that it trains; its pid."""
        found = self.faults / f"victim-{number}"
        wait_for(lambda: found.exists() and found.read_text().endswith("\n"), sweep, seconds)
        return int(found.read_text())

    def hurry(self) -> None:
        """Let no step be slow any more."""
        (self.faults / "quick").touch()

    def trials(self, client: MlflowClient) -> list[Run]:
        """All of its trials, after insisting that they finished and have each epoch once."""
        experiment = client.get_experiment_by_name(self.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        trials = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
        assert len(runs) - len(trials) == 1, "one parent"
        assert {run.info.status for run in trials} == {"FINISHED"}
        for run in trials:
            history = client.get_metric_history(run.info.run_id, "train/loss")
            assert len({metric.step for metric in history}) == len(history) == self.epochs
        return trials


def finish(sweep: subprocess.Popen[str], seconds: float = 240.0) -> tuple[int, str]:
    """Wait for a sweep's own end: its exit code and what it wrote."""
    try:
        said, _ = sweep.communicate(timeout=seconds)
    finally:
        sweep.kill()
    return sweep.returncode, said


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(what: Callable[[], bool], sweep: subprocess.Popen[str], seconds: float) -> None:
    """Wait until something is true, but not longer than the sweep runs."""
    until = time.monotonic() + seconds
    while not what():
        if sweep.poll() is not None or time.monotonic() > until:
            sweep.send_signal(signal.SIGKILL)
            raise AssertionError(f"it did not happen; the sweep said:\n{sweep.communicate()[0]}")
        time.sleep(0.1)
