"""The CPU cores that this process may use: how many they are, and Python's own work on all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """CPU cores that this process may use, by its affinity and its container's limit."""
    affine = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affine else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # `max` stands for no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def on_all_cores(
    work: Callable[[Sequence[T]], R],
    items: Sequence[T],
    at_least: int,
    meanwhile: Callable[[], object],
) -> list[R]:
    """What `work` answers to consecutive parts of `items`, in their order.

    On Linux each part is done by a copy of this process. One that gives no answer, because it was
    killed or `work` raised, is done here again, so that what is raised is what the first bad item
    raises. Whatever else `work` changes in a copy's memory is lost.

    Args:
        work: its answers can be pickled.
        at_least: so many items are worth a process; fewer than two times as many are done here.
        meanwhile: what this process does while copies work; not called where there are none.
    """
    count = min(usable_cores(), len(items) // at_least) if sys.platform == "linux" else 1
    if count < 2:
        return [work(items)]
    import multiprocessing

    edges = [len(items) * number // count for number in range(count + 1)]
    parts = [items[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    context = multiprocessing.get_context("fork")
    with ExitStack() as at_end:
        pipes = []
        for part in parts:
            mine, its = context.Pipe(duplex=False)
            copy = context.Process(target=_answer, args=(mine, its, work, part), daemon=True)
            copy.start()
            its.close()
            at_end.callback(copy.join)
            at_end.callback(copy.kill)
            pipes.append(at_end.enter_context(mine))
        meanwhile()
        answers = []
        for part, pipe in zip(parts, pipes, strict=True):
            try:
                answers.append(pipe.recv())
            except (EOFError, OSError):  # the second of one that was killed as it answered
                answers.append(work(part))
        return answers


def _answer(
    parents: Connection, its: Connection, work: Callable[[Sequence[T]], R], part: Sequence[T]
) -> None:
    # With this end open here, `send` would block for ever after the parent was killed.
    parents.close()
    with suppress(BaseException):  # Ctrl-C reaches the copies, too
        its.send(work(part))
