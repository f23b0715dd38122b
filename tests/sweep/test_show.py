"""What a user sees of a sweep: before it starts, while it runs, and of its end."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mnist_hydra.ledger.next_action import Action
from mnist_hydra.ledger.owner import Owner
from mnist_hydra.ledger.trial import Attempt, Trial
from mnist_hydra.sweep.show import (
    Display,
    Shown,
    counts,
    duration,
    events,
    other_origin,
    outcome,
    overview,
    shown_of,
    time_left,
    trial_line,
)

ONE = Shown("model=model1", "waiting", epochs=4)
TWO = Shown("model=model2", "running", epochs=4, epoch=1, accuracy=0.98, ends=(None,))

COMMIT = "mlflow.source.git.commit"
DATA = "mnist_hydra.data_sha256"
OWNER = Owner("token", "host", 1, 0.0)


def trial(end: str | None, epoch: int = 3, **made_by: str) -> Trial:
    attempts = (Attempt(1, OWNER, "sweeper", -1, end),)
    metrics = {"val/acc": 0.9875}
    return Trial(
        "f", "run1", "lr=0.1", attempts, epoch=epoch, metrics=metrics, made_by=made_by
    )


def test_the_overview_counts_what_becomes_of_the_trials() -> None:
    actions = {"1": Action.DONE, "2": Action.DONE, "3": Action.START, "4": Action.RESUME}
    assert overview(actions, 4) == "4 trials: 1 to run, 1 to be continued, 2 done and skipped"
    assert overview({"1": Action.START}, 1) == "1 trial: 1 to run"
    assert overview({"1": Action.WAIT}, 9) == "9 trials: 1 run by another process, 8 to be proposed"


def test_the_end_is_told_in_one_line() -> None:
    done = {"1": Action.DONE, "2": Action.DONE}
    assert outcome(done) == "2 of 2 trials done"
    more = {"3": Action.GIVE_UP, "4": Action.RESUME, "5": Action.START}
    assert outcome(done | more) == "2 of 5 trials done, 1 failed, 2 not finished"


def test_each_trial_is_listed_with_what_will_be_done_and_why() -> None:
    assert trial_line("lr=0.1", Action.START, None, "val/acc").split() == ["to", "run", "lr=0.1"]
    assert trial_line("lr=0.1", Action.DONE, trial("finished"), "val/acc").endswith(
        "lr=0.1 (finished after epoch 3, val/acc 0.9875; run run1)"
    )
    resumed = trial_line("x", Action.RESUME, trial("interrupted"), "val/acc")
    assert "(stopped, after epoch 3" in resumed
    assert "(failed in attempt 1" in trial_line("x", Action.RETRY, trial("failed"), "val/acc")
    assert "(running, after epoch 3" in trial_line("x", Action.WAIT, trial(None), "val/acc")


def test_results_of_other_code_or_data_are_used_with_one_warning() -> None:
    trials = {
        "1": trial("finished", **{COMMIT: "aaaa", DATA: "d1"}),
        "2": trial("finished", **{COMMIT: "bbbb", DATA: "d1"}),
        "3": trial("failed", **{COMMIT: "cccc", DATA: "d9"}),
    }
    warning = other_origin(trials, {COMMIT: "aaaa", DATA: "d2"})
    assert warning is not None and "\n" not in warning
    assert "git.commit aaaa (1), bbbb (1), now aaaa" in warning
    assert "data_sha256 d1 (2), now d2" in warning
    assert "cccc" not in warning


def test_no_warning_where_all_is_the_same_or_cannot_be_known() -> None:
    trials = {"1": trial("finished", **{COMMIT: "aaaa", DATA: "d1"})}
    assert other_origin(trials, {COMMIT: "aaaa"}) is None
    assert other_origin(trials, {COMMIT: "aaaa", DATA: "d1"}) is None
    assert other_origin({}, {COMMIT: "aaaa"}) is None
    mixed = trials | {"2": trial("finished", **{COMMIT: "aaaa", DATA: "d2"})}
    assert "data_sha256 d1 (1), d2 (1)" in (other_origin(mixed, {COMMIT: "aaaa"}) or "")


def test_each_change_of_a_trial_is_told_once() -> None:
    before = {"1": ONE, "2": TWO}
    after = {
        "1": replace(ONE, state="running", ends=(None,)),
        "2": replace(TWO, state="finished", ends=("finished",), epoch=4, accuracy=0.991),
    }
    assert events(before, after) == [
        "model=model1: started",
        "model=model2: finished after epoch 4, accuracy 99.10%",
    ]
    assert events(after, after) == []
    assert events(after, {**after, "1": replace(after["1"], epoch=3)}) == []


def test_a_failure_is_told_with_its_last_lines() -> None:
    failed = replace(TWO, state="failed", ends=("failed",), error="  File x\nValueError: no")
    assert events({"2": TWO}, {"2": failed}) == [
        "model=model2: FAILED in attempt 1\n      File x\n    ValueError: no"
    ]


def test_no_attempt_is_passed_over_however_long_nobody_looked() -> None:
    now = replace(TWO, ends=("died", "failed", "timeout", "interrupted", None), epoch=3, error="x")
    assert events({"2": TWO}, {"2": now}) == [
        "model=model2: its process died after epoch 3, to be continued",
        "model=model2: FAILED in attempt 2",
        "model=model2: TIMED OUT in attempt 3",
        "model=model2: stopped after epoch 3, to be continued",
        "model=model2: goes on after epoch 3 (attempt 5)",
    ]


def test_what_a_trial_is_shown_as_follows_from_the_ledger() -> None:
    attempts = (Attempt(1, OWNER, "by", -1, "died"), Attempt(2, OWNER, "by", 8))
    metrics = {"test/acc": 0.5, "val/acc": 0.75}
    running = Trial("f", "run", "x", attempts, epoch=2, metrics=metrics)
    expected = Shown("lr=0.1", "running", 4, 2, 0.75, ("died", None), "")
    assert shown_of("lr=0.1", 4, running) == expected
    assert shown_of("lr=0.1", 4, None) == Shown("lr=0.1", "waiting", 4)


def test_the_time_left_follows_from_the_pace_so_far() -> None:
    assert time_left(0, 10.0, 5) is None
    assert time_left(4, 10.0, 8) == 20.0
    assert time_left(4, 10.0, 0) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min"),
        (65, "1 min 5 s"),
        (3600 * 5 + 61, "5 h 1 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_summary_counts_trials_that_the_ledger_does_not_know_yet_as_waiting() -> None:
    stopped = replace(ONE, state="interrupted")
    pruned = replace(TWO, state="pruned")
    line = counts([ONE, TWO, stopped, pruned], total=10, left_s=61)
    assert line == "1 of 10 done (1 pruned), 1 running, 0 failed, 8 waiting, about 1 min 1 s left"


def test_on_a_terminal_a_table_shows_what_runs_and_failures_stay_above_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console, total=2, epochs=4) as display:
        display.update({"2": TWO}, now_s=0.0)
        display.update({"2": replace(TWO, epoch=2)}, now_s=10.0)
        seen = console.file.getvalue()  # type: ignore[attr-defined]
        assert "model=model2" in seen and "2/4" in seen and "98.00%" in seen
        assert "about 1 min left" in seen
        failed = replace(TWO, state="failed", ends=("failed",), error="boom")
        display.update({"2": failed}, now_s=20.0)
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert "model=model2: FAILED in attempt 1\n    boom" in seen


def test_elsewhere_there_is_a_line_per_event_and_nothing_else() -> None:
    console = Console(file=io.StringIO(), width=60)
    with Display(console, total=2, epochs=4) as display:
        display.update({"2": TWO}, now_s=0.0)
        display.update({"2": replace(TWO, epoch=2)}, now_s=10.0)
        display.update(
            {"2": replace(TWO, epoch=4, state="finished", ends=("finished",))}, now_s=10.0
        )
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "model=model2: finished after epoch 4, accuracy 98.00%\n"
    )
