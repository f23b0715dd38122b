"""A trial as the ledger holds it, and how its parts are written as text; no disk, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FINISHED = "finished"
PRUNED = "pruned"
INTERRUPTED = "interrupted"
FAILED = "failed"
TIMEOUT = "timeout"
DIED = "died"
WAITING = "waiting"
RUNNING = "running"

DONE = frozenset({FINISHED, PRUNED})
"""Ends after which a trial needs nothing more."""
FAILURES = frozenset({FAILED, TIMEOUT})
"""Ends that count against `sweep.retries`."""

PARENT_TAG = "mlflow.parentRunId"
OWN = "mnist_hydra."
SWEEP_TAG = OWN + "sweep"
GENERATION_TAG = OWN + "generation"
STATE_TAG = OWN + "state"
HEARTBEAT_TAG = OWN + "heartbeat"
ERROR_TAG = OWN + "error"
SECONDS_TAG = OWN + "seconds"
CREATOR_TAG = OWN + "creator"
ATTEMPT_TAG = OWN + "attempt/"
STOP_TAG = OWN + "stop/"
FORGIVEN_TAG = OWN + "forgiven/"
RESULT_TAG = "mlflow." + OWN + "result/"
"""A sweep has one for every trial; MLflow's UI shows no tags that begin with `mlflow.`."""
TRIAL_PARAM = "trial/"
POINT_PARAM = "point/"
CLAIM_PARAM = "claim/"


@dataclass(frozen=True)
class Owner:
    """The process that has a claim."""

    token: str
    """Random, new for every worker: no two claims are the same text."""
    host: str
    """Names boot and pid namespace, so equal only where pids can be compared."""
    pid: int
    start_time: float
    """When the process began, on its host's own scale."""
    machine: str = ""
    """Its host's name, for people."""

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Claim:
    """One process's right to one attempt."""

    owner: Owner
    by: str
    """The sweeper that started the worker."""
    from_step: int
    """The step of the checkpoint that the attempt goes on from; -1 for none."""

    def text(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial; attempts are numbered from 1."""

    number: int
    from_step: int
    end: str | None
    """How it ended; `None` while it runs, or if its process died."""
    claim: Claim | None = None
    """`None` where only the result was read."""


@dataclass(frozen=True)
class Trial:
    """One trial: which MLflow run it is and what became of it so far."""

    fingerprint: str
    run_id: str
    name: str
    attempts: tuple[Attempt, ...] = ()
    heartbeat: str = ""
    epoch: int = 0
    """Epochs done, as the newest checkpoint has them."""
    step: int = -1
    """Step of the newest checkpoint; -1 for none."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    error: str = ""
    """The last lines of what went wrong in the last attempt."""
    seconds: float = 0.0
    """Time that its ended attempts took."""
    made_by: Mapping[str, str] = field(default_factory=dict)
    """Code, package version and data that it was made with, by tag."""

    @property
    def state(self) -> str:
        """`waiting`, `running` (or its process is gone), or how the last attempt ended."""
        if not self.attempts:
            return WAITING
        return self.attempts[-1].end or RUNNING

    @property
    def number(self) -> int:
        """The number of attempts."""
        return len(self.attempts)


@dataclass(frozen=True)
class Planned:
    """A trial that the sweep is to have."""

    fingerprint: str
    overrides: tuple[str, ...]
    """The swept ones."""
    name: str
    """For people: `model=model3, dropout=0.02`."""


@dataclass(frozen=True)
class Point:
    """A point that a search has proposed."""

    number: int
    fingerprint: str
    overrides: tuple[str, ...]
    """The swept ones."""
    values: Mapping[str, Any]
    """What was chosen, by the axis's key."""

    def text(self) -> str:
        return json.dumps(
            {
                "fingerprint": self.fingerprint,
                "overrides": self.overrides,
                "values": dict(self.values),
            }
        )


def read_owner(text: str) -> Owner:
    """The owner that `Owner.text` wrote."""
    return Owner(**json.loads(text))


def read_claim(text: str) -> Claim:
    """The claim that `Claim.text` wrote."""
    raw = json.loads(text)
    return Claim(Owner(**raw["owner"]), raw["by"], raw["from_step"])


def read_point(number: int, text: str) -> Point:
    """The point that `Point.text` wrote."""
    raw = json.loads(text)
    return Point(number, raw["fingerprint"], tuple(raw["overrides"]), raw["values"])


def attempts_of(params: Mapping[str, str], tags: Mapping[str, str]) -> tuple[Attempt, ...]:
    """A trial's attempts from its run's parameters and tags, in order."""
    found: list[Attempt] = []
    while (text := params.get(f"{CLAIM_PARAM}{len(found) + 1}")) is not None:
        claim = read_claim(text)
        number = len(found) + 1
        found.append(Attempt(number, claim.from_step, tags.get(f"{ATTEMPT_TAG}{number}"), claim))
    return tuple(found)
