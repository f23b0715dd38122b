"""Shows a sweep: what will be done, how it goes on, and how it ended.

It shows what the ledger says, writes a request to stop there, and decides nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.ledger.ledger import LOOK_EVERY_S, Ledger
from mnist_hydra.ledger.next_action import Action
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import (
    DIED,
    DONE,
    FAILURES,
    NOTICE,
    PRUNED,
    RUNNING,
    TIMEOUT,
    End,
    Trial,
)
from mnist_hydra.progress import clock, percent
from mnist_hydra.tracking import tag

MAX_RUNNING_SHOWN = 20

WORDS = {
    Action.START: "to run",
    Action.RESUME: "to be continued",
    Action.RETRY: "to be tried again",
    Action.WAIT: "run by another process",
    Action.DONE: "done and skipped",
    Action.GIVE_UP: "failed for good",
}

log = logging.getLogger(__name__)


def overview(actions: Mapping[str, Action], total: int) -> str:
    """One line: how many trials there are, and how many are to be run, continued or skipped.

    Args:
        actions: by fingerprint, of the trials that are known.
        total: how many there will be.
    """
    count = Counter(actions.values())
    parts = [f"{count[action]} {WORDS[action]}" for action in WORDS if count[action]]
    if total > len(actions):
        parts.append(f"{total - len(actions)} to be proposed")
    return f"{total} trial{'' if total == 1 else 's'}: " + ", ".join(parts)


def outcome(actions: Mapping[str, Action]) -> str:
    """One line: how a sweep ended.

    Args:
        actions: what would be done with each trial, by fingerprint.
    """
    count = Counter(actions.values())
    done, failed = count.pop(Action.DONE, 0), count.pop(Action.GIVE_UP, 0)
    left = sum(count.values())
    parts = [f"{done} of {len(actions)} trials done"]
    parts += [f"{failed} failed"] if failed else []
    return ", ".join([*parts, f"{left} not finished"] if left else parts)


def trial_line(title: str, action: Action, trial: Trial | None, objective: str) -> str:
    """One line: what is to be done with a trial, and why."""
    return f"{WORDS[action]:<22}  {title}{_why(action, trial, objective)}"


def _why(action: Action, trial: Trial | None, objective: str) -> str:
    if trial is None or action is Action.START:
        return ""
    if action is Action.DONE:
        value = trial.metrics.get(objective)
        score = "" if value is None else f", {objective} {value:.4f}"
        return f" ({trial.state} after epoch {trial.epoch}{score}; run {trial.run_id})"
    if trial.state in FAILURES:
        why = f"{trial.state} in attempt {trial.number}"
    else:
        why = "running" if action is Action.WAIT else "stopped"
    return f" ({why}, after epoch {trial.epoch}; run {trial.run_id})"


def other_origin(trials: Mapping[str, Trial], now: Mapping[str, str]) -> str | None:
    """A warning, where finished trials were made with other code or data than now's.

    Args:
        trials: those whose results are used.
        now: this program's tags of commit, version and data; a tag that is missing here is only
            compared among the trials.
    """
    differences = []
    done = [trial for trial in trials.values() if trial.state in DONE]
    for key in sorted({k for trial in done for k in trial.made_by} | now.keys()):
        values = Counter(trial.made_by[key] for trial in done if key in trial.made_by)
        here = now.get(key)
        if set(values) - {here} and (here is not None or len(values) > 1):
            name = key.removeprefix(tag.HIDDEN).removeprefix("mlflow.source.")
            of = ", ".join(f"{value[:12]} ({number})" for value, number in sorted(values.items()))
            differences.append(f"{name} {of}" + ("" if here is None else f", now {here[:12]}"))
    if not differences:
        return None
    what = "finished trials are used that were made with something else"
    return f"warning: {what}: {'; '.join(differences)}"


def events(
    wanted: Sequence[Planned], before: Mapping[str, Trial], after: Mapping[str, Trial]
) -> list[str]:
    """The lines to print for what happened between two looks at the ledger.

    A failure comes with its last lines. Of an attempt that began and ended in between only the end
    is told.

    Args:
        wanted: the sweep's trials, in its order.
        before, after: those that were attempted, by fingerprint.
    """
    lines = []
    for planned in wanted:
        if (now := after.get(planned.fingerprint)) is None:
            continue
        was = before.get(planned.fingerprint)
        known = was.attempts if was is not None else ()
        ended_before = sum(attempt.end is not None for attempt in known)
        for number, attempt in enumerate(now.attempts, start=1):
            if attempt.end is not None and number > ended_before:
                lines.append(f"{planned.name}: {_end(now, number, attempt.end)}")
        if now.state == RUNNING and now.number > len(known):
            lines.append(f"{planned.name}: {_begin(now)}")
    return lines


def progress_line(trials: Collection[Trial], total: int, left_s: float | None) -> str:
    """One line: how many trials are done, running, failed and waiting, and the time left.

    Args:
        trials: those that were attempted.
        total: how many trials there will be, with those that nobody has begun.
        left_s: in seconds; `None` if it is not known.
    """
    count = Counter(trial.state for trial in trials)
    done = sum(count[state] for state in DONE)
    failed = sum(count[state] for state in FAILURES)
    waiting = max(total - done - count[RUNNING] - failed, 0)
    pruned = f" ({count[PRUNED]} pruned)" if count[PRUNED] else ""
    parts = [f"{done} of {total} done{pruned}", f"{count[RUNNING]} running", f"{failed} failed"]
    parts += [f"{waiting} waiting"] + ([f"about {clock(left_s)} left"] if left_s else [])
    return ", ".join(parts)


class Display:
    """Shows a sweep while the context is open: lines for events, and on a terminal a live table.

    Args:
        console: where to print.
        total: how many trials there are to be.
        epochs: of a trial that does not say how many it has.
    """

    def __init__(self, console: Console, total: int, epochs: int) -> None:
        self._console, self._total, self._epochs = console, total, epochs
        self._trials: Mapping[str, Trial] = {}
        self._began: tuple[float, int] | None = None
        """When the first look was, and how many epochs were done then."""
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def message(self, text: str) -> None:
        """Print a line above the live table."""
        self._console.print(Text(text), soft_wrap=True)

    def update(
        self, wanted: Sequence[Planned], trials: Mapping[str, Trial], now_s: float
    ) -> None:
        """Show the newest look at the ledger.

        Args:
            wanted: the trials that are known, in the sweep's order.
            trials: those that were attempted, by fingerprint.
            now_s: a monotonic clock, in seconds.
        """
        trials = {p.fingerprint: trials[p.fingerprint] for p in wanted if p.fingerprint in trials}
        done = sum(trial.epoch for trial in trials.values())
        if self._began is None:
            self._began, self._trials = (now_s, done), trials
        for event in events(wanted, self._trials, trials):
            self.message(event)
        self._trials = trials
        if self._console.is_terminal:
            began_s, done_then = self._began
            pace_s = (now_s - began_s) / (done - done_then) if done > done_then else None
            left_s = None if pace_s is None else pace_s * self._epochs_to_do(wanted)
            self._live.update(self._table(wanted, left_s), refresh=True)

    def _epochs_to_do(self, wanted: Sequence[Planned]) -> int:
        """In all trials together; what failed is not counted on."""
        left = self._epochs * max(self._total - len(wanted), 0)
        for planned in wanted:
            trial = self._trials.get(planned.fingerprint)
            if trial is None or trial.state not in DONE | FAILURES:
                left += (planned.epochs or self._epochs) - (0 if trial is None else trial.epoch)
        return left

    def _table(self, wanted: Sequence[Planned], left_s: float | None) -> Group:
        numbers = [Column(heading, justify="right") for heading in ("epoch", "accuracy")]
        table = Table("running", *numbers, box=None, pad_edge=False)
        known = [(one, self._trials.get(one.fingerprint)) for one in wanted]
        running = [(one, trial) for one, trial in known if trial and trial.state == RUNNING]
        for planned, trial in running[:MAX_RUNNING_SHOWN]:
            epoch = f"{trial.epoch}/{planned.epochs or self._epochs}"
            table.add_row(Text(planned.name), epoch, _accuracy(trial))
        if len(running) > MAX_RUNNING_SHOWN:
            table.add_row(f"and {len(running) - MAX_RUNNING_SHOWN} more", "", "")
        line = Text(progress_line(self._trials.values(), self._total, left_s))
        return Group(table, line) if running else Group(line)


def _begin(trial: Trial) -> str:
    if trial.number == 1:
        return "started"
    how = f"goes on after epoch {trial.epoch}" if trial.epoch else "started again"
    return f"{how} (attempt {trial.number})"


def _end(trial: Trial, number: int, end: End) -> str:
    if end.state in DONE:
        score = f", accuracy {accuracy}" if (accuracy := _accuracy(trial)) else ""
        return f"{end.state} after epoch {trial.epoch}{score}"
    if end.state in FAILURES:
        what = "TIMED OUT" if end.state == TIMEOUT else "FAILED"
        return "\n    ".join([f"{what} in attempt {number}", *end.error.strip().splitlines()])
    if end.state == DIED:  # too often in a row, and it is given up
        return f"its process died after epoch {trial.epoch}"
    return f"stopped after epoch {trial.epoch}, to be continued"


def _accuracy(trial: Trial) -> str:
    """After the last epoch, on the hold-out if there is one, else on the test set; may be empty."""
    accuracy = trial.metrics.get("val/acc", trial.metrics.get("test/acc"))
    return "" if accuracy is None else percent(accuracy)


@dataclass
class Follower:
    """A thread that shows the ledger on the display, with what this sweeper's workers have to tell,
    and writes a request to stop into the ledger.

    A signal handler cannot do the latter, since it may interrupt MLflow in the middle of a call.
    It is a context manager.
    """

    ledger: Ledger
    """Used by this object alone."""
    display: Display
    planned: Sequence[Planned]
    """The trials of a grid, in the sweep's order; those of a search are in the ledger."""
    sweeper: str
    """The sweeper's token."""
    stop: threading.Event
    """Is set if the sweep was deleted in MLflow, so that nothing more is begun."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _over: bool = False
    _stop_reason: str | None = None
    _noticed: set[str] = field(default_factory=set)
    _is_away: bool = False

    def __enter__(self) -> Follower:
        self._look(up_to_date=True)
        self._thread = threading.Thread(target=self._run, name="sweep follower", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()
        self._look(up_to_date=True)

    def stop_trials(self, reason: str) -> None:
        """Ask this sweeper's trials to write a checkpoint and end; safe in a signal handler."""
        self._stop_reason = reason
        self._wake.set()

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            self._look(up_to_date=False)

    def _look(self, up_to_date: bool) -> None:
        """Pass on a request to stop, then read the ledger and show it."""
        try:
            if (reason := self._stop_reason) is not None:
                self.ledger.stop(self.sweeper, reason)
                self._stop_reason = None
                self.display.message(
                    f"{reason}: running trials write a checkpoint; once more to leave at once"
                )
            view = self.ledger.read(up_to_date)
            notices = set(self.ledger.entries(f"{NOTICE}{self.sweeper}/").values())
            for notice in sorted(notices - self._noticed):
                self.display.message(notice)
            self._noticed |= notices
            self.display.update(view.wanted(self.planned), view.trials, time.monotonic())
            self._is_away = False
        except UserError:
            if not self.stop.is_set():
                self.stop.set()
                self.stop_trials("the sweep was deleted in MLflow")
        except Exception as error:  # the store may be away for a while; training goes on
            if not self._is_away:
                log.warning("the ledger cannot be read: %s", first_line(error))
            self._is_away = True
