"""What a user sees of a running sweep."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from mnist_hydra.sweep.show import Display, Shown, duration, events, shown, summary, time_left
from mnist_hydra.sweep.trial import Attempt, Owner, Trial

ONE = Shown("model=model1", "waiting", epochs=4)
TWO = Shown("model=model2", "running", epochs=4, epoch=1, accuracy=0.98, ends=(None,))


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
    owner = Owner("token", "host", 1, 0.0)
    attempts = (Attempt(1, owner, "by", -1, "died"), Attempt(2, owner, "by", 8))
    trial = Trial("f", "run", "x", attempts, epoch=2, metrics={"test/acc": 0.5, "val/acc": 0.75})
    assert shown("lr=0.1", 4, trial) == Shown("lr=0.1", "running", 4, 2, 0.75, ("died", None), "")
    assert shown("lr=0.1", 4, None) == Shown("lr=0.1", "waiting", 4)


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
    line = summary([ONE, TWO, stopped, pruned], total=10, left_s=61)
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
