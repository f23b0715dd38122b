"""Which process works on a trial, and whether that process is dead.

A process of this machine is known by boot, pid namespace, pid and start time. One of another
machine is dead when its heartbeat stops changing. No two machines' clocks are compared.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SILENT_S = 60.0
"""An owner on another machine whose heartbeat has not changed for so long is dead."""
LONGEST_GAP_S = 10.0
"""The most that a pause between two looks adds to that: the store may have been away."""
NOT_READABLE = -1.0
"""Start time of a process that exists but may not be inspected (another user's)."""

_working_here: set[str] = set()
_nameless = secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, as its claims name it."""

    token: str
    """Random and new for every worker, so that no two claims are the same text."""
    host: str
    """Boot and pid namespace: equal only where pids can be compared."""
    pid: int
    start_time: float
    """When the process began, on its host's own scale."""
    machine: str = ""
    """Its host's name, for people."""

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


def read_owner(text: str) -> Owner:
    """The owner that `Owner.text` wrote."""
    return owner_of(json.loads(text))


def owner_of(raw: Mapping[str, Any]) -> Owner:
    """The owner of these fields; the text that thousands of claims share is kept once in memory."""
    shared: dict[str, Any] = {k: sys.intern(x) if isinstance(x, str) else x for k, x in raw.items()}
    return Owner(**shared)


def new_token() -> str:
    """A token for a sweeper or a worker: 16 random hexadecimal digits."""
    return secrets.token_hex(8)


@contextmanager
def working() -> Iterator[Owner]:
    """A context that gives a new owner; while it is open, the owner's claims are not abandoned."""
    owner = myself(new_token())
    _working_here.add(owner.token)
    try:
        yield owner
    finally:
        _working_here.discard(owner.token)


def myself(token: str = "") -> Owner:
    """This process as an owner."""
    pid = os.getpid()
    return Owner(token, _host(), pid, start_time(pid) or 0.0, platform.node())


def is_dead(
    owner: Owner, here: Owner, *, started: float | None, working_here: bool, silent_s: float
) -> bool:
    """Decide from what was observed whether an owner is dead; a pure function.

    Args:
        owner: of the claim.
        here: the process that asks.
        started: start time of the process that has the owner's pid on this host; `None` for none.
        working_here: whether a worker with the owner's token is at work in this process.
        silent_s: for how long its heartbeat was watched and did not change.
    """
    if owner.host != here.host or started == NOT_READABLE:
        return silent_s >= SILENT_S
    if (owner.pid, owner.start_time) == (here.pid, here.start_time):
        return not working_here
    return started != owner.start_time


class Observer:
    """Watches heartbeats by this process's own clock, to say which owners are dead.

    Args:
        clock: monotonic, in seconds; must not be a wall clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._here = myself()
        self._clock = clock
        self._seen: dict[str, tuple[str, float, float]] = {}

    def is_dead(self, owner: Owner, heartbeat: str = "") -> bool:
        """Whether an owner is dead; call it again and again, each time with the last heartbeat."""
        now = self._clock()
        text, looked, silent_s = self._seen.get(owner.token, (heartbeat, now, 0.0))
        silent_s = silent_s + min(now - looked, LONGEST_GAP_S) if text == heartbeat else 0.0
        self._seen[owner.token] = (heartbeat, now, silent_s)
        return is_dead(
            owner,
            self._here,
            started=start_time(owner.pid) if owner.host == self._here.host else None,
            working_here=owner.token in _working_here,
            silent_s=silent_s,
        )


def start_time(pid: int) -> float | None:
    """When a process of this host began, on the host's own scale.

    `None` if there is none or it is a zombie, `NOT_READABLE` if it may not be inspected.
    """
    if not Path("/proc/self/stat").exists():
        return _start_time_without_proc(pid)
    try:
        # After the command's name, which may hold anything: the state, and 19 fields on the start.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return NOT_READABLE if _exists(pid) else None
    return None if words[0] in ("Z", "X") else float(words[19])


def _start_time_without_proc(pid: int) -> float | None:
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return NOT_READABLE


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # there, but another user's
    return True


def _host() -> str:
    """This boot of this machine, and the pid namespace.

    Where neither can be read it is random: then all others judge this process by its heartbeat.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    if platform.system() == "Darwin":
        import psutil

        return f"{platform.node()} {int(psutil.boot_time())}"
    return _nameless
