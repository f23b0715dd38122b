"""Work on all cores comes out as on one, whatever becomes of the other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from mnist_hydra import cores
from mnist_hydra.cores import on_all_cores

HERE = os.getpid()


@pytest.fixture(autouse=True)
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)


def where(part: Sequence[int]) -> list[tuple[int, int]]:
    return [(os.getpid(), number) for number in part]


def nothing() -> None:
    """Meanwhile."""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is done in one process")
def test_each_part_is_done_by_a_process_of_its_own_and_answers_are_in_order() -> None:
    here: list[int] = []
    answers = on_all_cores(where, range(10), 2, meanwhile=lambda: here.append(os.getpid()))
    assert [number for answer in answers for _, number in answer] == list(range(10))
    processes = {process for answer in answers for process, _ in answer}
    assert len(processes) == len(answers) == 4
    assert here == [HERE] and HERE not in processes
    assert multiprocessing.active_children() == []


def test_few_items_are_done_here() -> None:
    never = pytest.fail
    assert on_all_cores(where, range(3), 2, never) == [[(HERE, 0), (HERE, 1), (HERE, 2)]]


def test_what_a_killed_process_owes_is_done_here() -> None:
    def work(part: Sequence[int]) -> list[int]:
        if os.getpid() != HERE and 5 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(part)

    assert on_all_cores(work, range(8), 2, nothing) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_a_process_that_was_killed_as_it_answered_owes_is_done_here(tmp_path: Path) -> None:
    def work(part: Sequence[int]) -> bytes:
        if os.getpid() != HERE:
            (tmp_path / str(os.getpid())).touch()
        return bytes([part[0]]) * 10_000_000

    def kill_all() -> None:
        while len(copies := list(tmp_path.iterdir())) < 4:
            time.sleep(0.01)
        time.sleep(0.3)  # by now they wait until somebody reads the rest
        for copy in copies:
            os.kill(int(copy.name), signal.SIGKILL)

    answers = on_all_cores(work, range(4), 1, kill_all)
    assert [answer[0] for answer in answers] == [0, 1, 2, 3]


def test_what_is_raised_is_raised_for_the_first_bad_item() -> None:
    def work(part: Sequence[int]) -> None:
        for number in part:
            if number in (3, 6):
                raise ValueError(f"{number} is bad")

    with pytest.raises(ValueError, match="3 is bad"):
        on_all_cores(work, range(8), 2, nothing)
    assert multiprocessing.active_children() == []


TO_BE_KILLED = """
import os, signal, time
from pathlib import Path
from mnist_hydra import cores

cores.usable_cores = lambda: 4

def work(part):
    Path(str(os.getpid())).touch()  # once it is there its name is whole
    return b" " * 10_000_000  # more than a pipe holds

def end():
    while len(list(Path().iterdir())) < 4:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)

cores.on_all_cores(work, range(4), 1, end)
"""


def runs(process: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is done in one process")
def test_no_process_outlives_the_one_that_was_killed(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", TO_BE_KILLED], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    others = [int(path.name) for path in tmp_path.iterdir()]
    until = time.monotonic() + 20
    while any(map(runs, others)):
        assert time.monotonic() < until, "a process waits for one that is gone"
        time.sleep(0.05)
    assert len(others) == 4
