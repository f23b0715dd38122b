"""What is to be done with a trial: pure decisions, from what the ledger holds and who is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

from mnist_hydra.sweep.trial import DIED, DONE, FAILURES, INTERRUPTED, Attempt, Trial

MAX_DEATHS = 3
"""So many deaths in a row without a new checkpoint make a trial failed."""


class Action(IntEnum):
    """A trial's next step; of those that ask for an attempt the lower number comes first."""

    RESUME = 1
    """It was interrupted, or its process died after a new checkpoint: go on with it."""
    START = 2
    """It was never attempted."""
    RETRY = 3
    """It failed, or its process died with nothing to show for it: last, so that a trial that kills
    its workers holds up no other.
    """
    WAIT = 4
    """Another process is at it."""
    DONE = 5
    GIVE_UP = 6
    """It failed as often as it may within this command."""


TO_DO = frozenset({Action.RESUME, Action.START, Action.RETRY})


def next_action(trial: Trial | None, *, gone: bool, by: str, retries: int) -> Action:
    """Decide a trial's next step within one command.

    Args:
        trial: `None` for one that was never attempted.
        gone: whether the owner of its last attempt is gone; counts only while that has no end.
        by: the command's sweeper; attempts of other commands do not count against it.
        retries: how many more attempts a failed trial gets within the command.
    """
    if trial is None or not trial.attempts:
        return Action.START
    last = trial.attempts[-1]
    if last.end in DONE:
        return Action.DONE
    if last.end is None and not gone:
        return Action.WAIT
    own = [attempt for attempt in trial.attempts if attempt.by == by]
    failures = sum(attempt.end in FAILURES for attempt in own)
    if failures > retries or deaths_in_a_row(own, trial.step) >= MAX_DEATHS:
        return Action.GIVE_UP
    died_further_on = last.end in (None, DIED) and last.from_step != trial.step
    return Action.RESUME if last.end == INTERRUPTED or died_further_on else Action.RETRY


def deaths_in_a_row(attempts: Sequence[Attempt], step: int) -> int:
    """How many last attempts in a row ended with a dead process and brought no checkpoint.

    Args:
        attempts: in order; one with no end counts as dead.
        step: of the newest checkpoint, -1 for none.
    """
    count = 0
    for attempt in reversed(attempts):
        if attempt.end not in (None, DIED) or attempt.from_step != step:
            break
        count += 1
    return count


def in_order(
    wanted: Sequence[str],
    action: Callable[[str], Action],
    offset: int = 0,
) -> list[tuple[str, Action]]:
    """The trials that ask for an attempt, in the order in which to try them.

    Args:
        wanted: fingerprints, in the sweep's order.
        action: of a fingerprint.
        offset: never-attempted trials are taken from this one on, round and round, so that workers
            that begin together do not all reach for the same.
    """
    found: dict[Action, list[str]] = {Action.RESUME: [], Action.START: [], Action.RETRY: []}
    for fingerprint in wanted:
        if (what := action(fingerprint)) in found:
            found[what].append(fingerprint)
    fresh = found[Action.START]
    turn = offset % len(fresh) if fresh else 0
    found[Action.START] = fresh[turn:] + fresh[:turn]
    return [(fingerprint, what) for what in sorted(found) for fingerprint in found[what]]
