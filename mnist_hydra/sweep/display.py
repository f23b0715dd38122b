"""Shows a sweep while it runs: a live table on a terminal, a line per event elsewhere.

It is told what the ledger says and never asks the ledger itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mnist_hydra.sweep.trial import (
    DIED,
    DONE,
    FAILURES,
    PRUNED,
    RUNNING,
    TIMEOUT,
    WAITING,
    Trial,
)

MAX_ROWS = 20


@dataclass(frozen=True)
class Shown:
    """What is shown of one trial."""

    title: str
    state: str
    """One of those in `trial.py`."""
    epochs: int
    """How many it is to have."""
    epoch: int = 0
    """How many it has."""
    accuracy: float | None = None
    """Of the last epoch, in 0..1: on the hold-out where there is one, else on the test set."""
    ends: tuple[str | None, ...] = ()
    """How each of its attempts ended; `None` for one under way."""
    error: str = ""
    """The last lines of a failure."""


def shown(title: str, epochs: int, trial: Trial | None) -> Shown:
    """What is shown of a trial, which the ledger may not know yet."""
    if trial is None:
        return Shown(title, WAITING, epochs)
    accuracy = trial.metrics.get("val/acc", trial.metrics.get("test/acc"))
    ends = tuple(attempt.end for attempt in trial.attempts)
    error = trial.error.strip()
    return Shown(title, trial.state, epochs, trial.epoch, accuracy, ends, error)


def events(before: Mapping[str, Shown], after: Mapping[str, Shown]) -> list[str]:
    """What happened between two looks at the ledger, a text each, failures with their last lines.

    A trial that began and ended between the looks is told by its end alone.

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
    """Seconds that the rest will take at the pace so far; `None` as long as there is none.

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


def summary(views: Sequence[Shown], total: int, left_s: float | None) -> str:
    """One line of counts and the time left.

    Args:
        total: how many trials there are to be, those that the ledger does not know yet included.
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
    """A context manager that shows a sweep.

    Args:
        console: where to; a terminal gets the live table.
        total: how many trials there are to be.
        epochs: of a trial that the ledger does not know yet.
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def message(self, text: str) -> None:
        """Show a line that stays."""
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
        for view in running[:MAX_ROWS]:
            accuracy = "" if view.accuracy is None else f"{view.accuracy:.2%}"
            table.add_row(Text(view.title), f"{view.epoch}/{view.epochs}", accuracy)
        if len(running) > MAX_ROWS:
            table.add_row(f"and {len(running) - MAX_ROWS} more", "", "")
        parts = [table] if running else []
        return Group(*parts, Text(summary(list(self._views.values()), self._total, left_s)))


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
