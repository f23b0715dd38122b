"""Decisions about trials and judgements of owners: tables, no disk, no network, no clock."""

from __future__ import annotations

import pytest

from mnist_hydra.sweep.decide import Action, deaths_in_a_row, forgivable, in_order, next_action
from mnist_hydra.sweep.liveness import HIDDEN, Observer, is_gone, myself
from mnist_hydra.sweep.trial import Attempt, Claim, Owner, Trial

HERE = Owner("", "boot-1 4026531836", 100, 5000.0)


def trial(*ends: str | None, steps: tuple[int, ...] | None = None, step: int = -1) -> Trial:
    from_steps = steps or (-1,) * len(ends)
    attempts = [
        Attempt(number, from_step, end)
        for number, (end, from_step) in enumerate(zip(ends, from_steps, strict=True), start=1)
    ]
    return Trial("f", "run", "name", tuple(attempts), step=step)


@pytest.mark.parametrize(
    ("ends", "gone", "forgiven", "retries", "expected"),
    [
        ((), False, 0, 1, Action.START),
        (("finished",), False, 0, 1, Action.DONE),
        (("pruned",), False, 0, 1, Action.DONE),
        (("failed", "finished"), False, 0, 0, Action.DONE),
        ((None,), False, 0, 1, Action.WAIT),
        ((None,), True, 0, 1, Action.RETRY),
        (("interrupted",), False, 0, 1, Action.RESUME),
        (("died",), False, 0, 1, Action.RETRY),
        (("failed",), False, 0, 1, Action.RETRY),
        (("failed",), False, 0, 0, Action.GIVE_UP),
        (("timeout",), False, 0, 0, Action.GIVE_UP),
        (("failed", "timeout"), False, 0, 1, Action.GIVE_UP),
        (("failed", "interrupted"), False, 0, 1, Action.RESUME),
        (("failed", "failed"), False, 2, 1, Action.RETRY),
        (("failed", "failed", "failed"), False, 2, 1, Action.RETRY),
        (("failed", "failed", "failed", "failed"), False, 2, 1, Action.GIVE_UP),
        (("failed", "failed"), False, 2, 0, Action.RETRY),
        (("died", "died"), False, 0, 0, Action.RETRY),
        (("died", "died", "died"), False, 0, 9, Action.GIVE_UP),
        (("died", "died", None), True, 0, 9, Action.GIVE_UP),
        (("died", "died", None), False, 0, 9, Action.WAIT),
        (("died", "died", "died"), False, 3, 1, Action.RETRY),
        (("died", "interrupted", "died", "died"), False, 0, 1, Action.RETRY),
    ],
)
def test_a_trials_next_step_follows_from_its_attempts(
    ends: tuple[str | None, ...], gone: bool, forgiven: int, retries: int, expected: Action
) -> None:
    got = next_action(trial(*ends), gone=gone, forgiven=forgiven, retries=retries)
    assert got is expected


@pytest.mark.parametrize(("step", "expected"), [(-1, Action.RETRY), (118, Action.RESUME)])
def test_a_trial_whose_process_died_goes_first_only_if_it_got_further(
    step: int, expected: Action
) -> None:
    dead = trial("died", step=step)
    assert next_action(dead, gone=False, forgiven=0, retries=1) is expected
    assert next_action(trial(None, step=step), gone=True, forgiven=0, retries=1) is expected


def test_a_trial_that_the_ledger_does_not_have_is_to_be_started() -> None:
    assert next_action(None, gone=False, forgiven=0, retries=1) is Action.START


@pytest.mark.parametrize(
    ("ends", "steps", "step", "expected"),
    [
        (("died", "died", "died"), (-1, -1, -1), -1, 3),
        (("died", "died", "died"), (-1, -1, -1), 118, 0),
        (("died", "died", "died"), (-1, 118, 118), 118, 2),
        (("died", "died", "died"), (-1, 118, 236), 354, 0),
        (("died", "failed", "died"), (-1, -1, -1), -1, 1),
        (("died", "died", None), (-1, -1, -1), -1, 3),
    ],
)
def test_a_new_checkpoint_starts_the_count_of_deaths_again(
    ends: tuple[str | None, ...], steps: tuple[int, ...], step: int, expected: int
) -> None:
    assert deaths_in_a_row(trial(*ends, steps=steps).attempts, step) == expected


