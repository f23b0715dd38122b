"""A run of its own that is killed, stopped or finds no room on the disk: its next command makes of
it what a run that was left alone makes.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus

EPOCHS = 6
OUTPUTS = Path("outputs")
SMALL = ("model=model1", "data.limit=2048", "batch_size=64", "threads=1", f"epochs={EPOCHS}")


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
        until = time.monotonic() + 120
        while not what():
            assert self.process.poll() is None and time.monotonic() < until, self.said
            time.sleep(0.001)

    def wait_for_line(self, pattern: str) -> None:
        self.wait_for(lambda: re.search(pattern, self.said))

    def finish(self) -> int:
        code = self.process.wait(180)
        self._reading.join()
        return code


def start(folder: Path, *words: str) -> Command:
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_hydra.train", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return Command(folder, process)


def go_on(command: Command) -> Command:
    """Paste the last command that was printed for going on."""
    found = re.findall(r"^  \S*python\S* -m mnist_hydra\.train (.*)$", command.said, re.MULTILINE)
    return start(command.folder, *shlex.split(found[-1]))


def the_runs(folder: Path, output_dir: Path) -> tuple[MlflowClient, list[Any]]:
    client = MlflowClient(f"sqlite:///{folder / output_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("mnist_hydra")
    return client, client.search_runs([experiment.experiment_id]) if experiment else []


def weights(folder: Path, output_dir: Path = OUTPUTS) -> dict[str, torch.Tensor]:
    """The weights of the one run below a folder, of which all is recorded, and once."""
    client, (run,) = the_runs(folder, output_dir)
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "test/acc", "epoch_s"):
        rows = client.get_metric_history(run.info.run_id, name)
        assert [row.step for row in rows] == list(range(1, EPOCHS + 1)), name
    assert len(client.get_metric_history(run.info.run_id, "test/acc_last")) == 1
    assert len(client.list_artifacts(run.info.run_id, "pictures")) == 4
    (model,) = client.search_logged_models([run.info.experiment_id])
    assert model.status == LoggedModelStatus.READY
    assert not (folder / output_dir / "spool").exists()
    last = client.download_artifacts(run.info.run_id, "checkpoints/last.pt")
    state: dict[str, torch.Tensor] = torch.load(last, weights_only=True)
    state.pop("format")
    return state


def assert_equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(got[name], weight), name


@pytest.fixture(scope="module")
def words(mnist: Path) -> list[str]:
    return [f"data.root={mnist}", *SMALL]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> dict[str, torch.Tensor]:
    """The weights of a run that nothing was done to."""
    folder = tmp_path_factory.mktemp("alone")
    command = start(folder, *words)
    assert command.finish() == 0, command.said
    return weights(folder)


def kill(command: Command) -> None:
    with suppress(ProcessLookupError):
        command.process.kill()
    command.finish()


def begin_again(command: Command, words: list[str]) -> Command:
    """What a person does after a crash: go on with the run if there is one, else begin it."""
    store = command.folder / "outputs" / "mlflow.db"
    runs = the_runs(command.folder, OUTPUTS)[1] if store.exists() else []
    names = [run.info.run_id for run in runs] or [
        folder.name for folder in (command.folder / OUTPUTS / "spool").glob("*/")
    ]
    return start(command.folder, f"resume={names[0]}") if names else start(command.folder, *words)


def _is_writing_a_checkpoint(command: Command) -> bool:
    return any((command.folder / "outputs" / "spool").glob("*/*/.state.pt.*"))


def test_a_run_killed_as_it_writes_a_checkpoint_ends_with_the_same_weights(
    tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words)
    command.wait_for_line(r"epoch +2/")
    command.wait_for(lambda: _is_writing_a_checkpoint(command))
    kill(command)
    again = begin_again(command, words)
    assert again.finish() == 0, again.said
    assert_equal(weights(tmp_path), alone)


def test_a_run_killed_as_it_exports_its_model_has_one_model_in_the_end(
    tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words)
    command.wait_for_line("drawing the pictures")
    command.wait_for(lambda: any((tmp_path / "outputs" / "artifacts" / "models").glob("*/*")))
    kill(command)
    again = begin_again(command, words)
    # 2: all was written down before, and to deliver that finished the run
    code = again.finish()
    assert code == 0 or (code == 2 and "that run has finished" in again.said), again.said
    assert "damaged" not in again.said
    assert_equal(weights(tmp_path), alone)


@pytest.mark.long
@pytest.mark.parametrize("number", range(50))
def test_a_run_killed_at_a_random_moment_ends_with_the_same_weights(
    number: int, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    chance = random.Random(number)
    command = start(tmp_path, *words)
    if number % 5 == 0:
        command.wait_for(lambda: _is_writing_a_checkpoint(command))
    else:
        command.wait_for_line("data: |epoch")
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(chance.uniform(0, 8))
    if command.process.poll() is None:
        kill(command)
        command = begin_again(command, words)
        assert command.finish() == 0, command.said
    assert "Traceback" not in command.said
    assert_equal(weights(tmp_path), alone)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_go_on_and_goes_on_to_the_same_weights(
    which: signal.Signals, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words)
    command.wait_for_line(r"epoch +2/")
    command.process.send_signal(which)
    assert command.finish() == 128 + which, command.said
    assert "Traceback" not in command.said
    _, (run,) = the_runs(tmp_path, OUTPUTS)
    assert run.info.status == "KILLED"
    again = go_on(command)
    assert again.finish() == 0, again.said
    assert_equal(weights(tmp_path), alone)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("number", [pytest.param(n, marks=pytest.mark.long) for n in range(10)])
def test_the_checkpoint_of_a_stopped_run_is_there_within_two_seconds(
    number: int, which: signal.Signals, tmp_path: Path, words: list[str]
) -> None:
    command = start(tmp_path, *words, "epochs=500")
    command.wait_for_line(r"epoch +2/")
    time.sleep(random.Random(number).random())
    command.process.send_signal(which)
    began = time.monotonic()
    code = command.finish()
    assert code == 128 + which, command.said
    assert "go on with" in command.said
    print(f"stopped after {time.monotonic() - began:.2f} s")
    client, (run,) = the_runs(tmp_path, OUTPUTS)
    (root,) = (tmp_path / "outputs" / "artifacts").glob("*/artifacts/checkpoints")
    newest = max(path.stat().st_mtime for path in root.iterdir())
    assert newest - run.info.end_time / 1000 < 2


def test_a_second_signal_leaves_at_once_and_says_how_to_go_on(
    tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words)
    command.wait_for_line(r"epoch +2/")
    with sqlite3.connect(tmp_path / OUTPUTS / "mlflow.db", isolation_level=None) as store:
        store.execute("BEGIN EXCLUSIVE")  # so that it waits for the store before it leaves
        command.process.send_signal(signal.SIGTERM)
        command.wait_for_line("once more to leave at once")
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(3) == 143, command.said
        store.execute("ROLLBACK")
    store.close()
    command.finish()
    again = go_on(command)
    assert again.finish() == 0, again.said
    assert_equal(weights(tmp_path), alone)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Leave not a byte of a file system."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return filler


@pytest.mark.parametrize(
    "moment",
    [
        r"epoch +2/",
        pytest.param("drawing the pictures", marks=pytest.mark.long),
        pytest.param("stopping after", marks=pytest.mark.long),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    moment: str,
    tmp_path: Path,
    small_disk: Path,
    words: list[str],
    alone: dict[str, torch.Tensor],
) -> None:
    output_dir = small_disk / "outputs"
    command = start(tmp_path, *words, f"output_dir={output_dir}")
    if moment == "stopping after":
        command.wait_for_line(r"epoch +2/")
        command.process.send_signal(signal.SIGTERM)
    command.wait_for_line(moment)
    filler = fill(small_disk)
    assert command.finish() != 0, command.said
    assert "Traceback" not in command.said
    if moment != "stopping after":
        assert "No space left on device" in command.said
    filler.unlink()
    again = go_on(command)
    assert again.finish() == 0, again.said
    assert_equal(weights(tmp_path, output_dir), alone)
