"""The ledger against real SQLite: what is written once, what is read back, and races for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, ViewType

from mnist_hydra.sweep.ledger import Ledger
from mnist_hydra.sweep.liveness import Observer, Working, made_here, myself, new_token
from mnist_hydra.sweep.parent import Parent, elect_parent, find_parent
from mnist_hydra.sweep.trial import RESULT_TAG, Owner, Point, Trial
from mnist_hydra.sweep.worker import bury, tidy
from mnist_hydra.tracking import CHECKPOINT_TAG, COMMIT_TAG
from tests.sweep_process import new_store, processes, race

SWEEPER = "sweeper"
pytestmark = pytest.mark.xdist_group("sweep_ledger")  # they share a store, which is slow to make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, MlflowClient]:
    client = new_store(tmp_path_factory.mktemp("store"))
    return client.tracking_uri, client


@pytest.fixture
def experiment(
    store: tuple[str, MlflowClient], request: pytest.FixtureRequest, tmp_path: Path
) -> str:
    return store[1].create_experiment(request.node.name, artifact_location=tmp_path.as_uri())


@pytest.fixture
def ledger(store: tuple[str, MlflowClient], experiment: str) -> Ledger:
    parent = elect_parent(store[1], experiment, "0123456789abcdef", name="sweep", tags={})
    return Ledger(store[1], experiment, parent.run_id)


@pytest.fixture
def owner() -> Iterator[Owner]:
    with Working() as owner:
        yield owner


def entered(ledger: Ledger, fingerprint: str = "a") -> Trial:
    trial = ledger.register(fingerprint, f"trial={fingerprint}", myself("creator"))
    assert trial is not None
    return trial


def again(ledger: Ledger) -> Ledger:
    """The same ledger as a process reads it that knows nothing yet."""
    return Ledger(ledger.client, ledger.experiment_id, ledger.parent_id)


def test_a_trial_can_be_followed_from_its_entry_to_its_end(ledger: Ledger, owner: Owner) -> None:
    trial = entered(ledger)
    assert again(ledger).read().trials["a"].state == "waiting"

    claimed = ledger.claim(trial, owner, SWEEPER)
    assert claimed is not None
    running = again(ledger).read().trials["a"]
    assert (running.state, running.number, running.heartbeat) == ("running", 1, "1:0")
    assert running.attempts[0].claim is not None
    assert running.attempts[0].claim.owner == owner

    client = ledger.client
    client.set_tag(trial.run_id, CHECKPOINT_TAG, json.dumps({"slot": 0, "epoch": 2, "step": 236}))
    client.set_tag(trial.run_id, COMMIT_TAG, "c0ffee")
    client.log_batch(trial.run_id, metrics=[Metric("val/acc", 0.9, 1, 1)])
    client.log_batch(trial.run_id, metrics=[Metric("val/acc", 0.95, 2, 2)])
    assert ledger.beat(claimed, 1)
    assert ledger.end(claimed, "finished", seconds=12.5)

    done = again(ledger).read().trials["a"]
    assert (done.state, done.epoch, done.step, done.seconds) == ("finished", 2, 236, 12.5)
    assert done.metrics == {"val/acc": 0.95}
    assert done.made_by == {COMMIT_TAG: "c0ffee"}
    assert done.name == "trial=a"
    run = client.get_run(trial.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == ledger.parent_id
    assert ledger.history(done, "val/acc") == {1: 0.9, 2: 0.95}


def test_what_is_done_is_read_from_the_parent_alone(ledger: Ledger, owner: Owner) -> None:
    claimed = ledger.claim(entered(ledger), owner, SWEEPER)
    assert claimed is not None
    ledger.end(claimed, "finished")
    reader = again(ledger)
    asked: list[str] = []
    get_run = reader.client.get_run

    class Counting(MlflowClient):
        def get_run(self, run_id: str) -> object:  # type: ignore[override]
            asked.append(run_id)
            return get_run(run_id)

    reader.client = Counting(ledger.client.tracking_uri)
    assert reader.read().trials["a"].state == "finished"
    assert asked == [ledger.parent_id]


def test_the_second_to_enter_a_trial_is_refused_and_leaves_no_run(
    store: tuple[str, MlflowClient], ledger: Ledger
) -> None:
    late = again(ledger)
    late.read()
    trial = entered(ledger)
    assert late.register("a", "trial=a", myself()) is None
    runs = store[1].search_runs([ledger.experiment_id])
    assert {run.info.run_id for run in runs} == {ledger.parent_id, trial.run_id}


def test_the_second_to_claim_an_attempt_is_refused(ledger: Ledger, owner: Owner) -> None:
    trial = entered(ledger)
    assert ledger.claim(trial, owner, SWEEPER) is not None
    assert ledger.claim(trial, myself(new_token()), SWEEPER) is None


def _register_and_claim(client: MlflowClient, experiment: str, parent: str, path: str) -> None:
    ledger = Ledger(client, experiment, parent)
    for fingerprint in "abc":
        ledger.register(fingerprint, fingerprint, myself())
        trial = Ledger(client, experiment, parent).read().trials[fingerprint]
        if trial.number == 0 and ledger.claim(trial, myself(new_token()), SWEEPER) is not None:
            with open(path, "a") as file:
                file.write(f"{fingerprint} {trial.run_id}\n")


def _elect(client: MlflowClient, experiment: str, path: str) -> None:
    parent = elect_parent(client, experiment, "feedfeedfeedfeed", name="s", tags={"k": "v"})
    with open(path, "a") as file:
        file.write(f"{parent.run_id} {parent.made_now}\n")


def test_of_processes_that_race_one_gets_each_claim(
    store: tuple[str, MlflowClient], ledger: Ledger, tmp_path: Path
) -> None:
    context = processes()
    start = context.Barrier(4)
    journal = tmp_path / "journal"
    arguments = (ledger.experiment_id, ledger.parent_id, str(journal))
    racers = [
        context.Process(target=race, args=(store[0], start, _register_and_claim, *arguments))
        for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    trials = again(ledger).read().trials
    assert sorted(journal.read_text().split()) == sorted(
        word for f, trial in trials.items() for word in (f, trial.run_id)
    )
    alive = store[1].search_runs([ledger.experiment_id])
    assert len(alive) == 1 + 3


def test_of_processes_that_race_one_makes_the_parent_and_all_get_it(
    store: tuple[str, MlflowClient], experiment: str, tmp_path: Path
) -> None:
    context = processes()
    start = context.Barrier(4)
    journal = tmp_path / "journal"
    racers = [
        context.Process(target=race, args=(store[0], start, _elect, experiment, str(journal)))
        for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert len({run_id for run_id, _ in lines}) == 1
    assert sum(made_now == "True" for _, made_now in lines) == 1
    assert len(store[1].search_runs([experiment])) == 1
    names = [e.name for e in store[1].search_experiments(view_type=ViewType.ACTIVE_ONLY)]
    assert not [name for name in names if ".sweep." in name]


def test_starting_over_passes_over_the_parent_that_there_is(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    def elect(fresh: bool = False) -> Parent:
        return elect_parent(store[1], experiment, "abc", name="s", tags={}, fresh=fresh)

    assert find_parent(store[1], experiment, "abc") is None
    first = elect()
    assert first.made_now
    assert elect().run_id == first.run_id
    assert not elect().made_now
    second = elect(fresh=True)
    assert (second.generation, second.made_now) == (1, True)
    found = find_parent(store[1], experiment, "abc")
    assert found is not None
    assert found.run_id == second.run_id
    assert found.run_id != first.run_id


def test_a_parent_that_was_deleted_is_made_anew(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    first = elect_parent(store[1], experiment, "abc", name="s", tags={})
    store[1].delete_run(first.run_id)
    second = elect_parent(store[1], experiment, "abc", name="s", tags={})
    assert second.made_now
    assert second.run_id != first.run_id


def test_an_elected_parent_whose_maker_died_at_once_is_still_the_parent(
    store: tuple[str, MlflowClient], experiment: str
) -> None:
    name = store[1].get_experiment(experiment).name
    run_id = store[1].create_run(experiment, run_name="s").info.run_id
    store[1].create_experiment(f"{name}.sweep.abc.0", tags={"mnist_hydra.parent": run_id})
    assert find_parent(store[1], experiment, "abc") is None
    assert elect_parent(store[1], experiment, "abc", name="s", tags={}).run_id == run_id
    found = find_parent(store[1], experiment, "abc")
    assert found is not None
    assert found.run_id == run_id


def test_a_trial_whose_run_was_deleted_is_entered_anew(ledger: Ledger, owner: Owner) -> None:
    claimed = ledger.claim(entered(ledger), owner, SWEEPER)
    assert claimed is not None
    ledger.end(claimed, "finished")
    ledger.client.delete_run(claimed.run_id)
    later = again(ledger)
    assert later.read().trials == {}
    second = entered(later)
    assert second.run_id != claimed.run_id
    assert again(ledger).read().trials["a"].run_id == second.run_id


def test_a_run_deleted_while_it_is_watched_is_no_trial_any_more(
    ledger: Ledger, owner: Owner
) -> None:
    reader = again(ledger)
    trial = entered(ledger)
    assert reader.read().trials["a"].run_id == trial.run_id
    ledger.client.delete_run(trial.run_id)
    assert reader.read().trials == {}
    assert entered(reader).run_id != trial.run_id


def test_who_was_taken_for_dead_can_record_nothing_more(ledger: Ledger, owner: Owner) -> None:
    first = ledger.claim(entered(ledger), owner, SWEEPER)
    assert first is not None
    assert ledger.end(first, "died")
    trial = ledger.read_trial(first)
    assert trial is not None
    assert trial.state == "died"
    second = ledger.claim(trial, myself(new_token()), SWEEPER)
    assert second is not None
    assert not ledger.beat(first, 7)
    assert not ledger.end(first, "finished")
    now = again(ledger).read().trials["a"]
    assert (now.state, now.number) == ("running", 2)
    assert ledger.end(second, "failed", error="x" * 5000 + "the last line")
    now = again(ledger).read().trials["a"]
    assert now.state == "failed"
    assert now.error.endswith("the last line")
    assert [attempt.end for attempt in now.attempts] == ["died", "failed"]


def test_an_end_is_recorded_once(ledger: Ledger, owner: Owner) -> None:
    claimed = ledger.claim(entered(ledger), owner, SWEEPER)
    assert claimed is not None
    assert ledger.end(claimed, "finished")
    assert not ledger.end(claimed, "died")
    assert again(ledger).read().trials["a"].state == "finished"


def test_the_death_of_an_owner_is_recorded_for_all(ledger: Ledger) -> None:
    dead = replace(myself(new_token()), start_time=1.0)
    assert ledger.claim(entered(ledger), dead, SWEEPER) is not None
    seen = bury(ledger, ledger.read(), Observer(lambda: 0.0))
    assert seen.trials["a"].state == "died"
    assert again(ledger).read().trials["a"].state == "died"
    assert f"process {os.getpid()} on" in seen.trials["a"].error


def test_an_owner_that_works_here_is_not_buried(ledger: Ledger, owner: Owner) -> None:
    assert ledger.claim(entered(ledger), owner, SWEEPER) is not None
    assert bury(ledger, ledger.read(), Observer(lambda: 0.0)).trials["a"].state == "running"


def test_what_a_dead_process_left_half_written_is_finished(ledger: Ledger, owner: Owner) -> None:
    dead = replace(myself(new_token()), start_time=1.0)
    client = ledger.client
    claimed = ledger.claim(entered(ledger), dead, SWEEPER)
    assert claimed is not None
    client.set_tag(claimed.run_id, "mnist_hydra.attempt/1", "finished")  # and died
    tags = {"mlflow.parentRunId": ledger.parent_id, "mnist_hydra.creator": dead.text()}
    orphan = client.create_run(ledger.experiment_id, tags=tags).info.run_id  # and died
    view = again(ledger).read()
    assert set(view.trials) == {"a"}
    assert view.trials["a"].state == "finished"
    tidy(ledger, view, Observer(lambda: 0.0))
    assert client.get_run(claimed.run_id).info.status == "FINISHED"
    assert RESULT_TAG + "a" in client.get_run(ledger.parent_id).data.tags
    assert client.get_run(orphan).info.lifecycle_stage == "deleted"


def test_points_are_numbered_without_gaps_and_never_overwritten(ledger: Ledger) -> None:
    point = Point(0, "f0", ("lr=0.1",), {"lr": 0.1})
    assert ledger.propose(0, point)
    assert ledger.propose(0, point)  # asking again after a lost answer does no harm
    assert not ledger.propose(0, Point(0, "f1", ("lr=0.2",), {"lr": 0.2}))
    assert again(ledger).read().points == [point]


def test_stops_and_forgiveness_are_kept_by_sweeper(ledger: Ledger) -> None:
    many = {f"{i:016x}": i % 7 + 1 for i in range(1000)}
    ledger.begin_command("one", many)
    ledger.begin_command("two", {})
    ledger.stop("two", "Ctrl-C")
    view = again(ledger).read()
    assert view.forgiven == {"one": many}
    assert view.stops == {"two": "Ctrl-C"}
    assert ledger.stopped("two") == "Ctrl-C"
    assert ledger.stopped("one") is None


def test_a_token_is_known_where_it_was_made() -> None:
    assert made_here(new_token())
    assert not made_here("0123456789abcdef")
    assert not made_here(None)
    assert myself().pid == os.getpid()
