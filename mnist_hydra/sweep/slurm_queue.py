"""Which of a user's jobs Slurm still holds, asked of `squeue`, the one answer every Slurm gives.

It asks no more often than every few seconds, and takes no answer for no news.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from importlib import import_module

ASK_EVERY_S = 3.0
RESULT_MAY_LAG_S = 5.0
"""How long a shared disk may take to show the result of a job that has left the queue."""


class SlurmQueue:
    """The jobs that wait or run, by id (`12_0` in an array), as last heard."""

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._asked_at = float("-inf")
        self._left_at: dict[str, float] = {}

    def add(self, jobs: Iterable[str]) -> None:
        """Jobs that were just submitted."""
        self._held.update(jobs)

    def ask(self) -> None:
        """Ask Slurm, unless it was asked just now; where it does not answer, nothing changes."""
        if time.monotonic() < self._asked_at + ASK_EVERY_S:
            return
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            self._held = set(answer.stdout.split())
        self._asked_at = time.monotonic()

    def has_lost(self, job: str) -> bool:
        """Whether a job is gone for so long that its result, if it had one, would be here."""
        if job in self._held:
            self._left_at.pop(job, None)
            return False
        now = time.monotonic()
        return now > self._left_at.setdefault(job, now) + RESULT_MAY_LAG_S


def cancel(*arguments: str) -> None:
    """`scancel`; jobs that are no more are no error."""
    subprocess.run(["scancel", *arguments], capture_output=True)


def kill_children(pid: int) -> None:
    """What `cancel` is to Slurm's jobs, for the processes below one of this machine's."""
    psutil = import_module("psutil")
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            process.kill()
