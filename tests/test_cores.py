"""Work on all cores comes out as on one, whatever becomes of the other processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence

import pytest

from mnist_hydra import cores
from mnist_hydra.cores import on_all_cores

HERE = os.getpid()


@pytest.fixture(autouse=True)
def four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)


def where(part: Sequence[int]) -> list[tuple[int, int]]:
    return [(os.getpid(), number) for number in part]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is done in one process")
def test_each_part_is_done_by_a_process_of_its_own_and_answers_are_in_order() -> None:
    answers = on_all_cores(where, range(10), at_least=2)
    assert [number for answer in answers for _, number in answer] == list(range(10))
    assert len({process for answer in answers for process, _ in answer}) == len(answers) == 4
    assert answers[0][0][0] == HERE
    assert multiprocessing.active_children() == []


def test_few_items_are_done_here() -> None:
    assert on_all_cores(where, range(3), at_least=2) == [[(HERE, 0), (HERE, 1), (HERE, 2)]]


def test_what_a_killed_process_owes_is_done_here() -> None:
    def work(part: Sequence[int]) -> list[int]:
        if os.getpid() != HERE and 5 in part:
            os.kill(os.getpid(), signal.SIGKILL)
        return list(part)

    assert on_all_cores(work, range(8), at_least=2) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_what_is_raised_is_raised_for_the_first_bad_item() -> None:
    def work(part: Sequence[int]) -> None:
        for number in part:
            if number in (3, 6):
                raise ValueError(f"{number} is bad")

    with pytest.raises(ValueError, match="3 is bad"):
        on_all_cores(work, range(8), at_least=2)
    assert multiprocessing.active_children() == []