def test_a_new_command_forgives_the_failed_and_no_finished_ones() -> None:
    trials = [
        Trial("a", "1", "", trial("failed", "failed").attempts),
        Trial("b", "2", "", trial("failed", "finished").attempts),
        Trial("c", "3", "", trial("died", "died", "died").attempts),
        Trial("d", "4", "", trial("interrupted").attempts),
        Trial("e", "5", ""),
    ]
    assert forgivable(trials) == {"a": 2, "c": 3}


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
    order = in_order(list(actions), actions.__getitem__)
    assert [fingerprint for fingerprint, _ in order] == ["d", "c", "f", "b"]


def test_workers_that_begin_together_reach_for_different_trials() -> None:
    actions = dict.fromkeys("abc", Action.START)
    first = [in_order("abc", actions.__getitem__, worker)[0][0] for worker in range(4)]
    assert first == ["a", "b", "c", "a"]


@pytest.mark.parametrize(
    ("owner", "started", "working_here", "silent_s", "expected"),
    [
        (Owner("t", HERE.host, 7, 300.0), 300.0, False, 1e9, False),
        (Owner("t", HERE.host, 7, 300.0), None, False, 0.0, True),
        (Owner("t", HERE.host, 7, 300.0), 301.0, False, 0.0, True),
        (Owner("t", HERE.host, 7, 300.0), HIDDEN, False, 59.0, False),
        (Owner("t", HERE.host, 7, 300.0), HIDDEN, False, 60.0, True),
        (Owner("t", HERE.host, 100, 5000.0), 5000.0, True, 1e9, False),
        (Owner("t", HERE.host, 100, 5000.0), 5000.0, False, 0.0, True),
        (Owner("t", "boot-2 4026531836", 7, 300.0), 300.0, False, 59.0, False),
        (Owner("t", "boot-2 4026531836", 7, 300.0), None, False, 59.0, False),
        (Owner("t", "boot-2 4026531836", 7, 300.0), 300.0, False, 60.0, True),
        (Owner("t", "boot-1 4026532000", 7, 300.0), None, False, 59.0, False),
    ],
)
def test_an_owner_is_judged_by_its_process_here_and_by_its_silence_elsewhere(
    owner: Owner, started: float | None, working_here: bool, silent_s: float, expected: bool
) -> None:
    got = is_gone(owner, HERE, started=started, working_here=working_here, silent_s=silent_s)
    assert got is expected


def elsewhere(heartbeat: str) -> Trial:
    claim = Claim(Owner("t", "another host", 7, 300.0), "s", -1)
    return Trial("f", "run", "name", (Attempt(1, -1, None, claim),), heartbeat)


def test_an_owner_elsewhere_is_gone_once_its_heartbeat_stood_still_for_a_minute() -> None:
    now = [1000.0]
    observer = Observer(lambda: now[0])
    for beat in ("1:0", "1:1", "1:1", "1:1", "1:1", "1:1", "1:1"):
        assert not observer.is_gone(elsewhere(beat))
        now[0] += 10.0
    assert observer.is_gone(elsewhere("1:1"))
    assert not observer.is_gone(elsewhere("1:2"))


def test_time_in_which_nobody_looked_hardly_counts() -> None:
    now = [0.0]
    observer = Observer(lambda: now[0])
    assert not observer.is_gone(elsewhere("1:5"))
    now[0] += 3600.0  # the store was away: nobody could have beaten
    assert not observer.is_gone(elsewhere("1:5"))


def test_this_process_knows_itself_again() -> None:
    assert (myself().host, myself().pid, myself().start_time) == (
        myself().host,
        myself("other").pid,
        myself("other").start_time,
    )
    assert myself().start_time > 0
