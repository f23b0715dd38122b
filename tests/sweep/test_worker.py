"""Workers on real SQLite: several real processes share trials, die, are stopped and time out."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mnist_hydra.ledger import ledger
from mnist_hydra.ledger.ledger import Ledger, View, wait_for_store
from mnist_hydra.ledger.owner import myself, new_token
from mnist_hydra.ledger.parent import elect_parent
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import Trial
from mnist_hydra.sweep import attempt
from mnist_hydra.sweep.attempt import Prune
from mnist_hydra.sweep.search import Search
from mnist_hydra.sweep.worker import Worker
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import is_away
from tests.sweep_process import TinyTrial, ended, new_store, plan, processes, settings_of, work

pytestmark = pytest.mark.xdist_group("sweep_worker")  # they share a store, which is slow to make


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    return new_store(tmp_path_factory.mktemp("store"))


class Sweep:
    """One sweep of tiny trials, worked on in this process or in others."""

    def __init__(self, client: MlflowClient, name: str, folder: Path) -> None:
        self.client = client
        self.folder = folder
        self.journal = folder / "journal"
        self.experiment = client.create_experiment(name, artifact_location=folder.as_uri())
        parent = elect_parent(client, self.experiment, "abc", name="sweep", tags={})
        self.parent = parent.info.run_id

    def ledger(self) -> Ledger:
        return Ledger(self.client, self.parent)

    def trials(self) -> dict[str, Trial]:
        return {trial.name: trial for trial in self.ledger().read().trials.values()}

    def pull(
        self,
        planned: list[Planned],
        *,
        by: str = "one",
        search: Search | None = None,
        stop: threading.Event | None = None,
        epochs: int = 3,
        **settings: Any,
    ) -> None:
        train, stop = TinyTrial(self.client, self.journal, epochs), stop or threading.Event()
        own = settings_of(self.parent, by, **settings)
        Worker(self.ledger(), planned, train, own, stop, search).pull()

    def start(self, planned: list[Planned], **more: Any) -> BaseProcess:
        settings = {"by": "one", "grace_s": attempt.GRACE_S, **more}
        uri = self.client.tracking_uri
        process = processes().Process(
            target=work,
            args=(uri, self.parent, planned, self.journal),
            kwargs=settings,
        )
        process.start()
        return process

    def journaled(self) -> list[tuple[str, int, int]]:
        """Name, epoch and pid of every epoch that was begun."""
        if not self.journal.exists():
            return []
        lines = [line.rsplit(" ", 2) for line in self.journal.read_text().splitlines()]
        return [(name, int(epoch), int(pid)) for name, epoch, pid in lines]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        limit = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < limit, "it did not come about"
            time.sleep(0.05)


@pytest.fixture
def sweep(
    store: MlflowClient,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Sweep:
    monkeypatch.setattr(attempt, "ASK_S", 0.2)
    monkeypatch.setattr(attempt, "ASKS_PER_BEAT", 1)
    return Sweep(store, request.node.name, tmp_path)


class Pruning(Search):
    """Gives up every trial after one epoch, if its accuracy is below 1."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def propose(self, view: View) -> bool:
        return False

    def prune(self, trial: Trial) -> Prune:
        return lambda epoch, metrics: epoch == self.epoch and metrics["val/acc"] < 1


@pytest.mark.long
def test_a_worker_waits_for_a_store_that_is_locked_and_says_so_once(
    sweep: Sweep, caplog: pytest.LogCaptureFixture
) -> None:
    sweep.trials()
    path = sweep.client.tracking_uri.removeprefix("sqlite:///")
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    threading.Timer(50, lock.execute, ["ROLLBACK"]).start()  # MLflow itself waits for 20 s
    sweep.pull(plan("do=train"))
    lock.close()
    assert sweep.trials()["do=train"].state == "finished"
    told = [text for text in caplog.messages if "waiting for the store" in text]
    assert len(told) == 1 and "database is locked" in told[0]


def test_who_is_to_stop_does_not_wait_for_a_store_that_is_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}"
    client, stop = MlflowClient(nowhere), SetInSecondWait()
    with pytest.raises(MlflowException, match="refused") as raised:
        wait_for_store(stop, client.get_run, "0" * 32)
    assert is_away(raised.value)
    told = [text for text in caplog.messages if "waiting for the store" in text]
    assert len(told) == 1 and stop.waits == 2


