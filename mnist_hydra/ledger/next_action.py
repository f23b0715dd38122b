"""What to do with a trial next: start, resume or retry it, wait for another process, or give it up.

Pure functions over a trial's attempts: no disk, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import DIED, DONE, FAILURES, INTERRUPTED, Attempt, Trial

MAX_DEATHS = 3
"""A trial is given up after so many deaths in a row without a new checkpoint."""


class Action(IntEnum):
    """A trial's next step; of those that ask for an attempt the lower number comes first."""

    RESUME = 1
    """It was interrupted, or its process died after a new checkpoint: continue it."""
    START = 2
    """It was never attempted."""
    RETRY = 3
    """It failed, or its process died without a new checkpoint. It comes last, so that a trial that
    kills its workers does not hold up the others.
    """
    WAIT = 4
    """Another process trains it."""
    DONE = 5
    GIVE_UP = 6
    """It failed as often as this command allows."""


TO_DO = frozenset({Action.RESUME, Action.START, Action.RETRY})


def next_action(trial: Trial | None, *, gone: bool, by: str, retries: int) -> Action:
    """Decide a trial's next step within one command.

    Args:
        trial: `None` for one that was never attempted.
        gone: whether the owner of its last attempt is gone; ignored once that has ended.
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


def actions_of(
    trials: Mapping[str, Trial],
    wanted: Sequence[Planned],
    by: str,
    retries: int,
    is_gone: Callable[[Trial], bool] = lambda trial: False,
) -> dict[str, Action]:
    """The next step of every wanted trial, by fingerprint.

    Args:
        trials: by fingerprint, those that were attempted.
        by, retries: see `next_action`.
        is_gone: whether the owner of a trial's last attempt is gone; by default none is, as after
            the deaths of owners were recorded.
    """
    actions = {}
    for key in (planned.fingerprint for planned in wanted):
        trial = trials.get(key)
        gone = trial is not None and is_gone(trial)
        actions[key] = next_action(trial, gone=gone, by=by, retries=retries)
    return actions


def deaths_in_a_row(attempts: Sequence[Attempt], step: int) -> int:
    """How many of the last attempts, in a row, died without writing a new checkpoint.

    Args:
        attempts: in order; one without an end counts as dead.
        step: of the newest checkpoint, -1 for none.
    """
    count = 0
    for attempt in reversed(attempts):
        if attempt.end not in (None, DIED) or attempt.from_step != step:
            break
        count += 1
    return count


def attempt_order(
    wanted: Sequence[str],
    action: Callable[[str], Action],
    offset: int = 0,
) -> list[tuple[str, Action]]:
    """The trials that need an attempt, in the order in which to try them.

    Args:
        wanted: fingerprints, in the sweep's order.
        action: of a fingerprint.
        offset: how far to rotate the trials that were never attempted, so that workers that begin
            together do not all try to claim the same one.
    """
    found: dict[Action, list[str]] = {Action.RESUME: [], Action.START: [], Action.RETRY: []}
    for fingerprint in wanted:
        if (what := action(fingerprint)) in found:
            found[what].append(fingerprint)
    fresh = found[Action.START]
    turn = offset % len(fresh) if fresh else 0
    found[Action.START] = fresh[turn:] + fresh[:turn]
    return [(fingerprint, what) for what in sorted(found) for fingerprint in found[what]]
