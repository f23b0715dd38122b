"""A worker: claims one trial after another in the ledger and trains it, until none is left.

Any number of workers, on any number of machines, work side by side; any of them may die.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from mnist_hydra.cli.commands import override_value
from mnist_hydra.config import settle
from mnist_hydra.errors import first_line
from mnist_hydra.ledger.ledger import Ledger, View, wait_for_store
from mnist_hydra.ledger.next_action import Action, actions_of, attempt_order
from mnist_hydra.ledger.owner import Observer, Owner, Working, made_here
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import DIED, INTERRUPTED, RUNNING, Trial
from mnist_hydra.sweep.attempt import BEAT_S, GRACE_S, Train, Watch, attempt
from mnist_hydra.tracking.tracker import is_away

SYNC_WAIT_S = 60.0
"""For a `sync` that delivers what an earlier attempt at a trial has left."""

log = logging.getLogger(__name__)


def work(
    cfg: DictConfig,
    stop: threading.Event | None = None,
    after_attempt: Callable[[], None] = lambda: None,
) -> None:
    """Train a sweep's trials until none is left that this worker could claim.

    Args:
        cfg: the worker's configuration, with the `sweep.*` that the sweeper gave it.
        stop: set when trials are to write a checkpoint and end.
        after_attempt: called when an attempt has ended.
    """
    from mnist_hydra.build import prepare  # torch, as whoever trains needs it
    from mnist_hydra.checkpoint import DamagedCheckpoint
    from mnist_hydra.ledger.plan import Plan, plan_file, read_plan
    from mnist_hydra.run import Recording, train_run
    from mnist_hydra.sweep.compose import Composer
    from mnist_hydra.sweep.search import SearchSource
    from mnist_hydra.tracking.resume import about_run, deliver_left
    from mnist_hydra.tracking.spool import Spool
    from mnist_hydra.tracking.tracker import Tracker

    config = settle(cfg)
    settings = config.sweep
    assert settings.parent is not None and settings.by is not None
    parent, by = settings.parent, settings.by
    stop = stop or threading.Event()
    if settings.ends_with_stdin:
        threading.Thread(target=_stop_at_end_of_stdin, args=(stop,), daemon=True).start()

    def begin() -> tuple[Tracker, Ledger, Plan]:
        tracker = Tracker(config)
        ledger = Ledger(tracker.client, parent)
        return tracker, ledger, read_plan(tracker.read_text(parent, plan_file(by)))

    tracker, ledger, plan = wait_for_store(begin, stop)
    composer = Composer.here()
    source: Source = (
        SearchSource(ledger, plan.arguments, composer, settings, config.seed)
        if plan.kind == "search"
        else GridSource(plan.trials)
    )

    def train(planned: Planned, run_id: str, watch: Watch, resume: bool) -> str:
        overrides = plan.arguments.overrides(planned.overrides)
        in_place = f"++output_dir={override_value(config.output_dir)}"  # it may hold the time
        trial = settle(composer.compose([*overrides, in_place]))
        watch.epochs = trial.epochs

        state = None
        deliver = partial(deliver_left, config, tracker, run_id, wait_s=SYNC_WAIT_S)
        wait_for_store(deliver, watch.stop)
        if resume:
            try:
                state = tracker.load_checkpoint(run_id)
            except DamagedCheckpoint as damage:
                log.warning("%s begins anew: %s", planned.name, damage)
                tracker.forget_checkpoint(run_id)
        trainer = prepare(trial, state)
        output_dir, about = Path(config.output_dir).absolute(), about_run(config, run_id)
        with Spool(output_dir, about, lambda about: (tracker, run_id)) as spool:
            recording = Recording(
                trial,
                trainer,
                spool,
                overrides=overrides,
                resumed=state is not None,
                shared=True,
            )
            end = train_run(recording, hooks=watch, label=planned.name, quiet=True).state
            spool.close(watch.stop)  # the ledger reads the run's metrics
        spool.raise_if_refused()
        return INTERRUPTED if spool.left else end  # the next attempt delivers what is left

    rules = Rules(
        by=settings.by,
        number=settings.worker or 0,
        retries=settings.retries,
        fail_fast=settings.fail_fast,
        timeout_s=settings.trial_timeout_s,
    )
    # In the sweeper's own process the sweeper handles signals.
    with nullcontext() if made_here(settings.by) else stopping_on_signals(stop):
        try:
            pull(ledger, source, train, rules, stop, after_attempt)
        except Exception as error:
            if not (is_away(error) and stop.is_set()):
                raise
            log.warning("what was left to record is not: %s", first_line(error))


class Source(Protocol):
    """Where a sweep's trials come from."""

    def wanted(self, view: View) -> Sequence[Planned]:
        """The trials that are known now, in the sweep's order."""

    def propose(self, view: View) -> bool:
        """Add one more trial to the ledger, unless another process just did.

        Returns:
            False if the sweep has all its trials.
        """

    def prune(self, trial: Trial) -> Callable[[int, dict[str, float]], bool] | None:
        """A function that decides after each epoch of a trial whether to give it up; or `None`."""


