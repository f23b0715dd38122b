"""A command that trains one small run, and what must be true of its record in the end."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

EPOCHS = 6
OUTPUTS = Path("outputs")
SMALL = ("model=model1", "data.limit=2048", "batch_size=64", "threads=1", f"epochs={EPOCHS}")

WAITS = """
import itertools, os, time
numbers, fsync = itertools.count(1), os.fsync
def wait(descriptor):
    is_checkpoint = ".state.pt." in os.readlink(f"/proc/self/fd/{descriptor}")
    while is_checkpoint and next(numbers) > 2 and not os.path.exists("goes-on"):
        time.sleep(0.01)
    fsync(descriptor)
os.fsync = wait
"""
"""A run waits as it writes its third checkpoint, until `Command.go_on`."""


@dataclass
class Command:
    """A running command, and what it has said."""

    folder: Path
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_for(self, what: Callable[[], object]) -> None:
        until = time.monotonic() + 600  # beside 31 others it takes minutes
        while not what():
            assert self.process.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.001)

    def wait_for_line(self, pattern: str) -> None:
        self.wait_for(lambda: re.search(pattern, self.said))

    def go_on(self) -> None:
        """Where it waits, as `WAITS` has it."""
        (self.folder / "goes-on").touch()

    def finish(self, within_s: float = 600.0) -> int:
        code = self.process.wait(within_s)
        self._reading.join()
        return code


def start(
    folder: Path, *words: str, module: str = "mnist_hydra.train", first: str = ""
) -> Command:
    """Start a command.

    Args:
        first: what its process does before all else, in Python.
    """
    folder.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if first:
        (folder / "first").mkdir()
        (folder / "first" / "sitecustomize.py").write_text(first)
        environment["PYTHONPATH"] = str(folder / "first")
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Command(folder, process)


def printed(command: Command) -> list[str]:
    """The words of the last command that was printed for going on."""
    found = re.findall(r"^  \S*python\S* -m mnist_hydra\.train (.*)$", command.said, re.MULTILINE)
    return shlex.split(found[-1])


def assert_finished(code: int, said: str) -> None:
    """A command that went on with a run has ended it."""
    # 2: all was written down before, and to deliver that finished the run
    assert code == 0 or (code == 2 and "that run has finished" in said), said


def the_runs(folder: Path, output_dir: Path) -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{folder / output_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist_hydra")
    return client, client.search_runs([experiment.experiment_id]) if experiment else []


def assert_all_recorded(
    folder: Path,
    runs: int,
    epochs: int,
    output_dir: Path = OUTPUTS,
    client: MlflowClient | None = None,
) -> list[str]:
    """So many finished runs, all of each recorded, and once; returns their ids.

    Args:
        client: of the store, where that is not below `output_dir`.
    """
    assert not (folder / output_dir / "spool").exists()
    client = client or MlflowClient(f"sqlite:///{folder / output_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist_hydra")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert [run.info.status for run in found] == ["FINISHED"] * runs
    for run in found:
        for name in ("train/loss", "test/acc", "epoch_s"):
            rows = client.get_metric_history(run.info.run_id, name)
            assert [row.step for row in rows] == list(range(1, epochs + 1)), name
        assert len(client.get_metric_history(run.info.run_id, "test/acc_last")) == 1
        assert run.data.params["epochs"] == str(epochs)
        names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "provenance.json", "checkpoints", "pictures"} <= names
        assert len(client.list_artifacts(run.info.run_id, "pictures")) == 4
    ids = sorted(run.info.run_id for run in found)
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.status for model in models} == {LoggedModelStatus.READY}
    assert sorted(str(model.source_run_id) for model in models) == ids
    return ids


def weights(folder: Path, output_dir: Path = OUTPUTS) -> dict[str, torch.Tensor]:
    """The weights of the one run below a folder, of which all is recorded, and once."""
    (run_id,) = assert_all_recorded(folder, 1, EPOCHS, output_dir)
    client = MlflowClient(f"sqlite:///{folder / output_dir / 'mlflow.db'}")
    last = client.download_artifacts(run_id, "checkpoints/last.pt")
    state: dict[str, torch.Tensor] = torch.load(last, weights_only=True)
    state.pop("format")
    return state


def assert_equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(got[name], weight), name


def kill(command: Command) -> None:
    with suppress(ProcessLookupError):
        command.process.kill()
    command.finish()


def typed_again(command: Command, words: list[str]) -> list[str]:
    """What a person types after a crash: go on with the run if there is one, else begin it."""
    store = command.folder / "outputs" / "mlflow.db"
    runs = the_runs(command.folder, OUTPUTS)[1] if store.exists() else []
    names = [run.info.run_id for run in runs] or [
        folder.name for folder in (command.folder / OUTPUTS / "spool").glob("*/")
    ]
    return [f"resume={names[0]}"] if names else words
