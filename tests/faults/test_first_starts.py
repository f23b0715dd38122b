"""First commands on an empty folder: killed at any moment, or sixteen of them at once."""

from __future__ import annotations

import random
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.faults.single_run import (
    OUTPUTS,
    SMALL,
    Command,
    assert_all_recorded,
    assert_equal,
    assert_finished,
    kill,
    start,
    typed_again,
    weights,
)

KILLS, STARTS = 50, 20
LASTS_S = 25.0
"""A first command, about: a kernel is compiled and a store is made."""


@pytest.fixture(autouse=True)
def nothing_is_compiled(
    tmp_path: Path, alone: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


WAITS = """
import os, time
replace = os.replace
def wait(beside, path):
    if os.path.basename(path) == "mlflow.db":
        time.sleep(600)
    replace(beside, path)
os.replace = wait
"""
"""A command waits before it gives the store that it has made its name."""


def _has_made_the_store(command: Command) -> bool:
    return any((command.folder / OUTPUTS).glob(".mlflow.db.[0-9a-f]*"))


@pytest.mark.parametrize(
    "number", [None, *(pytest.param(n, marks=pytest.mark.long) for n in range(KILLS))]
)
def test_a_first_command_that_is_killed_ends_with_the_same_weights_the_next_time(
    number: int | None, tmp_path: Path, words: list[str], alone: dict[str, torch.Tensor]
) -> None:
    command = start(tmp_path, *words, first=WAITS if number is None else "")
    if number is None:
        command.wait_for(lambda: _has_made_the_store(command))
        assert command.process.poll() is None
    else:
        with suppress(subprocess.TimeoutExpired):  # one moment in each share of the time
            command.process.wait((number + random.Random(number).random()) / KILLS * LASTS_S)
    if command.process.poll() is None:
        kill(command)
        command = start(tmp_path, *typed_again(command, words))
        assert_finished(command.finish(), command.said)
    assert "Traceback" not in command.said
    assert_equal(weights(tmp_path), alone)


@pytest.mark.long
@pytest.mark.parametrize("number", range(STARTS))
def test_sixteen_first_starts_at_once_on_an_empty_folder_all_succeed(
    number: int, tmp_path: Path
) -> None:
    words = [word for word in SMALL if not word.startswith("epochs=")] + ["epochs=1"]
    commands = [start(tmp_path, *words, f"seed={seed}") for seed in range(16)]
    codes = [command.finish(within_s=900) for command in commands]
    assert codes == [0] * 16, "\n".join(command.said for command in commands)
    assert "Traceback" not in "".join(command.said for command in commands)
    if (tmp_path / OUTPUTS / "spool").exists():  # the store was too busy for some of them
        again = start(tmp_path, module="mnist_hydra.sync")
        assert again.finish() == 0, again.said
    assert_all_recorded(tmp_path, runs=16, epochs=1)
