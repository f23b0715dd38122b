"""Runs whole commands and measures them from outside, in turns, so that whatever else the machine
does meets all of them alike. It never measures inside a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[2]
Key = TypeVar("Key")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Finished:
    """A command that has ended well."""

    started: float
    """`time.monotonic()` just before it was started, comparable between processes on Linux."""
    wall_s: float
    max_rss_mib: float
    """The most that any one of its processes held; at least what this process holds itself."""
    stdout: str
    stderr: str


def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> Finished:
    """Run a command to its end.

    Args:
        command: the words; `python` as the first stands for this interpreter.
        env: variables on top of this process's own.

    Raises:
        RuntimeError: if it fails, with the last of what it printed.
    """
    words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.monotonic()
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environment(words, env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        stdout, stderr = out.read(), err.read()
        if process.returncode:
            tail = (stdout + stderr)[-3000:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Finished(started, wall_s, usage.ru_maxrss * unit / 2**20, stdout, stderr)


def environment(words: Sequence[str], more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables and `more`; a command that names an `output_dir` keeps its compiled
    kernel there, too, so that in an empty one it begins with nothing.
    """
    folders = [word.partition("=")[2] for word in words if word.startswith("output_dir=")]
    cache = {"XDG_CACHE_HOME": os.path.abspath(f"{folders[-1]}/cache")} if folders else {}
    return {**os.environ, **cache, **(more or {})}


def in_turns(
    contenders: Mapping[Key, Callable[[], Result]], repeats: int
) -> Iterator[tuple[Key, Result]]:
    """Call every contender `repeats` times, round by round, another one first in each round."""
    keys = list(contenders)
    for turn in range(repeats):
        for place in range(len(keys)):
            key = keys[(place + turn) % len(keys)]
            print(f"  {turn + 1}/{repeats} {key} ...", file=sys.stderr, flush=True)
            yield key, contenders[key]()


def median(values: Sequence[float]) -> float:
    """The median, `nan` of nothing."""
    return statistics.median(values) if values else float("nan")
