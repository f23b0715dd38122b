"""Shows people how a training goes: a bar on a terminal, a line per epoch anywhere else.

It must never cost a training more than microseconds a step, or look at a tensor. That output which
cannot be written ends no training is `entry.outlive_readers`' to see to.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from typing_extensions import Self

DRAWINGS_PER_S = 4
BAR_WIDTH = 40
GAP = 2
RANKS = {"train/loss": 4, "train/acc": 5, "val/loss": 7, "val/acc": 8, "test/loss": 7}
RANKS |= {"test/acc": 8, "lr": 1, "images_per_s": 2}
"""What an epoch's line shows in this order; where room is short the lowest are left out first."""


@dataclass
class Progress:
    """A training's progress, from the `with` block's begin to its end.

    On a terminal rich redraws a bar four times a second in a thread, and a line for each finished
    epoch stays above it. Where output is no terminal there are only those lines, and
    rich is not imported.
    """

    epochs: int
    """Of the whole training, those of an earlier process included."""
    steps_per_epoch: int
    images_per_epoch: int
    label: str = ""
    """What is trained, in a word or two."""
    done_steps: int = 0
    """So far; more than 0 at the begin where a training is resumed."""
    enabled: bool = True
    """False shows nothing at all."""
    _metrics: Mapping[str, float] = field(default_factory=dict)
    _marks: tuple[tuple[float, int], ...] = ()
    """Time and steps done, oldest first."""
    _is_shown: bool = False
    _live: Live | None = None

    def step(self, n: int = 1) -> None:
        """Count `n` steps more; nothing is drawn by it."""
        self.done_steps += n

    def epoch(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Report a finished epoch.

        Args:
            epoch: its number, from 1.
            metrics: `<split>/loss`, `<split>/acc` (0 to 1), `lr` and `images_per_s`, whichever
                there are; others are not shown.
        """
        self.done_steps = epoch * self.steps_per_epoch
        self._metrics = dict(metrics)
        self._marks = (*self._marks[-3:], (time.monotonic(), self.done_steps))
        words = self._epoch_words(epoch)
        if self._live is not None:
            line = fit_words(words, self._live.console.width)
            self._live.console.print(line, markup=False, emoji=False, highlight=False, crop=True)
        elif self._is_shown:
            print(fit_words(words, sys.maxsize), flush=True)

    def __enter__(self) -> Self:
        """Start the bar, where output is a terminal."""
        self._marks = ((time.monotonic(), self.done_steps),)
        self._is_shown = self.enabled and sys.stdout is not None
        if self._is_shown:
            encoding = sys.stdout.encoding or "ascii"
            label = self.label.encode(encoding, "replace").decode(encoding)
            self.label = "".join(c if c.isprintable() else "?" for c in label)
            if can_be_redrawn(sys.stdout):
                from rich.console import Console
                from rich.live import Live

                self._live = Live(
                    self, console=Console(), refresh_per_second=DRAWINGS_PER_S, transient=True
                )
                self._live.start()
                self._live.console.show_cursor()  # or a killed process would leave it hidden
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar away; the lines of the epochs stay."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich draws: label, bar and as many words as fit, on one line."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        words = fit_words(self._bar_words(), options.max_width)
        room = options.max_width - len(words) - GAP
        label = self.label if len(self.label) + GAP + 10 <= room else ""
        room = min(room - (len(label) + GAP if label else 0), BAR_WIDTH)
        if room < 4:
            yield Text(words, no_wrap=True, overflow="crop")
            return
        line = Table.grid(padding=(0, GAP, 0, 0))
        total = self.epochs * self.steps_per_epoch
        cells = [Text(label, style="bold")] if label else []
        bar = ProgressBar(total=total, completed=self.done_steps, width=room)
        line.add_row(*cells, bar, Text(words, no_wrap=True))
        yield line

    def _epoch_words(self, epoch: int) -> list[tuple[int, str]]:
        """The words of an epoch's line, each with a rank: lower ones are left out first."""
        words = [(4, self.label), (9, f"epoch {epoch:{len(str(self.epochs))}}/{self.epochs}")]
        measured = ((key, rank) for key, rank in RANKS.items() if key in self._metrics)
        words += [(rank, _word(key, self._metrics[key])) for key, rank in measured]
        left = f"{clock(self._left_s())} left"
        if epoch >= self.epochs:  # as wide, so that the last line leaves out what the others do
            left = " " * len("0:00 left")
        return [*words, (3, left)]

    def _bar_words(self) -> list[tuple[int, str]]:
        """The words beside the bar, with ranks as in an epoch's line."""
        metrics = self._metrics
        epoch = min(self.done_steps // self.steps_per_epoch + 1, self.epochs)
        words = [(9, f"epoch {epoch}/{self.epochs}")]
        if "train/loss" in metrics:
            words.append((5, _word("train/loss", metrics["train/loss"]).removeprefix("train/")))
        shown = next((n for n in ("val/acc", "test/acc", "train/acc") if n in metrics), None)
        if shown is not None:
            words.append((8, _word(shown, metrics[shown])))
        if speed := metrics.get("images_per_s") or self._images_per_s():
            words.append((3, _word("images_per_s", speed)))
        return [*words, (7, f"{clock(self._left_s())} left")]

    def _images_per_s(self) -> float:
        began, before = self._marks[-1]
        elapsed = time.monotonic() - began
        images = (self.done_steps - before) * self.images_per_epoch / self.steps_per_epoch
        return images / elapsed if elapsed > 0 else 0.0

    def _left_s(self) -> float | None:
        total, now = self.epochs * self.steps_per_epoch, time.monotonic()
        return time_left_s(self._marks, now, self.done_steps, total, self.steps_per_epoch)


def fit_words(words: Iterable[tuple[int, str]], width: int) -> str:
    """Join words by two spaces, leaving out the lowest ranks until the line fits the width.

    One word always stays, cut where it must be. Empty words are left out.

    Args:
        words: rank and text, in the order of the line.
        width: in characters, 0 or more.
    """
    kept = [word for word in words if word[1]]
    gap = " " * GAP
    while len(kept) > 1 and len(gap.join(text for _, text in kept)) > width:
        kept.remove(min(reversed(kept), key=lambda word: word[0]))
    return gap.join(text for _, text in kept)[:width].rstrip()


def time_left_s(
    marks: Sequence[tuple[float, int]], now: float, done: int, total: int, steps_per_epoch: int
) -> float | None:
    """Seconds until `total` steps, at the speed of at least the last whole epoch, or `None`.

    It is `None` while no step is done. A slow start (compiling) counts only until a whole epoch
    without it has passed.

    Args:
        marks: time (s) and steps done, at the beginning or the end of an epoch, oldest first.
        now: on the same clock as the marks.
    """
    if not marks:
        return None
    began, before = marks[0]
    for at, steps in marks:
        if done - steps >= steps_per_epoch:
            began, before = at, steps
    if done <= before or now <= began:
        return None
    return (now - began) / (done - before) * max(total - done, 0)


def clock(seconds: float | None) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on; `-:--` for `None`."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def can_be_redrawn(stream: TextIO) -> bool:
    """Whether it is a terminal that nothing else, such as a sweep's display, redraws."""
    taken = hasattr(stream, "rich_proxied_file")
    return stream.isatty() and not taken and os.environ.get("TERM") not in ("dumb", "unknown")


def _word(key: str, value: float) -> str:
    if key == "lr":
        return f"lr {value:<8.4g}"
    if key == "images_per_s":
        return f"{value:,.0f} images/s"
    if key.endswith("/acc"):
        return f"{key} {percent(value)}"
    return f"{key} {value:.4f}" if abs(value) < 1000 else f"{key} {value:.1e}"


def percent(share: float) -> str:
    """A share of 0 to 1 in per cent, `99.42 %`."""
    return f"{100 * share:.2f} %"
