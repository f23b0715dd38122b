"""The ledger in a real store: claims, ends, deletions, races."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.store.entities import PagedList

from mnist_hydra.errors import UserError
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import Observer, Owner, myself, new_token, working
from mnist_hydra.ledger.parent import elect_parent, pages_of
from mnist_hydra.ledger.trial import End, Point, Trial, claim_key, end_key, trial_of
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import history_of
from tests.ledger.others import again, delete_for_good
from tests.sweep_process import race_four

SWEEPER = "sweeper"


@pytest.fixture
def owner() -> Iterator[Owner]:
    with working() as owner:
        yield owner


def claimed(ledger: Ledger, owner: Owner, trial: Trial | None = None) -> Trial:
    """The trial "a", claimed as the ledger had it when it was read last."""
    found = ledger.claim("a", "trial=a", trial, owner, SWEEPER)
    assert found is not None
    return found


def test_a_trial_may_have_a_name_longer_than_mlflow_keeps(ledger: Ledger, owner: Owner) -> None:
    trial = ledger.claim("a", "steps=" + "x" * 10_000, None, owner, SWEEPER)
    assert trial is not None and trial.name.startswith("steps=xxx") and len(trial.name) == 250
    assert ledger.client.get_run(trial.run_id).info.run_name == trial.name


def test_a_trial_can_be_followed_from_its_claim_to_its_end(ledger: Ledger, owner: Owner) -> None:
    assert again(ledger).read().trials == {}
    ledger.read()
    trial = claimed(ledger, owner)
    running = again(ledger).read().trials["a"]
    assert (running.state, running.number, running.heartbeat) == ("running", 1, "1:0")
    assert (running.owner, running.attempts[0].claim.by) == (owner, SWEEPER)

    client = ledger.client
    newest = {"slot": 0, "sha256": "", "epoch": 2, "step": 236}
    client.set_tag(trial.run_id, tag.CHECKPOINT, json.dumps(newest))
    client.set_tag(trial.run_id, tag.COMMIT, "c0ffee")
    client.log_batch(trial.run_id, metrics=[Metric("val/acc", 0.9, 1, 1)])
    client.log_batch(trial.run_id, metrics=[Metric("val/acc", 0.95, 2, 2)])
    assert ledger.beat(trial, 1)
    seen = again(ledger).read().trials["a"]
    assert (seen.heartbeat, seen.epoch, seen.step) == ("1:1", 2, 236)
    assert ledger.end(trial, "finished", seconds=12.5)

    done = again(ledger).read().trials["a"]
    assert (done.state, done.epoch, done.step) == ("finished", 2, 236)
    assert done.attempts[0].end is not None and done.attempts[0].end.seconds == 12.5
    assert done.metrics == {"val/acc": 0.95}
    assert done.made_by == {tag.COMMIT: "c0ffee"}
    assert done.name == "trial=a"
    run = client.get_run(trial.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == ledger.parent_id
    assert run.data.params == {}, "bookkeeping is no hyperparameter"
    assert client.get_run(ledger.parent_id).data.params == {}
    assert history_of(client, done.run_id, "val/acc") == {1: 0.9, 2: 0.95}


def test_what_is_done_is_read_in_one_request_however_many_trials_there_are(
    store: tuple[str, MlflowClient], ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    trial = claimed(ledger, owner)
    ledger.end(trial, "finished")
    asked: list[str] = []

    class Counting(MlflowClient):
        def get_run(self, run_id: str) -> Run:
            asked.append(run_id)
            return super().get_run(run_id)

    reader = Ledger(Counting(store[0]), ledger.parent_id)
    assert reader.read().trials["a"].state == "finished"
    assert len(asked) == 2 and asked[0] == ledger.parent_id and trial.run_id not in asked


def test_the_second_to_claim_an_attempt_is_refused_and_leaves_no_run(
    store: tuple[str, MlflowClient], ledger: Ledger, owner: Owner
) -> None:
    late, later = again(ledger), again(ledger)
    for reader in (late, later, ledger):
        reader.read()
    trial = claimed(ledger, owner)
    assert late.claim("a", "trial=a", None, myself(new_token()), SWEEPER) is None
    runs = store[1].search_runs([ledger.experiment_id])
    assert {run.info.run_id for run in runs} == {ledger.parent_id, trial.run_id}
    # Who knows by now that it is claimed does not even try.
    later.read(up_to_date=True)
    assert later.claim("a", "trial=a", None, myself(new_token()), SWEEPER) is None


def test_claims_are_written_at_once_though_mlflow_is_asked_to_queue_what_it_logs(
    ledger: Ledger, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    late = again(ledger)
    late.read()
    trial = claimed(ledger, owner)
    assert late.claim("a", "trial=a", None, myself(new_token()), SWEEPER) is None
    assert ledger.end(trial, "finished")
    seen = again(ledger).read().trials["a"]
    assert (seen.state, seen.owner) == ("finished", owner)


def _claim_all(client: MlflowClient, parent: str, path: str) -> None:
    ledger = Ledger(client, parent)
    ledger.read()
    for fingerprint in "abc":
        trial = ledger.claim(fingerprint, fingerprint, None, myself(new_token()), SWEEPER)
        if trial is not None:
            with open(path, "a") as file:
                file.write(f"{fingerprint} {trial.run_id}\n")


def test_of_processes_that_race_one_gets_each_claim(
    store: tuple[str, MlflowClient], ledger: Ledger, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    race_four(store[0], _claim_all, ledger.parent_id, str(journal))
    trials = again(ledger).read().trials
    assert sorted(journal.read_text().split()) == sorted(
        word for f, trial in trials.items() for word in (f, trial.run_id)
    )
    alive = store[1].search_runs([ledger.experiment_id])
    assert len(alive) == 1 + 3


def test_a_sweep_whose_entries_were_deleted_says_how_to_get_them_back(
    ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    claimed(ledger, owner)
    name = ledger.client.get_experiment(ledger.experiment_id).name
    books = ledger.client.get_experiment_by_name(f"{name}.ledger")
    assert books is not None
    [book] = ledger.client.search_runs([books.experiment_id])
    ledger.client.delete_run(book.info.run_id)
    with pytest.raises(UserError, match="mlflow runs restore.*sweep.fresh=true"):
        again(ledger).read()
    ledger.client.restore_run(book.info.run_id)
    assert set(again(ledger).read().trials) == {"a"}


def test_a_trial_whose_run_was_deleted_counts_as_never_made(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    first = claimed(ledger, owner)
    ledger.end(first, "finished")
    ledger.client.delete_run(first.run_id)
    later = again(ledger)
    assert later.read().trials == {}
    second = claimed(later, owner)
    assert second.run_id != first.run_id
    now = again(ledger).read().trials["a"]
    assert (now.run_id, now.number) == (second.run_id, 1)


def test_trials_whose_runs_are_gone_for_good_count_as_never_made(
    store: tuple[str, MlflowClient], ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    runs = []
    for fingerprint in "abcd":
        trial = ledger.claim(fingerprint, fingerprint, None, owner, SWEEPER)
        assert trial is not None and ledger.end(trial, "finished")
        runs.append(trial.run_id)
    delete_for_good(store[1], runs[0])
    later = again(ledger)
    assert set(later.read().trials) == {"b", "c", "d"}
    assert claimed(later, owner).run_id != runs[0]
    # A trial that was made anew for one that is gone by now may be deleted in its turn.
    anew = again(ledger).read().trials["a"].run_id
    delete_for_good(store[1], anew)
    assert set(again(ledger).read().trials) == {"b", "c", "d"}


def test_no_run_is_listed_to_see_that_none_is_gone(
    store: tuple[str, MlflowClient], ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    for fingerprint in "abcd":
        trial = ledger.claim(fingerprint, fingerprint, None, owner, SWEEPER)
        assert trial is not None and ledger.end(trial, "finished")
    listed: list[str] = []

    class Counting(MlflowClient):
        def search_runs(self, *args: Any, **kwargs: Any) -> PagedList[Run]:
            found = super().search_runs(*args, **kwargs)
            listed.extend(run.info.run_id for run in found)
            return found

    reader = Ledger(Counting(store[0]), ledger.parent_id)
    assert len(reader.read().trials) == 4
    assert len(listed) == 1


def test_a_run_deleted_while_it_is_watched_is_no_trial_any_more(
    ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    reader = again(ledger)
    trial = claimed(ledger, owner)
    assert reader.read().trials["a"].run_id == trial.run_id
    ledger.client.delete_run(trial.run_id)
    assert not ledger.beat(trial, 1), "whoever trains it is told"
    assert not ledger.end(trial, "finished")
    assert reader.read(up_to_date=True).trials == {}
    assert claimed(reader, owner).run_id != trial.run_id


def test_a_run_deleted_between_two_attempts_is_not_claimed(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    ledger.end(claimed(ledger, owner), "failed")
    trial = ledger.read().trials["a"]
    ledger.client.delete_run(trial.run_id)
    assert ledger.claim("a", "trial=a", trial, owner, SWEEPER) is None


def test_who_was_taken_for_dead_can_record_nothing_more(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    first = claimed(ledger, owner)
    other = again(ledger)
    dead = other.read().trials["a"]
    assert other.end(dead, "died")
    assert not ledger.beat(first, 7)
    trial = other.read().trials["a"]
    assert trial.state == "died"
    second = claimed(other, myself(new_token()), trial)
    assert not ledger.beat(first, 8)
    assert not ledger.end(first, "finished")
    now = again(ledger).read().trials["a"]
    assert (now.state, now.number) == ("running", 2)
    assert ledger.client.get_run(second.run_id).info.status == "RUNNING"
    assert other.end(second, "failed", error="x" * 5000 + "the last line")
    now = again(ledger).read().trials["a"]
    assert now.state == "failed"
    assert now.error.endswith("the last line")
    assert [attempt.state for attempt in now.attempts] == ["died", "failed"]


def test_an_attempt_whose_run_another_closed_late_is_shown_as_running_again(
    ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    first = claimed(ledger, owner)
    ledger.end(first, "failed")
    second = claimed(ledger, owner, ledger.read().trials["a"])
    ledger.close(ledger.client.get_run(first.run_id), "failed")  # late
    assert ledger.beat(second, 1)
    run = ledger.client.get_run(second.run_id)
    assert (run.info.status, run.data.tags["state"]) == ("RUNNING", "running")


def test_an_end_is_recorded_once(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    other = again(ledger)
    trial = claimed(ledger, owner)
    seen = other.read().trials["a"]
    assert ledger.end(trial, "finished")
    ended_at = ledger.client.get_run(trial.run_id).info.end_time
    assert not other.end(seen, "died")
    assert again(ledger).read().trials["a"].state == "finished"
    info = ledger.client.get_run(trial.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended_at)


def test_a_trial_whose_worker_died_after_the_last_epoch_ended_with_that_epoch(
    ledger: Ledger, owner: Owner
) -> None:
    ledger.read()
    trial, client = claimed(ledger, owner), ledger.client
    rows = [Metric("epoch_s", 1.5, 1_000 * epoch, epoch) for epoch in (1, 2)]
    client.log_batch(trial.run_id, metrics=rows)
    newest = {"slot": 0, "sha256": "", "epoch": 2, "step": 236}
    client.set_tag(trial.run_id, tag.CHECKPOINT, json.dumps(newest))
    ledger.end(trial, "died")
    assert client.get_run(trial.run_id).info.end_time > 2_000
    again_claimed = claimed(ledger, owner, ledger.read(up_to_date=True).trials["a"])
    ledger.end(again_claimed, "finished")
    assert client.get_run(trial.run_id).info.end_time == 2_000


def test_a_finished_trial_shows_no_error_of_an_attempt_before(ledger: Ledger, owner: Owner) -> None:
    first = claimed(ledger, owner)
    assert ledger.end(first, "died", error="process 1 is gone")
    assert ledger.client.get_run(first.run_id).data.tags[tag.ERROR] == "process 1 is gone"
    second = claimed(ledger, owner, ledger.read(up_to_date=True).trials["a"])
    assert ledger.end(second, "finished")
    assert tag.ERROR not in ledger.client.get_run(first.run_id).data.tags
    attempts = again(ledger).read().trials["a"].attempts
    assert [a.end and a.end.error for a in attempts] == ["process 1 is gone", ""], "nothing is lost"


def test_a_run_is_closed_though_the_store_went_away_behind_its_end(
    ledger: Ledger, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = claimed(ledger, owner)
    with monkeypatch.context() as away:

        def close(*_: object) -> None:
            raise ConnectionError("away")

        away.setattr(ledger, "close", close)
        with pytest.raises(ConnectionError):
            ledger.end(trial, "finished", seconds=1.0)
    assert ledger.client.get_run(trial.run_id).info.status == "RUNNING"
    assert ledger.end(trial, "finished", seconds=1.0)
    assert ledger.client.get_run(trial.run_id).info.status == "FINISHED"


def test_the_death_of_an_owner_is_recorded_for_all(ledger: Ledger) -> None:
    ledger.read()
    claimed(ledger, replace(myself(new_token()), start_time=1.0))
    seen = ledger.mark_dead(Observer(lambda: 0.0))
    assert seen.trials["a"].state == "died"
    assert again(ledger).read().trials["a"].state == "died"
    assert f"process {os.getpid()} on" in seen.trials["a"].error


def test_a_worker_elsewhere_whose_trials_are_short_is_not_taken_for_dead(
    ledger: Ledger, owner: Owner
) -> None:
    now = [0.0]
    elsewhere, observer = replace(owner, host="elsewhere"), Observer(lambda: now[0])
    for number in range(12):  # each is seen once, at its first beat, and 10 s later the next one
        ledger.read(up_to_date=True)
        trial = ledger.claim(f"t{number}", "short", None, elsewhere, SWEEPER)
        assert trial is not None and trial.heartbeat == "1:0"
        seen = ledger.mark_dead(observer, up_to_date=True)
        assert seen.trials[trial.fingerprint].state == "running"
        assert ledger.end(trial, "finished")
        now[0] += 10.0


def test_an_owner_that_works_here_is_not_dead(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    claimed(ledger, owner)
    assert ledger.mark_dead(Observer(lambda: 0.0)).trials["a"].state == "running"


def test_what_a_dead_process_left_half_done_is_finished(ledger: Ledger, owner: Owner) -> None:
    ledger.read()
    dead = replace(myself(new_token()), start_time=1.0)
    client = ledger.client
    trial = claimed(ledger, dead)
    end = End("finished", 1.0, 3, 30, {"val/acc": 0.9}, "", {})
    client.log_batch(trial.run_id, metrics=[Metric("epoch_s", 1.5, 3_000, 3)])
    ledger.write_once(end_key("a", 1), end.text())  # and died
    tags = {"mlflow.parentRunId": ledger.parent_id, tag.CREATOR: dead.text()}
    orphan = client.create_run(ledger.experiment_id, tags=tags).info.run_id  # and died
    tags[tag.CREATOR] = owner.text()
    made = client.create_run(ledger.experiment_id, tags=tags).info.run_id  # and lives
    view = again(ledger).read()
    assert set(view.trials) == {"a"}
    assert view.trials["a"].state == "finished"
    ledger.finish_half_done(Observer(lambda: 0.0))
    closed = client.get_run(trial.run_id).info
    assert (closed.status, closed.end_time) == ("FINISHED", 3_000)
    assert client.get_run(orphan).info.lifecycle_stage == "deleted"
    assert client.get_run(made).info.lifecycle_stage == "active"


def test_a_run_made_for_a_trial_that_was_claimed_in_another_one_is_deleted_wherever_it_was_made(
    ledger: Ledger, owner: Owner
) -> None:
    client, elsewhere = ledger.client, replace(owner, host="elsewhere")
    ledger.read()
    trial = claimed(ledger, elsewhere)
    tags = {tag.PARENT: ledger.parent_id, tag.CREATOR: elsewhere.text(), tag.HEARTBEAT: "1:0"}

    def made(fingerprint: str) -> str:
        about = tags | {tag.FINGERPRINT: fingerprint}
        return str(client.create_run(ledger.experiment_id, tags=about).info.run_id)

    twin, next_one = made("a"), made("b")  # which it may be about to claim
    again(ledger).finish_half_done(Observer(lambda: 0.0))
    stages = [client.get_run(r).info.lifecycle_stage for r in (trial.run_id, twin, next_one)]
    assert stages == ["active", "deleted", "active"]


def test_points_are_numbered_without_gaps_and_never_overwritten(ledger: Ledger) -> None:
    ledger.read()
    point = Point("f0", ("lr=0.1",), "lr=0.1", number=0, values={"lr": 0.1})
    assert ledger.propose(point)
    assert ledger.propose(point)  # asking again after a lost answer does no harm
    other = replace(point, fingerprint="f1", overrides=("lr=0.2",), values={"lr": 0.2})
    assert not ledger.propose(other)
    assert again(ledger).read().points == [point]


def test_a_request_to_stop_reaches_one_sweepers_trials_and_the_first_reason_stands(
    ledger: Ledger,
) -> None:
    ledger.read()
    ledger.stop("two", "Ctrl-C")
    again(ledger).stop("two", "SIGTERM")
    assert again(ledger).read().stops == {"two": "Ctrl-C"}
    assert ledger.stopped("two")
    assert not ledger.stopped("one")


def test_entries_are_of_one_sweep(store: tuple[str, MlflowClient], ledger: Ledger) -> None:
    other = elect_parent(store[1], ledger.experiment_id, "feed", name="another", tags={})
    ledger.write_once("complete/run", "me")
    assert not ledger.write_once("complete/run", "you")
    assert ledger.holds("complete/run") and ledger.entries("complete/") == {"run": "me"}
    assert not Ledger(store[1], other.info.run_id).holds("complete/run")


def test_the_entries_of_a_larger_sweep_are_on_several_pages_and_are_read_together(
    store: tuple[str, MlflowClient], experiment: str, owner: Owner
) -> None:
    client = store[1]
    elected = elect_parent(client, experiment, "beef", name="large", tags={}, trials=1_001)
    ledger = Ledger(client, elected.info.run_id)
    ledger.read()
    for fingerprint in "abcdefgh":
        trial = ledger.claim(fingerprint, fingerprint, None, owner, SWEEPER)
        assert trial is not None and ledger.holds(claim_key(fingerprint, 1))
        assert ledger.end(trial, "finished")
        assert again(ledger).claim(fingerprint, fingerprint, None, owner, SWEEPER) is None
    ledger.propose(Point("a", ("lr=0.1",), "lr=0.1", number=0, values={"lr": 0.1}))
    ledger.stop("one", "Ctrl-C")
    view = again(ledger).read()
    assert sorted(view.trials) == list("abcdefgh") and len(view.points) == 1
    assert {trial.state for trial in view.trials.values()} == {"finished"}
    assert view.stops == {"one": "Ctrl-C"}

    pages = pages_of(client.get_run(elected.info.run_id))[1]
    keys = [list(client.get_run(page).data.params) for page in pages]
    assert len(pages) == 3 and all(keys), "each has some"
    of_trials = [{trial_of(key) for key in page} - {None} for page in keys]
    assert sum(map(len, of_trials)) == 8, "all entries of one trial are on one page"

    client.delete_run(pages[1])
    with pytest.raises(UserError, match=f"{pages[1]}.*mlflow runs restore"):
        again(ledger).read()