class SetInSecondWait(threading.Event):
    """A request to stop that comes while its second wait goes on."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        if self.waits == 2:
            self.set()
        return super().wait(timeout)


def test_several_processes_share_the_trials_and_train_each_once(sweep: Sweep) -> None:
    planned = plan(*(f"do=train#{i}" for i in range(12)))
    workers = [sweep.start(planned, worker=number) for number in range(4)]
    assert [ended(worker) for worker in workers] == [0] * 4
    assert {trial.state for trial in sweep.trials().values()} == {"finished"}
    epochs = Counter((name, epoch) for name, epoch, _ in sweep.journaled())
    assert epochs == Counter({(p.name, epoch): 1 for p in planned for epoch in (1, 2, 3)})
    assert len({pid for _, _, pid in sweep.journaled()}) > 1
    runs = sweep.client.search_runs([sweep.experiment])
    assert len(runs) == 1 + 12
    assert {run.info.status for run in runs if run.info.run_id != sweep.parent} == {"FINISHED"}


def test_another_process_goes_on_from_the_checkpoint_of_one_that_was_killed(sweep: Sweep) -> None:
    planned = plan("do=stay", "do=train")
    # Its first epoch is done, as if it had a checkpoint of it.
    victim = sweep.start(planned)
    sweep.wait_for(lambda: len(sweep.journaled()) == 1)
    run_id = sweep.trials()["do=stay"].run_id
    state = '{"slot": 0, "sha256": "", "epoch": 1, "step": 10}'
    sweep.client.set_tag(run_id, tag.CHECKPOINT, state)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    assert ended(victim) == -signal.SIGKILL

    planned = [replace(planned[0], overrides=("do=train",)), planned[1]]
    sweep.pull(planned, by="another")
    trial = sweep.trials()["do=stay"]
    assert (trial.state, trial.epoch, trial.run_id) == ("finished", 3, run_id)
    assert [attempt.state for attempt in trial.attempts] == ["died", "finished"]
    assert trial.attempts[1].claim.from_step == 10
    stayed = [(epoch, pid) for name, epoch, pid in sweep.journaled() if name == "do=stay"]
    assert stayed == [(1, victim.pid), (2, os.getpid()), (3, os.getpid())]


def test_a_trial_that_kills_its_process_three_times_is_given_up(sweep: Sweep) -> None:
    planned = plan("do=die", "do=train")
    exits = []
    while not exits or exits[-1] != 0:
        exits.append(ended(sweep.start(planned)))
        assert len(exits) < 9
    trial = sweep.trials()["do=die"]
    # The first death brought a checkpoint, of epoch 1; three more did not.
    assert exits == [-signal.SIGKILL] * 4 + [0]
    assert [attempt.state for attempt in trial.attempts] == ["died"] * 4
    assert sweep.trials()["do=train"].state == "finished"
    assert sweep.client.get_run(trial.run_id).info.status == "FAILED"


def test_a_worker_that_is_asked_to_end_interrupts_its_trial_and_another_resumes(
    sweep: Sweep,
) -> None:
    planned = plan("do=stay")
    worker = sweep.start(planned)
    sweep.wait_for(lambda: len(sweep.journaled()) == 1)
    worker.terminate()
    assert ended(worker) == 0
    trial = sweep.trials()["do=stay"]
    assert trial.state == "interrupted"
    assert sweep.client.get_run(trial.run_id).info.status == "KILLED"
    sweep.pull([replace(planned[0], overrides=("do=train",))])
    assert sweep.trials()["do=stay"].state == "finished"


def test_a_stop_request_in_the_ledger_reaches_the_trials_of_that_sweeper_only(
    sweep: Sweep,
) -> None:
    mine = sweep.start(plan("do=stay"), by="mine")
    other = sweep.start(plan("do=nothing", "do=stay#2")[1:], by="other")
    sweep.wait_for(lambda: len(sweep.journaled()) == 2)
    sweep.ledger().stop("mine", "Ctrl-C")
    assert ended(mine) == 0
    states = {name: trial.state for name, trial in sweep.trials().items()}
    assert states == {"do=stay": "interrupted", "do=stay#2": "running"}
    other.terminate()
    assert ended(other) == 0
    assert sweep.trials()["do=stay#2"].state == "interrupted"


def test_who_is_stopped_by_a_ledger_read_long_ago_does_not_take_its_trial_again(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "SHARE_OF_TIME", 1e-9)  # as if it took long to read
    stop = threading.Event()
    thread = threading.Thread(target=sweep.pull, args=(plan("do=stay"),), kwargs={"stop": stop})
    thread.start()
    sweep.wait_for(lambda: len(sweep.journaled()) == 1)
    sweep.ledger().stop("one", "sweep.fail_fast")
    sweep.wait_for(lambda: sweep.trials()["do=stay"].state == "interrupted")
    thread.join(60)
    is_over = not thread.is_alive()
    stop.set()
    thread.join()
    assert is_over and sweep.trials()["do=stay"].number == 1


def test_a_trial_hung_beyond_pythons_reach_ends_with_its_process(sweep: Sweep) -> None:
    planned = plan("do=hang-hard", "do=train")
    worker = sweep.start(planned, trial_timeout_s=0.3, grace_s=0.3, retries=0)
    assert ended(worker) == 1
    trial = sweep.trials()["do=hang-hard"]
    assert trial.state == "timeout"
    assert "sweep.trial_timeout_s=0.3" in trial.error
    sweep.pull(planned, retries=0)
    assert sweep.trials()["do=hang-hard"].state == "timeout"
    assert sweep.trials()["do=train"].state == "finished"


def test_a_trial_hung_in_python_is_ended_and_the_next_one_trained(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan("do=hang", "do=train")
    monkeypatch.setattr(attempt, "GRACE_S", 0.3)
    sweep.pull(planned[:1], trial_timeout_s=0.3, retries=0)
    trial = sweep.trials()["do=hang"]
    assert trial.state == "timeout"
    assert trial.error.splitlines()[-1] == "took longer than sweep.trial_timeout_s=0.3"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    sweep.pull(planned, retries=0)
    assert sweep.trials()["do=hang"].number == 1
    assert sweep.trials()["do=train"].state == "finished"


def test_the_time_limit_is_the_trainings_not_the_stores(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "GRACE_S", 0.2)
    sweep.pull(plan("do=deliver"), trial_timeout_s=0.3, retries=0)
    sweep.pull(plan("do=deliver", "do=wait"), trial_timeout_s=2.5, retries=0)
    assert {trial.state for trial in sweep.trials().values()} == {"finished"}
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_trial_past_its_time_limit_ends_by_itself_where_it_can(sweep: Sweep) -> None:
    sweep.pull(plan("do=stay"), trial_timeout_s=0.3, retries=0)
    trial = sweep.trials()["do=stay"]
    assert (trial.state, trial.error) == ("timeout", "took longer than sweep.trial_timeout_s=0.3")


def test_a_failure_leaves_its_traceback_and_log_and_holds_up_nobody(
    sweep: Sweep, tmp_path: Path
) -> None:
    sweep.pull(plan("do=raise", "do=train"))
    trials = sweep.trials()
    failed = trials["do=raise"]
    assert [attempt.state for attempt in failed.attempts] == ["failed", "failed"]
    assert failed.error.endswith("RuntimeError: as it was told to\n")
    assert sweep.client.get_run(failed.run_id).info.status == "FAILED"
    assert trials["do=train"].state == "finished"
    for number in (1, 2):
        kept = f"failures/attempt-{number}"
        path = sweep.client.download_artifacts(failed.run_id, f"{kept}/traceback.txt", tmp_path)
        assert "in _misbehave" in Path(path).read_text()
        path = sweep.client.download_artifacts(failed.run_id, f"{kept}/log.txt", tmp_path)
        assert "do=raise" in Path(path).read_text()
        assert "from epoch 1" in Path(path).read_text()
    # Trials that never began come before those that failed.
    assert [name for name, _, _ in sweep.journaled()][1:4] == ["do=train"] * 3


def test_an_error_of_which_no_store_holds_every_character_is_recorded_and_holds_up_nobody(
    sweep: Sweep, tmp_path: Path
) -> None:
    sweep.pull(plan("do=raise-bytes", "do=train"), retries=0)
    trials = sweep.trials()
    failed = trials["do=raise-bytes"]
    shown = "RuntimeError: a file's name \\udcff, and \\0"
    assert failed.state == "failed" and shown in failed.error
    run = sweep.client.get_run(failed.run_id)
    assert run.info.status == "FAILED" and shown in run.data.tags[tag.ERROR]
    name = "failures/attempt-1/traceback.txt"
    kept = sweep.client.download_artifacts(failed.run_id, name, tmp_path)
    assert shown in Path(kept).read_text()
    assert trials["do=train"].state == "finished"


def test_a_failed_trial_is_tried_again_and_its_error_forgotten_when_it_works(
    sweep: Sweep,
) -> None:
    sweep.pull(plan("do=raise-once"))
    trial = sweep.trials()["do=raise-once"]
    assert [attempt.state for attempt in trial.attempts] == ["failed", "finished"]
    assert trial.error == ""


def test_the_same_command_again_gives_failed_trials_fresh_attempts(sweep: Sweep) -> None:
    sweep.pull(plan("do=raise", "do=exit"), by="one", retries=1)
    sweep.pull(plan("do=raise", "do=exit"), by="one", retries=1)
    assert {trial.number for trial in sweep.trials().values()} == {2}
    sweep.pull(plan("do=raise", "do=exit"), by="two", retries=1)
    assert {trial.number for trial in sweep.trials().values()} == {4}


def test_with_fail_fast_the_first_final_failure_stops_everything(sweep: Sweep) -> None:
    planned = plan("do=raise", *(f"do=train#{i}" for i in range(3)))
    sweep.pull(planned, retries=0, fail_fast=True)
    assert set(sweep.trials()) == {"do=raise"}
    assert "do=raise" in sweep.ledger().read().stops["one"]
    sweep.pull(planned, retries=0, fail_fast=True)
    assert set(sweep.trials()) == {"do=raise"}


def test_a_pruned_trial_is_recorded_with_the_epochs_that_it_did(sweep: Sweep) -> None:
    sweep.pull(plan("do=train"), search=Pruning(2), epochs=5)
    trial = sweep.trials()["do=train"]
    assert (trial.state, trial.epoch) == ("pruned", 2)
    assert trial.metrics == {"val/acc": 0.02}
    assert sweep.client.get_run(trial.run_id).info.status == "KILLED"


def test_a_trial_is_never_pruned_after_its_last_epoch(sweep: Sweep) -> None:
    sweep.pull(plan("do=train"), search=Pruning(3))
    assert sweep.trials()["do=train"].state == "finished"


def test_a_trial_of_a_living_owner_elsewhere_is_left_alone(sweep: Sweep) -> None:
    planned = plan("do=train")
    ledger = sweep.ledger()
    owner = replace(myself(new_token()), host="another host")
    first = planned[0]
    assert ledger.claim(first.fingerprint, first.name, None, owner, "elsewhere") is not None
    sweep.pull(planned)
    assert sweep.trials()["do=train"].state == "running"
    assert sweep.journaled() == []


def test_who_lost_its_claim_stops_and_writes_nothing_more(sweep: Sweep) -> None:
    planned = plan("do=stay")
    thread = threading.Thread(target=sweep.pull, args=(planned,))
    thread.start()
    sweep.wait_for(lambda: len(sweep.journaled()) == 1)
    ledger = sweep.ledger()
    [trial] = ledger.read().trials.values()
    assert ledger.end(trial, "died")  # taken for dead
    [trial] = ledger.read().trials.values()
    other = replace(myself(new_token()), host="another host")
    assert ledger.claim(trial.fingerprint, trial.name, trial, other, "elsewhere") is not None
    thread.join(60)
    assert not thread.is_alive()
    now = sweep.trials()["do=stay"]
    assert (now.state, now.number) == ("running", 2)
    assert now.attempts[0].state == "died"
    assert sweep.client.get_run(trial.run_id).info.status == "RUNNING"


def test_ctrl_c_in_this_process_marks_the_trial_interrupted(sweep: Sweep) -> None:
    planned = plan("do=stay")
    stop = threading.Event()
    thread = threading.Thread(target=sweep.pull, args=(planned,), kwargs={"stop": stop})
    thread.start()
    sweep.wait_for(lambda: len(sweep.journaled()) == 1)
    stop.set()
    thread.join(60)
    assert sweep.trials()["do=stay"].state == "interrupted"


def test_a_warning_within_an_attempt_is_shown_and_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a command
    with attempt.transcribing() as transcript:
        logging.getLogger("any").warning("the store is away")
    assert capsys.readouterr().err == "the store is away\n"
    assert "WARNING any: the store is away" in transcript.getvalue()
    assert not logging.getLogger().handlers
