"""What to do with a trial next: start, resume or retry it, wait for another process, or give it up.

Pure functions over a trial's attempts: no disk, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from itertools import takewhile

from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import DIED, DONE, FAILURES, INTERRUPTED, RUNNING, Attempt, Trial

MAX_DEATHS = 3
"""A trial is given up after so many deaths in a row without a new checkpoint."""


class Action(Enum):
    """A trial's next step."""

    RESUME = 1
    """It was interrupted, or its process died after a new checkpoint: continue it."""
    START = 2
    """It was never attempted."""
    RETRY = 3
    """It failed, or its process died without a new checkpoint."""
    WAIT = 4
    """Another process trains it."""
    DONE = 5
    GIVE_UP = 6
    """It failed as often as this command allows."""


TO_DO = (Action.RESUME, Action.START, Action.RETRY)
"""Those that ask for an attempt, in the order in which they come: a trial that kills its workers
must not hold up the others.
"""


def next_action(trial: Trial | None, sweeper: str, retries: int) -> Action:
    """Decide a trial's next step within one command.

    Args:
        trial: `None` for one that was never attempted; a dead process's attempt has ended in it.
        sweeper: the token of the command's sweeper; other commands' attempts do not count here.
        retries: how many more attempts a failed trial gets within the command.
    """
    if trial is None:
        return Action.START
    last = trial.attempts[-1]
    if last.state in DONE:
        return Action.DONE
    if last.state == RUNNING:
        return Action.WAIT
    own = [attempt for attempt in trial.attempts if attempt.claim.by == sweeper]
    failures = sum(attempt.state in FAILURES for attempt in own)
    if failures > retries or deaths_in_a_row(own, trial.step) >= MAX_DEATHS:
        return Action.GIVE_UP
    died_further_on = last.state == DIED and last.claim.from_step != trial.step
    return Action.RESUME if last.state == INTERRUPTED or died_further_on else Action.RETRY


def actions_of(
    trials: Mapping[str, Trial], wanted: Sequence[Planned], sweeper: str, retries: int
) -> dict[str, Action]:
    """The next step of every wanted trial, by fingerprint, in the order of `wanted`.

    Args:
        trials: by fingerprint, those that were attempted.
        sweeper, retries: see `next_action`.
    """
    keys = [planned.fingerprint for planned in wanted]
    return {key: next_action(trials.get(key), sweeper, retries) for key in keys}


def deaths_in_a_row(attempts: Sequence[Attempt], step: int) -> int:
    """How many of the last attempts, in a row, died without writing a new checkpoint.

    Args:
        attempts: in order.
        step: of the newest checkpoint, -1 for none.
    """
    died_here = (one.state == DIED and one.claim.from_step == step for one in reversed(attempts))
    return sum(takewhile(bool, died_here))


def attempt_order(actions: Mapping[str, Action], offset: int = 0) -> list[str]:
    """The trials that need an attempt, by fingerprint, in the order in which to try them.

    Args:
        actions: by fingerprint, in the sweep's order.
        offset: how far to rotate the trials that were never attempted, so that workers that begin
            together do not all try to claim the same one.
    """
    resume, start, retry = (
        [key for key, action in actions.items() if action is wanted] for wanted in TO_DO
    )
    turn = offset % len(start) if start else 0
    return [*resume, *start[turn:], *start[:turn], *retry]
