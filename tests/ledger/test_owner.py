"""Whether the process that has a claim is gone: on this machine, and elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mnist_hydra.ledger.owner import (
    NOT_READABLE,
    Observer,
    Owner,
    is_dead,
    myself,
    read_owner,
    start_time,
)

HERE = Owner("", "boot-1 4026531836", 100, 5000.0)
ELSEWHERE = Owner("t", "another host", 7, 300.0)


@pytest.mark.parametrize(
    ("owner", "started", "working_here", "silent_s", "expected"),
    [
        (Owner("t", HERE.host, 7, 300.0), 300.0, False, 1e9, False),
        (Owner("t", HERE.host, 7, 300.0), None, False, 0.0, True),
        (Owner("t", HERE.host, 7, 300.0), 301.0, False, 0.0, True),
        (Owner("t", HERE.host, 7, 300.0), NOT_READABLE, False, 59.0, False),
        (Owner("t", HERE.host, 7, 300.0), NOT_READABLE, False, 60.0, True),
        (Owner("t", HERE.host, 100, 5000.0), 5000.0, True, 1e9, False),
        (Owner("t", HERE.host, 100, 5000.0), 5000.0, False, 0.0, True),
        (Owner("t", "boot-2 4026531836", 7, 300.0), 300.0, False, 59.0, False),
        (Owner("t", "boot-2 4026531836", 7, 300.0), None, False, 59.0, False),
        (Owner("t", "boot-2 4026531836", 7, 300.0), 300.0, False, 60.0, True),
        (Owner("t", "boot-1 4026532000", 7, 300.0), None, False, 59.0, False),
    ],
)
def test_an_owner_is_judged_by_its_process_here_and_by_its_silence_elsewhere(
    owner: Owner, started: float | None, working_here: bool, silent_s: float, expected: bool
) -> None:
    got = is_dead(owner, HERE, started=started, working_here=working_here, silent_s=silent_s)
    assert got is expected


def test_an_owner_elsewhere_is_dead_once_its_heartbeat_stood_still_for_a_minute() -> None:
    now = [1000.0]
    observer = Observer(lambda: now[0])
    for beat in ("1:0", "1:1", "1:1", "1:1", "1:1", "1:1", "1:1"):
        assert not observer.is_dead(ELSEWHERE, beat)
        now[0] += 10.0
    assert observer.is_dead(ELSEWHERE, "1:1")
    assert not observer.is_dead(ELSEWHERE, "1:2")


def test_time_in_which_nobody_looked_hardly_counts() -> None:
    now = [0.0]
    observer = Observer(lambda: now[0])
    assert not observer.is_dead(ELSEWHERE, "1:5")
    now[0] += 3600.0  # the store was away: nobody could have beaten
    assert not observer.is_dead(ELSEWHERE, "1:5")


def test_a_process_is_told_by_its_own_pid_start_and_boot_and_a_child_of_it_is_another() -> None:
    here = myself("token")
    assert (here.token, here.pid, here.start_time) == ("token", os.getpid(), start_time(here.pid))
    script = "from mnist_hydra.ledger.owner import myself; print(myself().text())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    other = read_owner(child.stdout)
    assert other.host == here.host
    assert (other.pid, other.start_time) != (here.pid, here.start_time)
    observer = Observer(lambda: 0.0)
    assert observer.is_dead(other), "it has ended"
    assert observer.is_dead(here), "nothing in this process works under that token"
