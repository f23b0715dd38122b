"""What a sweep says before it starts."""

from __future__ import annotations

from mnist_hydra.sweep.decide import Action
from mnist_hydra.sweep.show import other_origin, outcome, overview, trial_line
from mnist_hydra.sweep.trial import Attempt, Owner, Trial

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
