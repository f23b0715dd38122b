"""Processes for the tests of the ledger and the workers, and the tiny trial that they train."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  else each process imports it
from mlflow import MlflowClient
from mlflow.entities import Metric

from mnist_hydra.config import SweepConfig
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.sweep import attempt
from mnist_hydra.sweep.attempt import Watch
from mnist_hydra.sweep.worker import Worker, stopping_on_signals
from mnist_hydra.tracking import tag

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier


def new_store(folder: Path) -> MlflowClient:
    """A new store on SQLite; with a write-ahead log, so that tests wait less for the disk."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    connection = sqlite3.connect(folder / "mlflow.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return client


def processes() -> ForkServerContext:
    """Real processes that start fast: forked from one that has imported this and used nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sweep_process", "torch"])
    return context


def plan(*overrides: str) -> list[Planned]:
    return [Planned(f"{i:016x}", (text,), text) for i, text in enumerate(overrides)]


class TinyTrial:
    """Does what its override says, epoch by epoch, and writes down in a file what it did.

    `do=train`, `do=raise`, `do=raise-once`, `do=raise-bytes` (with what no store holds), `do=exit`,
    `do=die` (kill -9 in epoch 2), `do=stay` (until told to stop), `do=deliver` (trained, and waits
    for the store), `do=wait` (for the store, a second an epoch), `do=hang` (in Python),
    `do=hang-hard` (where no signal helps).
    """

    def __init__(self, client: MlflowClient, journal: Path, epochs: int) -> None:
        self._client = client
        self._journal = journal
        self._epochs = epochs

    def __call__(self, planned: Planned, run_id: str, watch: Watch) -> str:
        what = planned.overrides[0].removeprefix("do=").split("#")[0]
        watch.begin_limit()
        if what == "deliver":  # it is trained, and waits for the store
            watch.end_limit()
            time.sleep(1.0)
            return "finished"
        first = 1
        run = self._client.get_run(run_id)
        again = self._journal.exists() and f"{planned.name} 1 " in self._journal.read_text()
        newest = run.data.tags.get(tag.CHECKPOINT)
        if newest is not None:
            first = json.loads(newest)["epoch"] + 1
        print(f"from epoch {first}")
        for epoch in range(first, self._epochs + 1):
            self._note(f"{planned.name} {epoch}")
            self._misbehave(what, epoch, again, watch)
            stopped = watch.should_stop()
            while what == "stay" and stopped is None:
                time.sleep(0.01)
                stopped = watch.should_stop()
            if stopped is not None:
                return stopped.value
            state = json.dumps(
                {"slot": epoch % 2, "sha256": "", "epoch": epoch, "step": epoch * 10}
            )
            self._client.set_tag(run_id, tag.CHECKPOINT, state)
            value = Metric("val/acc", epoch / 100, epoch, epoch)
            self._client.log_batch(run_id, metrics=[value])
            stopped = watch.after_epoch(epoch, {"val/acc": epoch / 100})
            if stopped is not None and epoch < self._epochs:  # as the trainer does
                return stopped.value
        return "finished"

    def _misbehave(self, what: str, epoch: int, again: bool, watch: Watch) -> None:
        if what == "raise" or (what == "raise-once" and not again):
            raise RuntimeError("as it was told to")
        if what == "wait":  # for the store, once an epoch
            left_s, _ = signal.getitimer(signal.ITIMER_REAL)
            with watch.waiting():
                time.sleep(1.0)
                assert watch.should_stop() is None
            assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= left_s
        if what == "raise-bytes":
            raise RuntimeError("a file's name \udcff, and \0")
        if what == "exit":
            raise SystemExit(3)
        if what == "die" and epoch == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if what in ("hang", "hang-hard"):
            time.sleep(600)

    def _note(self, line: str) -> None:
        with open(self._journal, "a") as file:
            file.write(f"{line} {os.getpid()}\n")


def settings_of(parent: str, by: str, worker: int = 0, **settings: Any) -> SweepConfig:
    """What a sweep sets for one of its workers."""
    return SweepConfig(parent=parent, by=by, worker=worker, **settings)


def work(
    uri: str, parent: str, planned: list[Planned], journal: Path, grace_s: float, **settings: Any
) -> None:
    """What a worker process does in these tests."""
    attempt.ASK_S, attempt.ASKS_PER_BEAT, attempt.GRACE_S = 0.2, 1, grace_s
    client = MlflowClient(uri)
    if any("hang-hard" in each.overrides[0] for each in planned):  # in all threads, then
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    train, stop = TinyTrial(client, journal, 3), threading.Event()
    with stopping_on_signals(lambda *_: stop.set()):
        Worker(Ledger(client, parent), planned, train, settings_of(parent, **settings), stop).pull()


def race_four(uri: str, action: Callable[..., Any], *arguments: Any) -> None:
    """Let four processes do the same at once, and see that each ends well."""
    context = processes()
    start = context.Barrier(4)
    racers = [
        context.Process(target=race, args=(uri, start, action, *arguments)) for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0


def race(uri: str, start: Barrier, action: Callable[..., Any], *arguments: Any) -> None:
    """Wait for the others and act at once with them."""
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    start.wait()
    action(client, *arguments)


def ended(process: BaseProcess, timeout_s: float = 60.0) -> int | None:
    """Wait for a process's end and return its exit code."""
    process.join(timeout_s)
    return process.exitcode
