"""A sweep's trials: what the ledger's entries say about each.

An entry is written once, so a trial's state is a replay of its entries: attempts are claimed and
end, one after another. Only pure functions: no disk, no network, no clock.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, TypeAlias, cast

from mnist_hydra.ledger.owner import Owner, owner_of
from mnist_hydra.ledger.plan import Planned, title

FINISHED = "finished"
PRUNED = "pruned"
INTERRUPTED = "interrupted"
FAILED = "failed"
TIMEOUT = "timeout"
DIED = "died"
RUNNING = "running"

DONE = frozenset({FINISHED, PRUNED})
"""Ends after which a trial is not trained any more."""
FAILURES = frozenset({FAILED, TIMEOUT})
"""Ends that count against `sweep.retries`."""

CLAIM = "claim/"
"""`claim/<fingerprint>/<n>`: the n-th attempt at a trial, a `Claim`."""
END = "end/"
"""`end/<fingerprint>/<n>`: how that attempt ended, an `End`."""
POINT = "point/"
"""`point/<n>`: the n-th point that a search proposed, from 0, a `Point`."""
STOP = "stop/"
"""`stop/<token>`: why the trials of that sweeper are to stop."""
NOTICE = "notice/"
"""`notice/<token>/<CRC-32>`: what a worker of that sweeper has to tell whoever started it."""
MAX_ENTRY = 6_000
"""Characters that MLflow keeps of an entry."""
SHARED = 128
"""So many entries are kept as they were read last: the ledgers of a process, which read the same
ones, hold the same objects."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One process's claim on one attempt at a trial."""

    run_id: str
    """The trial's MLflow run; a new one if the one before was deleted."""
    name: str
    """The trial's, for people: `model=model3, dropout=0.02`."""
    owner: Owner
    by: str
    """The token of the sweeper that started the worker."""
    from_step: int
    """The step of the checkpoint that the attempt goes on from; -1 for none."""

    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended, and what its run held then."""

    state: str
    """One of the ends above."""
    seconds: float = 0.0
    """How long the attempt took."""
    epoch: int = 0
    """Epochs done, as the newest checkpoint has them."""
    step: int = -1
    """Step of the newest checkpoint; -1 for none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    error: str = ""
    """The last lines of what went wrong."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The code, package version and data that it was trained with, by tag."""

    def text(self) -> str:
        """As an entry; with fewer metrics and a shorter error where it would be too long."""
        content = asdict(self)
        while len(text := json.dumps(content)) > MAX_ENTRY:
            content["error"] = content["error"][-len(content["error"]) // 2 :]
            if len(content["error"]) < 200:
                kept = len(content["metrics"]) // 2
                content["metrics"] = dict(list(content["metrics"].items())[:kept])
        return text


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a trial."""

    number: int
    """Counts the trial's attempts, from 1."""
    claim: Claim
    end: End | None = None
    """`None` while it runs, or if its process died and nobody has seen it yet."""

    @property
    def state(self) -> str:
        """`running` (or its process is dead), or how it ended."""
        return RUNNING if self.end is None else self.end.state


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: its MLflow run, and what has happened to it so far."""

    fingerprint: str
    run_id: str
    name: str
    attempts: tuple[Attempt, ...]
    """At least one, in order."""
    heartbeat: str = ""
    epoch: int = 0
    """Epochs done, as the newest checkpoint has them."""
    step: int = -1
    """Step of the newest checkpoint; -1 for none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The code, package version and data that it was trained with, by tag."""

    @property
    def state(self) -> str:
        """`running` (or its process is dead), or how the last attempt ended."""
        return self.attempts[-1].state

    @property
    def number(self) -> int:
        """The number of attempts."""
        return len(self.attempts)

    @property
    def owner(self) -> Owner:
        """Who has the last attempt."""
        return self.attempts[-1].claim.owner

    @property
    def error(self) -> str:
        """The last lines of what went wrong in the last attempt."""
        end = self.attempts[-1].end
        return "" if end is None else end.error

    def as_dead(self) -> Trial:
        """The running trial as it will be once the death of its owner is recorded."""
        *before, last = self.attempts
        return replace(self, attempts=(*before, replace(last, end=End(DIED))))


@dataclass(frozen=True, kw_only=True)
class Point(Planned):
    """A trial that a search has proposed."""

    number: int
    """Counts the search's points, from 0."""
    values: Mapping[str, Any]
    """What was chosen, by the axis's key."""

    def text(self) -> str:
        told = asdict(self)
        return json.dumps({name: told[name] for name in ("fingerprint", "overrides", "values")})


Entry: TypeAlias = Claim | End | Point | str
"""What an entry says; text where it is about no trial and no point."""


def claim_key(fingerprint: str, number: int) -> str:
    """The entry of a trial's n-th claim."""
    return f"{CLAIM}{fingerprint}/{number}"


def end_key(fingerprint: str, number: int) -> str:
    """The entry of the end of a trial's n-th claim."""
    return f"{END}{fingerprint}/{number}"


def trial_of(key: str) -> str | None:
    """The fingerprint of the trial that an entry is about; `None` for another entry."""
    kind, _, rest = key.partition("/")
    return rest.partition("/")[0] if f"{kind}/" in (CLAIM, END) else None


@lru_cache(maxsize=SHARED)
def _tags(items: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return dict(items)


@lru_cache(maxsize=SHARED)
def read_entry(key: str, text: str) -> Entry:
    """What the text of an entry says.

    What thousands of entries hold alike, such as owners, commits and names of metrics, is kept once
    in memory.
    """
    if key.startswith(CLAIM):
        raw = json.loads(text)
        return Claim(**raw | {"owner": owner_of(raw["owner"]), "by": sys.intern(raw["by"])})
    if key.startswith(END):
        raw = json.loads(text)
        raw["metrics"] = {sys.intern(name): value for name, value in raw["metrics"].items()}
        raw["made_by"] = _tags(tuple(raw["made_by"].items()))
        return End(**raw)
    if key.startswith(POINT):
        raw = json.loads(text)
        at, number = tuple(raw["overrides"]), int(key.removeprefix(POINT))
        return Point(raw["fingerprint"], at, title(at), number=number, values=raw["values"])
    return text


def replay(
    fingerprint: str, entries: Mapping[str, Entry], deleted: Collection[str] = ()
) -> Trial | None:
    """The trial that its entries describe; `None` if it was never attempted.

    Args:
        entries: of the ledger, by key; at least those of the trial.
        deleted: runs that were deleted in MLflow; attempts in them are ignored.
    """
    attempts = [
        Attempt(number, claim, cast(End | None, entries.get(end_key(fingerprint, number))))
        for number, claim in claims_of(fingerprint, entries)
        if claim.run_id not in deleted
    ]
    if not attempts:
        return None
    newest = attempts[-1].claim
    in_it = tuple(attempt for attempt in attempts if attempt.claim.run_id == newest.run_id)
    ends = [attempt.end for attempt in in_it if attempt.end is not None]
    last = ends[-1] if ends else End(RUNNING)
    so_far = last.epoch, last.step, last.metrics, last.made_by
    return Trial(fingerprint, newest.run_id, newest.name, in_it, "", *so_far)


def claims_of(fingerprint: str, entries: Mapping[str, Entry]) -> list[tuple[int, Claim]]:
    """A trial's claims with their numbers, in order."""
    found: list[tuple[int, Claim]] = []
    while (entry := entries.get(claim_key(fingerprint, len(found) + 1))) is not None:
        found.append((len(found) + 1, cast(Claim, entry)))
    return found


def proposed_points(entries: Mapping[str, Entry]) -> list[Point]:
    """What a search has proposed, in order."""
    found: list[Point] = []
    while (entry := entries.get(f"{POINT}{len(found)}")) is not None:
        found.append(cast(Point, entry))
    return found
