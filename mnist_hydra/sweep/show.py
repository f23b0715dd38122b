"""Shows a sweep: what will be done, how it goes on, and how it ended.

It shows what the ledger says and decides nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.ledger.ledger import LOOK_EVERY_S, Ledger, View
from mnist_hydra.ledger.next_action import Action
from mnist_hydra.ledger.trial import DIED, DONE, FAILURES, PRUNED, RUNNING, TIMEOUT, WAITING, Trial

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
    elif trial.state in DONE:
        why = trial.state
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
    told = []
    done = [trial for trial in trials.values() if trial.state in DONE]
    for tag in sorted({key for trial in done for key in trial.made_by} | now.keys()):
        values = Counter(trial.made_by[tag] for trial in done if tag in trial.made_by)
        here = now.get(tag)
        if set(values) - {here} and (here is not None or len(values) > 1):
            name = tag.removeprefix("mnist_hydra.").removeprefix("mlflow.source.")
            of = ", ".join(f"{value[:12]} ({number})" for value, number in sorted(values.items()))
            told.append(f"{name} {of}" + ("" if here is None else f", now {here[:12]}"))
    if not told:
        return None
    return "warning: finished trials are used that were made with something else: " + "; ".join(
        told
    )


@dataclass(frozen=True)
class Shown:
    """What is shown of one trial."""

    title: str
    state: str
    """One of those in `trial.py`."""
    epochs: int
    """How many it will have."""
    epoch: int = 0
    """How many it has finished."""
    accuracy: float | None = None
    """After the last epoch, 0 to 1: on the hold-out if there is one, else on the test set."""
    ends: tuple[str | None, ...] = ()
    """How each of its attempts ended; `None` for a running one."""
    error: str = ""
    """The last lines of a failure."""


def shown_of(title: str, epochs: int, trial: Trial | None) -> Shown:
    """What is shown of a trial.

    Args:
        trial: `None` if it was never attempted.
    """
    if trial is None:
        return Shown(title, WAITING, epochs)
    accuracy = trial.metrics.get("val/acc", trial.metrics.get("test/acc"))
    ends = tuple(attempt.end for attempt in trial.attempts)
    error = trial.error.strip()
    return Shown(title, trial.state, epochs, trial.epoch, accuracy, ends, error)


def events(before: Mapping[str, Shown], after: Mapping[str, Shown]) -> list[str]:
    """The lines to print for what happened between two looks at the ledger.

    A failure comes with its last lines. Of a trial that began and ended in between only the end
    is told.

    Args:
        before, after: trials by fingerprint.
    """
    told = []
    for key, now in after.items():
        was = before.get(key)
        ended_before = sum(end is not None for end in was.ends) if was is not None else 0
        for number, end in enumerate(now.ends, start=1):
            if end is not None and number > ended_before:
                told.append(f"{now.title}: {_end(now, number, end)}")
        attempts_before = len(was.ends) if was is not None else 0
        if len(now.ends) > attempts_before and now.ends[-1] is None:
            told.append(f"{now.title}: {_begin(now)}")
    return told


def time_left(epochs_done: int, elapsed_s: float, epochs_to_do: int) -> float | None:
    """Seconds until the end at the speed so far; `None` before any epoch is done.

    Args:
        epochs_done: by all trials together since the display began.
        elapsed_s: since then.
        epochs_to_do: by all trials together, from now.
    """
    if epochs_to_do == 0:
        return 0.0
    return None if epochs_done <= 0 else elapsed_s * epochs_to_do / epochs_done


def duration(seconds: float) -> str:
    """Seconds as `2 d 3 h`, `3 h 5 min`, `5 min 4 s` or `4 s`."""
    rest = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def counts(views: Sequence[Shown], total: int, left_s: float | None) -> str:
    """One line: how many trials are done, running, failed and waiting, and the time left.

    Args:
        total: how many trials there will be, with those that nobody has begun.
    """
    done = sum(view.state in DONE for view in views)
    pruned = sum(view.state == PRUNED for view in views)
    running = sum(view.state == RUNNING for view in views)
    failed = sum(view.state in FAILURES for view in views)
    parts = [f"{done} of {total} done" + (f" ({pruned} pruned)" if pruned else "")]
    parts += [f"{running} running", f"{failed} failed"]
    parts.append(f"{max(total - done - running - failed, 0)} waiting")
    if left_s:
        parts.append(f"about {duration(left_s)} left")
    return ", ".join(parts)


class Display:
    """Shows a sweep while the context is open: lines for events, and on a terminal a live table.

    Args:
        console: where to print.
        total: how many trials there are to be.
        epochs: of a trial that nobody has begun.
    """

    def __init__(self, console: Console, total: int, epochs: int) -> None:
        self._console = console
        self._total = total
        self._epochs = epochs
        self._views: dict[str, Shown] = {}
        self._began: tuple[float, int] | None = None
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

    def update(self, views: Mapping[str, Shown], now_s: float) -> None:
        """Show the newest look at the ledger.

        Args:
            views: trials by fingerprint.
            now_s: a monotonic clock, in seconds.
        """
        done = sum(view.epoch for view in views.values())
        if self._began is None:
            self._began, self._views = (now_s, done), dict(views)
        for event in events(self._views, views):
            self.message(event)
        self._views = dict(views)
        if self._console.is_terminal:
            began_s, done_then = self._began
            left = time_left(done - done_then, now_s - began_s, self._to_do())
            self._live.update(self._table(left), refresh=True)

    def _to_do(self) -> int:
        known = sum(
            view.epochs - view.epoch
            for view in self._views.values()
            if view.state not in DONE | FAILURES
        )
        return known + self._epochs * max(self._total - len(self._views), 0)

    def _table(self, left_s: float | None) -> Group:
        table = Table(box=None, pad_edge=False)
        for heading in ("running", "epoch", "accuracy"):
            table.add_column(heading, justify="left" if heading == "running" else "right")
        running = [view for view in self._views.values() if view.state == RUNNING]
        for view in running[:MAX_RUNNING_SHOWN]:
            accuracy = "" if view.accuracy is None else f"{view.accuracy:.2%}"
            table.add_row(Text(view.title), f"{view.epoch}/{view.epochs}", accuracy)
        if len(running) > MAX_RUNNING_SHOWN:
            table.add_row(f"and {len(running) - MAX_RUNNING_SHOWN} more", "", "")
        parts = [table] if running else []
        return Group(*parts, Text(counts(list(self._views.values()), self._total, left_s)))


def _begin(view: Shown) -> str:
    if len(view.ends) <= 1:
        return "started"
    how = f"goes on after epoch {view.epoch}" if view.epoch else "started again"
    return f"{how} (attempt {len(view.ends)})"


def _end(view: Shown, number: int, end: str) -> str:
    if end in DONE:
        score = "" if view.accuracy is None else f", accuracy {view.accuracy:.2%}"
        return f"{end} after epoch {view.epoch}{score}"
    if end in FAILURES:
        last = number == len(view.ends)
        lines = [f"\n    {line}" for line in view.error.splitlines()] if last else []
        what = "TIMED OUT" if end == TIMEOUT else "FAILED"
        return "".join([f"{what} in attempt {number}", *lines])
    how = "its process died" if end == DIED else "stopped"
    return f"{how} after epoch {view.epoch}, to be continued"


class Follower:
    """A thread that shows the ledger on the display, and writes a request to stop into the ledger.

    A signal handler cannot do the latter, since it may interrupt MLflow in the middle of a call.
    It is a context manager.

    Args:
        ledger: used by this object alone.
        display: where to show it.
        shown: makes what is shown of the trials, by fingerprint.
        by: the sweeper's token.
        stop: is set if the sweep was deleted in MLflow, so that nothing more is begun.
    """

    def __init__(
        self,
        ledger: Ledger,
        display: Display,
        shown: Callable[[View], Mapping[str, Shown]],
        by: str,
        stop: threading.Event,
    ) -> None:
        self._ledger, self._display, self._shown, self._by = ledger, display, shown, by
        self._stop = stop
        self._looking = threading.Lock()
        self._wake = threading.Event()
        self._over = False
        self._stop_reason: str | None = None
        self._thread = threading.Thread(target=self._run, name="sweep follower", daemon=True)

    def __enter__(self) -> Follower:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()
        self.look()

    def stop_trials(self, reason: str) -> None:
        """Ask this sweeper's trials to write a checkpoint and end; safe in a signal handler."""
        self._stop_reason = reason
        self._wake.set()

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
            self.look(fresh=False)

    def look(self, fresh: bool = True) -> None:
        """Pass on a request to stop, then read the ledger and show it.

        Args:
            fresh: see `Ledger.read`.
        """
        with self._looking:
            try:
                self._pass_on()
                self._display.update(self._shown(self._ledger.read(fresh)), time.monotonic())
            except UserError:
                if not self._stop.is_set():
                    self._stop.set()
                    self.stop_trials("the sweep was deleted in MLflow")
            except Exception as error:  # the store may be away for a while; training goes on
                log.warning("the ledger cannot be read: %s", first_line(error))

    def _pass_on(self) -> None:
        reason = self._stop_reason
        if reason is not None:
            self._ledger.stop(self._by, reason)
            self._stop_reason = None
            self._display.message(
                f"{reason}: running trials write a checkpoint; once more to leave at once"
            )
