"""What is done next with a trial: a table over its attempts; no disk, no clock."""

from __future__ import annotations

import pytest

from mnist_hydra.ledger.next_action import Action, attempt_order, deaths_in_a_row, next_action
from mnist_hydra.ledger.owner import Owner
from mnist_hydra.ledger.trial import Attempt, Claim, End, Trial

ELSEWHERE = Owner("t", "another host", 7, 300.0)


def trial(
    *ends: str | None, by: str = "n", steps: tuple[int, ...] | None = None, step: int = -1
) -> Trial:
    """A trial whose attempts ended so, each made by the sweeper that its letter stands for."""
    bys = by if len(by) == len(ends) else by * len(ends)
    attempts = [
        Attempt(
            number, Claim("run", "name", ELSEWHERE, who, from_step), End(end) if end else None
        )
        for number, (end, who, from_step) in enumerate(
            zip(ends, bys, steps or (-1,) * len(ends), strict=True), start=1
        )
    ]
    return Trial("f", "run", "name", tuple(attempts), step=step)


@pytest.mark.parametrize(
    ("ends", "by", "retries", "expected"),
    [
        (("finished",), "n", 1, Action.DONE),
        (("finished",), "o", 1, Action.DONE),
        (("pruned",), "n", 1, Action.DONE),
        (("failed", "finished"), "nn", 0, Action.DONE),
        ((None,), "n", 1, Action.WAIT),
        ((None,), "o", 1, Action.WAIT),
        (("died",), "n", 1, Action.RETRY),
        (("interrupted",), "n", 1, Action.RESUME),
        (("interrupted",), "o", 1, Action.RESUME),
        (("failed",), "n", 1, Action.RETRY),
        (("failed",), "n", 0, Action.GIVE_UP),
        (("timeout",), "n", 0, Action.GIVE_UP),
        (("failed", "timeout"), "nn", 1, Action.GIVE_UP),
        (("failed", "interrupted"), "nn", 1, Action.RESUME),
        (("failed", "failed"), "oo", 1, Action.RETRY),
        (("failed", "failed", "failed"), "oon", 1, Action.RETRY),
        (("failed", "failed", "failed", "failed"), "oonn", 1, Action.GIVE_UP),
        (("failed", "failed"), "no", 1, Action.RETRY),
        (("failed", "failed", "failed"), "non", 1, Action.GIVE_UP),
        (("failed", "failed"), "oo", 0, Action.RETRY),
        (("died", "died"), "nn", 0, Action.RETRY),
        (("died", "died", "died"), "nnn", 9, Action.GIVE_UP),
        (("died", "died", None), "nnn", 9, Action.WAIT),
        (("died", "died", "died"), "ooo", 1, Action.RETRY),
        (("died", "died", "died"), "onn", 1, Action.RETRY),
        (("died", "interrupted", "died", "died"), "nnnn", 1, Action.RETRY),
    ],
)
def test_a_trials_next_step_follows_from_its_attempts_within_the_command(
    ends: tuple[str | None, ...], by: str, retries: int, expected: Action
) -> None:
    """`n`: this command's, now; `o`: another's, older."""
    assert next_action(trial(*ends, by=by), "n", retries) is expected


@pytest.mark.parametrize(("step", "expected"), [(-1, Action.RETRY), (118, Action.RESUME)])
def test_a_trial_whose_process_died_goes_first_only_if_it_got_further(
    step: int, expected: Action
) -> None:
    dead = trial("died", step=step)
    assert next_action(dead, "n", retries=1) is expected
    assert next_action(trial(None, step=step).as_dead(), "n", retries=1) is expected


def test_a_trial_that_the_ledger_does_not_have_is_to_be_started() -> None:
    assert next_action(None, "n", retries=1) is Action.START


@pytest.mark.parametrize(
    ("ends", "steps", "step", "expected"),
    [
        (("died", "died", "died"), (-1, -1, -1), -1, 3),
        (("died", "died", "died"), (-1, -1, -1), 118, 0),
        (("died", "died", "died"), (-1, 118, 118), 118, 2),
        (("died", "died", "died"), (-1, 118, 236), 354, 0),
        (("died", "failed", "died"), (-1, -1, -1), -1, 1),
    ],
)
def test_a_new_checkpoint_starts_the_count_of_deaths_again(
    ends: tuple[str | None, ...], steps: tuple[int, ...], step: int, expected: int
) -> None:
    assert deaths_in_a_row(trial(*ends, steps=steps).attempts, step) == expected


def test_interrupted_trials_come_first_and_those_that_broke_something_last() -> None:
    actions = {
        "a": Action.DONE,
        "b": Action.RETRY,
        "c": Action.START,
        "d": Action.RESUME,
        "e": Action.WAIT,
        "f": Action.START,
        "g": Action.GIVE_UP,
    }
    assert attempt_order(actions) == ["d", "c", "f", "b"]


def test_workers_that_begin_together_reach_for_different_trials() -> None:
    actions = dict.fromkeys("abc", Action.START)
    first = [attempt_order(actions, worker)[0] for worker in range(4)]
    assert first == ["a", "b", "c", "a"]