class GridSource:
    """The trials of a grid, as planned."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._planned = planned

    def wanted(self, view: View) -> Sequence[Planned]:
        return self._planned

    def propose(self, view: View) -> bool:
        return False

    def prune(self, trial: Trial) -> Callable[[int, dict[str, float]], bool] | None:
        return None


@dataclass(frozen=True)
class Rules:
    """How a worker works."""

    by: str
    """The token of the sweeper that it belongs to."""
    number: int = 0
    """The worker's number within its launch, from 0."""
    retries: int = 1
    fail_fast: bool = False
    timeout_s: float | None = None
    beat_s: float = BEAT_S
    grace_s: float = GRACE_S


def pull(
    ledger: Ledger,
    source: Source,
    train: Train,
    rules: Rules,
    stop: threading.Event,
    after_attempt: Callable[[], None] = lambda: None,
) -> None:
    """Claim and train trials until there is none that could be claimed now.

    It does not wait for trials that other processes train. A trial's failure is recorded, not
    raised.

    Args:
        stop: set when trials are to write a checkpoint and end.
        after_attempt: called when an attempt has ended.
    """
    observer = Observer(time.monotonic)
    turn, fresh = rules.number, False
    with Working() as owner:
        if rules.number == 0:
            wait_for_store(partial(finish_half_done, ledger, observer), stop)
        while not stop.is_set():
            take = partial(_take, ledger, source, rules, observer, owner, turn, fresh)
            taken = wait_for_store(take, stop)
            if taken is _NoTrial.STOPPED or (taken is _NoTrial.LEFT and fresh):
                return
            fresh = taken is _NoTrial.LEFT  # look once more before leaving
            turn = random.randrange(1_000_000) if taken is _NoTrial.LOOK_AGAIN else rules.number
            if isinstance(taken, _NoTrial):
                continue
            planned, trial = taken
            watch = Watch(
                ledger,
                trial,
                by=rules.by,
                stop=stop,
                timeout_s=rules.timeout_s,
                prune=wait_for_store(partial(source.prune, trial), stop),
                beat_s=rules.beat_s,
                grace_s=rules.grace_s,
            )
            attempt(ledger, planned, trial, train, watch)
            after_attempt()


def mark_dead(ledger: Ledger, view: View, observer: Observer) -> View:
    """Record the death of every owner that is gone, for all processes to see.

    Returns:
        The view after that.
    """
    dead = [
        trial
        for trial in view.trials.values()
        if trial.state == RUNNING and observer.is_gone(trial.attempts[-1].owner, trial.heartbeat)
    ]
    for trial in dead:
        owner = trial.attempts[-1].owner
        notice = f"process {owner.pid} on {owner.machine} is gone (killed, out of memory?)"
        ledger.end(trial, DIED, error=notice)
    return ledger.read(fresh=True) if dead else view


def finish_half_done(ledger: Ledger, observer: Observer) -> None:
    """Close or delete the runs that dead processes left open; any process may do so."""
    for run_id, owner, trial in ledger.half_done():
        if not observer.is_gone(owner):
            continue
        if trial is None:
            ledger.client.delete_run(run_id)
        else:
            ledger.close(run_id, trial.state, trial.error)


class _NoTrial(Enum):
    """Why no trial was claimed."""

    LOOK_AGAIN = 1
    """Another process was faster, or a search has just proposed one more."""
    LEFT = 2
    """None is left that could be claimed now."""
    STOPPED = 3
    """No more are to be claimed."""


def _take(
    ledger: Ledger,
    source: Source,
    rules: Rules,
    observer: Observer,
    owner: Owner,
    turn: int,
    fresh: bool,
) -> tuple[Planned, Trial] | _NoTrial:
    """Claim the first trial that can be claimed.

    Args:
        turn: see `attempt_order`.
        fresh: see `Ledger.read`.
    """
    view = mark_dead(ledger, ledger.read(fresh), observer)
    if rules.by in view.stops:
        return _NoTrial.STOPPED
    wanted = {planned.fingerprint: planned for planned in source.wanted(view)}
    actions = actions_of(view.trials, list(wanted.values()), rules.by, rules.retries)
    given_up = [key for key, action in actions.items() if action is Action.GIVE_UP]
    if rules.fail_fast and given_up:
        ledger.stop(rules.by, f"sweep.fail_fast: {wanted[given_up[0]].name}")
        return _NoTrial.STOPPED
    first = next(iter(attempt_order(list(wanted), actions.__getitem__, turn)), None)
    if (first is None or first[1] is Action.RETRY) and source.propose(view):
        return _NoTrial.LOOK_AGAIN
    if first is None:
        return _NoTrial.LEFT
    planned = wanted[first[0]]
    trial = view.trials.get(planned.fingerprint)
    claimed = ledger.claim(planned.fingerprint, planned.name, trial, owner, rules.by)
    return _NoTrial.LOOK_AGAIN if claimed is None else (planned, claimed)


def _stop_at_end_of_stdin(stop: threading.Event) -> None:
    """Stop once the process that started this worker closes our standard input, or is gone."""
    while os.read(0, 1024):
        pass
    stop.set()


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """A context in which SIGTERM, and Ctrl-C unless it is ignored, ask the trial to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        stop.set()

    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, ask)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, signal.SIG_DFL if handler is None else handler)
