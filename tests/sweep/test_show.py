"""What a user sees of a sweep: before it starts, while it runs, and of its end."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from mnist_hydra.ledger.next_action import Action
from mnist_hydra.ledger.owner import Owner
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import Attempt, Claim, End, Trial
from mnist_hydra.sweep.show import (
    Display,
    Follower,
    events,
    other_origin,
    outcome,
    overview,
    progress_line,
    trial_line,
)
from mnist_hydra.tracking import tag

WANTED = [Planned(key, (), f"model=model{key}", 4) for key in "12"]
CLAIM = Claim("run1", "lr=0.1", Owner("token", "host", 1, 0.0), "sweeper", -1)


def trial(
    *ends: str | None, epoch: int = 3, accuracy: float = 0.9875, error: str = "", **made_by: str
) -> Trial:
    attempts = tuple(
        Attempt(number, CLAIM, End(end, error=error if end == "failed" else "") if end else None)
        for number, end in enumerate(ends, start=1)
    )
    metrics = {"val/acc": accuracy}
    return Trial(
        "f", "run1", "lr=0.1", attempts, epoch=epoch, metrics=metrics, made_by=made_by
    )


RUNNING = trial(None, epoch=1, accuracy=0.98)


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
        "1": trial("finished", **{tag.COMMIT: "aaaa", tag.DATA: "d1"}),
        "2": trial("finished", **{tag.COMMIT: "bbbb", tag.DATA: "d1"}),
        "3": trial("failed", **{tag.COMMIT: "cccc", tag.DATA: "d9"}),
    }
    warning = other_origin(trials, {tag.COMMIT: "aaaa", tag.DATA: "d2"})
    assert warning is not None and "\n" not in warning
    assert "git.commit aaaa (1), bbbb (1), now aaaa" in warning
    assert " data_sha256 d1 (2), now d2" in warning
    assert "cccc" not in warning


def test_no_warning_where_all_is_the_same_or_cannot_be_known() -> None:
    trials = {"1": trial("finished", **{tag.COMMIT: "aaaa", tag.DATA: "d1"})}
    assert other_origin(trials, {tag.COMMIT: "aaaa"}) is None
    assert other_origin(trials, {tag.COMMIT: "aaaa", tag.DATA: "d1"}) is None
    assert other_origin({}, {tag.COMMIT: "aaaa"}) is None
    mixed = trials | {"2": trial("finished", **{tag.COMMIT: "aaaa", tag.DATA: "d2"})}
    assert "data_sha256 d1 (1), d2 (1)" in (other_origin(mixed, {tag.COMMIT: "aaaa"}) or "")


def test_each_change_of_a_trial_is_told_once() -> None:
    before = {"2": RUNNING}
    after = {"1": trial(None, epoch=0), "2": trial("finished", epoch=4, accuracy=0.991)}
    assert events(WANTED, before, after) == [
        "model=model1: started",
        "model=model2: finished after epoch 4, accuracy 99.10 %",
    ]
    assert events(WANTED, after, after) == []
    assert events(WANTED, after, {**after, "1": replace(after["1"], epoch=3)}) == []


def test_a_failure_is_told_with_its_last_lines() -> None:
    failed = trial("failed", epoch=1, error="  File x\nValueError: no\n")
    assert events(WANTED, {"2": RUNNING}, {"2": failed}) == [
        "model=model2: FAILED in attempt 1\n    File x\n    ValueError: no"
    ]


def test_no_attempt_is_passed_over_however_long_nobody_looked() -> None:
    now = trial("died", "failed", "timeout", "interrupted", None, error="x")
    assert events(WANTED, {"2": RUNNING}, {"2": now}) == [
        "model=model2: its process died after epoch 3",
        "model=model2: FAILED in attempt 2\n    x",
        "model=model2: TIMED OUT in attempt 3",
        "model=model2: stopped after epoch 3, to be continued",
        "model=model2: goes on after epoch 3 (attempt 5)",
    ]


def test_the_summary_counts_trials_that_the_ledger_does_not_know_yet_as_waiting() -> None:
    line = progress_line([RUNNING, trial("interrupted"), trial("pruned")], total=10, left_s=61)
    assert line == "1 of 10 done (1 pruned), 1 running, 0 failed, 8 waiting, about 1:01 left"
    line = progress_line([trial("failed"), trial("timeout")], total=2, left_s=None)
    assert line == "0 of 2 done, 0 running, 2 failed, 0 waiting"


def test_on_a_terminal_a_table_shows_what_runs_and_failures_stay_above_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console, total=2, epochs=4) as display:
        display.update(WANTED, {"2": RUNNING}, now_s=0.0)
        seen = console.file.getvalue()  # type: ignore[attr-defined]
        assert "1/4" in seen and "left" not in seen, "no epoch is done yet"
        display.update(WANTED, {"2": replace(RUNNING, epoch=2)}, now_s=10.0)
        seen = console.file.getvalue()  # type: ignore[attr-defined]
        assert "model=model2" in seen and "2/4" in seen and "98.00 %" in seen
        assert "about 1:00 left" in seen  # ten seconds an epoch, and six epochs to do
        display.update(WANTED, {"2": trial("failed", epoch=2, error="boom")}, now_s=20.0)
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert "model=model2: FAILED in attempt 1\n    boom" in seen


def test_trials_that_are_still_to_be_proposed_count_for_the_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    with Display(console, total=3, epochs=5) as display:
        display.update(WANTED[1:], {"2": RUNNING}, now_s=0.0)
        display.update(WANTED[1:], {"2": replace(RUNNING, epoch=2)}, now_s=10.0)
    assert "about 2:00 left" in console.file.getvalue()  # type: ignore[attr-defined]


def test_elsewhere_there_is_a_line_per_event_and_nothing_else() -> None:
    console = Console(file=io.StringIO(), width=60)
    with Display(console, total=2, epochs=4) as display:
        display.update(WANTED, {"2": RUNNING}, now_s=0.0)
        display.update(WANTED, {"2": replace(RUNNING, epoch=2)}, now_s=10.0)
        display.update(WANTED, {"2": trial("finished", epoch=4, accuracy=0.98)}, now_s=10.0)
    assert console.file.getvalue() == (  # type: ignore[attr-defined]
        "model=model2: finished after epoch 4, accuracy 98.00 %\n"
    )


def test_a_store_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    class Away:
        def read(self, up_to_date: bool) -> None:
            raise OSError("no answer")

    ledger: Any = Away()
    with Display(Console(file=io.StringIO()), total=2, epochs=4) as display:
        with Follower(ledger, display, WANTED, "sweeper", threading.Event()):
            pass  # it looks at the beginning and at the end
    assert caplog.messages == ["the ledger cannot be read: no answer"]
