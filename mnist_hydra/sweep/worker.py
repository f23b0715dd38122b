"""A worker: claims one trial after another in the ledger and trains it, until none is left.

Any number of workers, on any number of machines, work side by side; any of them may die.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mnist_hydra.cli.commands import override_value
from mnist_hydra.config import Config, SweepConfig, fingerprint, settle
from mnist_hydra.errors import InUse, UserError, first_line
from mnist_hydra.ledger.ledger import Ledger, wait_for_store
from mnist_hydra.ledger.next_action import Action, actions_of, attempt_order
from mnist_hydra.ledger.owner import Observer, Owner, working
from mnist_hydra.ledger.plan import Plan, Planned, plan_file, read_plan
from mnist_hydra.ledger.trial import FINISHED, INTERRUPTED, RUNNING, Trial
from mnist_hydra.stopping import OF_SIGNAL, on_signals
from mnist_hydra.sweep.attempt import Train, Watch, attempt
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.tracking.tracker import Tracker, is_away

if TYPE_CHECKING:
    from mnist_hydra.sweep.search import Search

SYNC_WAIT_S = 60.0
"""For a `sync` that delivers what an earlier attempt at a trial has left."""

log = logging.getLogger(__name__)


def work(config: Config, sweeper_stop: threading.Event | None = None) -> None:
    """Train a sweep's trials until none is left that this worker could claim.

    Args:
        config: the worker's configuration, with the `sweep.*` that the sweeper gave it.
        sweeper_stop: in the sweeper's own process, which handles its signals: set when trials are
            to write a checkpoint and end.

    Raises:
        SystemExit: this process was asked to stop, by a signal (128 + its number) or the end of its
            standard input (as by SIGTERM), and there may be trials left. At code 0 there are none,
            or the ledger asked it, or a launcher of others runs it, which takes no exit code.
    """
    from mnist_hydra.build import prepare, say_once  # torch, as whoever trains needs it
    from mnist_hydra.checkpoint import DamagedCheckpoint
    from mnist_hydra.run import train_run
    from mnist_hydra.tracking.spool import Spool, deliver_left, spooled_run

    settings = config.sweep
    assert settings.parent is not None and settings.by is not None
    parent, sweeper = settings.parent, settings.by
    stop, asked = sweeper_stop or threading.Event(), list[int]()

    def ask_to_stop(number: int, _: object = None) -> None:
        asked.append(number)
        stop.set()

    if settings.ends_with_stdin:
        at_end = partial(ask_to_stop, signal.SIGTERM)
        threading.Thread(target=_call_at_end_of_stdin, args=(at_end,), daemon=True).start()

    def begin() -> tuple[Tracker, Ledger, Plan]:
        tracker = Tracker(config)
        ledger = Ledger(tracker.client, parent)
        return tracker, ledger, read_plan(tracker.read_text(parent, plan_file(sweeper)))

    try:
        tracker, ledger, plan = wait_for_store(stop, begin)
    except Exception as error:
        if not (asked and is_away(error)):
            raise
        raise SystemExit(OF_SIGNAL + asked[0]) from None
    composer = Composer.here()
    search = None
    if plan.kind == "search":
        from mnist_hydra.sweep.search import Search

        search = Search(ledger, plan.arguments, composer, settings, config.seed)

    def train(planned: Planned, run_id: str, watch: Watch) -> str:
        overrides = plan.arguments.overrides(planned.overrides)
        in_place = f"++output_dir={override_value(config.output_dir)}"  # it may hold the time
        trial = settle(composer.compose([*overrides, in_place]))
        if fingerprint(trial) != planned.fingerprint:
            what = "a configuration file, or mnist_hydra, was changed since it was planned"
            right = "undo that and give the same command again, or sweep.fresh=true"
            if not plan.arguments.are_of(planned.overrides):
                what, right = "it was proposed by a command over other axes", "that command again"
            raise UserError(f"{planned.name} would be another training now: {what}; right: {right}")

        state = None
        with suppress(InUse):  # by a process that lost the trial and stands still
            wait_for_store(watch.stop, deliver_left, config, tracker, run_id, wait_s=SYNC_WAIT_S)
        try:  # there may be one just now that the ledger did not know when it was read
            state = wait_for_store(watch.stop, tracker.load_checkpoint, run_id)
        except DamagedCheckpoint as damage:
            log.warning("%s begins anew: %s", planned.name, damage)
        if state is not None and state["fingerprint"] != planned.fingerprint:
            raise UserError(
                f"{planned.name}: its checkpoint is of other settings (fingerprint "
                f"{state['fingerprint']}, planned {planned.fingerprint}); right: delete run "
                f"{run_id} in MLflow, and the same command again trains it anew"
            )

        def notify(line: str) -> None:
            say_once(line)
            if sweeper_stop is None:  # else it is on the sweeper's terminal already
                with suppress(Exception):  # it is in this worker's log, too
                    ledger.notify(sweeper, f"{line} (on {watch.trial.owner.machine})")

        watch.begin_limit()
        trainer = prepare(trial, state, notify)
        spooled = spooled_run(config, run_id, attempt=watch.trial.attempts[-1].number)
        with Spool(config.folder, spooled, lambda: tracker, check=watch.check_claim) as spool:
            resumed = state is not None
            try:
                stopped, _ = train_run(
                    trainer, spool, watch, overrides, resumed=resumed, is_trial=True
                )
            finally:
                watch.end_limit()
            spool.close(watch.stop)  # the ledger reads the run's metrics
        spool.raise_if_refused()
        if spool.left:
            return INTERRUPTED  # the next attempt delivers what is left
        return FINISHED if stopped is None else stopped.value

    with stopping_on_signals(ask_to_stop) if sweeper_stop is None else nullcontext():
        try:
            Worker(ledger, plan.trials, train, settings, stop, search).pull()
        except Exception as error:
            if not (is_away(error) and stop.is_set()):
                raise
            log.warning("what was left to record is not: %s", first_line(error))
    if asked and settings.ends_with_stdin:  # a launcher of others takes no exit code
        raise SystemExit(OF_SIGNAL + asked[0])


@dataclass
class Worker:
    """Claims one trial of a sweep after another and trains it."""

    ledger: Ledger
    planned: Sequence[Planned]
    """The trials of a grid, in the sweep's order."""
    train: Train
    settings: SweepConfig
    """Of the sweep, with what the sweeper sets for this worker."""
    stop: threading.Event
    """Set when trials are to write a checkpoint and end."""
    search: Search | None = None
    """Proposes the trials where they are not planned."""

    def pull(self) -> None:
        """Claim and train trials until there is none that could be claimed now.

        It does not wait for trials that other processes train. A trial's failure is recorded, not
        raised.
        """
        stop, search, observer = self.stop, self.search, Observer()
        with working() as owner:
            if not self.settings.worker:  # the first one does so for all
                wait_for_store(stop, self.ledger.finish_half_done, observer)
            while taken := wait_for_store(stop, self.take, observer, owner):
                planned, trial = taken
                prune = None if search is None else search.prune(trial)
                watch = Watch(self.ledger, trial, self.settings, stop, prune)
                attempt(planned, self.train, watch)
                if watch.asked_to_stop:  # a large ledger may have been read a minute ago
                    return

    def take(self, observer: Observer, owner: Owner) -> tuple[Planned, Trial] | None:
        """Claim the first trial that can be claimed; `None` if none can, or it is time to stop.

        It may be called again after the store failed it: a claim whose answer was lost is found.
        """
        ledger, settings, search = self.ledger, self.settings, self.search
        sweeper, turn, up_to_date = str(settings.by), settings.worker or 0, False
        while not self.stop.is_set():
            view = ledger.mark_dead(observer, up_to_date)
            if sweeper in view.stops:
                return None
            wanted = {one.fingerprint: one for one in view.wanted(self.planned)}
            for trial in view.trials.values():
                is_mine = trial.state == RUNNING and trial.owner == owner
                if is_mine and trial.fingerprint in wanted and ledger.beat(trial, 0):
                    return wanted[trial.fingerprint], trial
            actions = actions_of(view.trials, list(wanted.values()), sweeper, settings.retries)
            given_up = [key for key, action in actions.items() if action is Action.GIVE_UP]
            if settings.fail_fast and given_up:
                ledger.stop(sweeper, f"sweep.fail_fast: {wanted[given_up[0]].name}")
                return None
            first = next(iter(attempt_order(actions, turn)), None)
            is_time_for_more = first is None or actions[first] is Action.RETRY
            if is_time_for_more and search is not None and search.propose(view):
                continue
            if first is None and up_to_date:
                return None
            if first is None:
                up_to_date = True  # look once more before leaving
                continue
            before = view.trials.get(first)
            claimed = ledger.claim(first, wanted[first].name, before, owner, sweeper)
            if claimed is not None:
                return wanted[first], claimed
            # Another process was faster. The seeds of trials must not put both in step.
            turn = secrets.randbelow(1_000_000)
        return None


def _call_at_end_of_stdin(at_end: Callable[[], None]) -> None:
    """Call once the process that started this worker closes our standard input, or is gone."""
    while os.read(0, 1024):
        pass
    at_end()


def stopping_on_signals(ask: Callable[[int, object], None]) -> AbstractContextManager[None]:
    """A context in which SIGTERM and Ctrl-C, unless ignored, ask the trial to stop."""
    in_main = threading.current_thread() is threading.main_thread()
    both = (signal.SIGTERM, signal.SIGINT) if in_main else ()
    numbers = [number for number in both if signal.getsignal(number) is not signal.SIG_IGN]
    return on_signals(ask, numbers)
