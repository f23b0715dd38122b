"""A run of its own that is killed or stopped: its next command makes of it what a run that was left
alone makes.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.commands import Commands
from tests.faults.single_run import (
    OUTPUTS,
    WAITS,
    Command,
    assert_equal,
    assert_finished,
    kill,
    printed,
    start,
    the_runs,
    typed_again,
    weights,
)

pytestmark = pytest.mark.usefixtures("alone_folder")


def _is_writing_a_checkpoint(command: Command) -> bool:
    with suppress(FileNotFoundError):  # a record's folder goes away once it is delivered
        return any((command.folder / "outputs" / "spool").glob("*/*/.state.pt.*"))
    return False


def test_a_run_killed_as_it_writes_a_checkpoint_ends_with_the_same_weights(
    commands: Commands, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words, first=WAITS)
    command.wait_for_line(r"epoch +2/")
    command.wait_for(lambda: _is_writing_a_checkpoint(command))
    kill(command)
    again = commands.run(tmp_path, *typed_again(command, words))
    assert again.code == 0, again.said
    assert_equal(weights(tmp_path), alone)


def test_a_run_killed_as_it_exports_its_model_has_one_model_in_the_end(
    commands: Commands, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words)
    command.wait_for_line("drawing the pictures")
    command.wait_for(lambda: any((tmp_path / "outputs" / "artifacts" / "models").glob("*/*")))
    kill(command)
    again = commands.run(tmp_path, *typed_again(command, words))
    assert_finished(again.code, again.said)
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
        command = start(tmp_path, *typed_again(command, words))
        assert command.finish() == 0, command.said
    assert "Traceback" not in command.said
    assert_equal(weights(tmp_path), alone)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_how_to_go_on_and_goes_on_to_the_same_weights(
    which: signal.Signals,
    commands: Commands,
    tmp_path: Path,
    words: list[str],
    alone: dict[str, torch.Tensor],
) -> None:
    command = start(tmp_path, *words, first=WAITS)
    command.wait_for_line(r"epoch +2/")
    command.process.send_signal(which)
    command.go_on()
    assert command.finish() == 128 + which, command.said
    assert "Traceback" not in command.said
    _, (run,) = the_runs(tmp_path, OUTPUTS)
    assert run.info.status == "KILLED"
    again = commands.run(tmp_path, *printed(command))
    assert again.code == 0, again.said
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
    commands: Commands, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words, first=WAITS)
    command.wait_for_line(r"epoch +2/")
    database = tmp_path / OUTPUTS / "mlflow.db"
    with sqlite3.connect(database, timeout=120, isolation_level=None) as store:
        store.execute("BEGIN EXCLUSIVE")  # so that it waits for the store before it leaves
        command.process.send_signal(signal.SIGTERM)
        command.go_on()
        command.wait_for_line("once more to leave at once")
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(20) == 143, command.said
        store.execute("ROLLBACK")
    store.close()
    command.finish()
    again = commands.run(tmp_path, *printed(command))
    assert again.code == 0, again.said
    assert_equal(weights(tmp_path), alone)
