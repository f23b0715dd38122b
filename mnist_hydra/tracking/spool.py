"""What a run has to tell MLflow: written down first, then delivered in order by a thread.

Each record is a line of a journal below `output_dir`, its file lies beside it, and both go away
once MLflow has them. So a store that is away costs a training nothing, and what it has not taken
outlives the process: `python -m mnist_hydra.sync`, or the run's next process, delivers it.
Nothing is delivered twice to any effect: MLflow keeps equal metrics, parameters and tags once, and
artifacts by their name. The journal outlives a killed process, not a machine that loses its power;
what that takes is in the checkpoint, whose metrics are told again.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.secrets import hide, hide_all
from mnist_hydra.tracking.deliver import deliver_next, skip_next
from mnist_hydra.tracking.journal import (
    FOLDER,
    JOURNAL,
    LOCK,
    About,
    Record,
    at_work,
    line_of,
    position,
    records,
    remove,
    sha256_of,
    whole_lines,
    write_about,
    write_whole,
)
from mnist_hydra.tracking.tracker import Tracker, is_away

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS_KEPT = 2
"""Older ones that the store has not taken make room for newer ones."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
"""Between two attempts to deliver; it doubles from the first to the longest."""
PATIENCE_S, PATIENCE_AWAY_S = 30.0, 5.0
"""What is not delivered so long after a run's end is left to later; the second, if it is known that
the store is away.
"""
LOCK_WAIT_S = 10.0

log = logging.getLogger(__name__)


class Spool:
    """The way of one run's records to MLflow.

    Entering it starts the thread; leaving it waits until all is delivered, but no longer than
    `PATIENCE_S`, or `PATIENCE_AWAY_S` where the store is away.

    Args:
        output_dir: where the folder of spools is.
        about: the run.
        open_run: opens the store, finds or makes the run, and returns both; repeated while the
            store is away.
    """

    def __init__(
        self, output_dir: Path, about: About, open_run: Callable[[About], tuple[Tracker, str]]
    ) -> None:
        self.about = about
        self.folder = output_dir / FOLDER / about.key
        self._open_run = open_run
        self._changed = threading.Condition()
        self._numbered = 0  # records so far
        self._checkpoints: list[Path] = []
        self._holds_training = False
        """Whether a checkpoint may lie in it that the store does not have."""
        self._opened: tuple[Tracker, str] | None = None
        self.refusal: BaseException | None = None
        """What MLflow refused for good, first."""
        self._away: str | None = None
        self._closing = self._closed = self._given_up = False
        self._thread = threading.Thread(target=self._deliver, name="spool", daemon=True)
        self._lock = FileLock(self.folder / LOCK, thread_local=False)

    def __enter__(self) -> Spool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_WAIT_S)
            write_about(self.folder, self.about)
            waiting = [record for record in records(self.folder) if record is not None]
            self._numbered = max((record.number for record in waiting), default=-1) + 1
            self._holds_training = any(record.kind == "checkpoint" for record in waiting)
            self._journal = open(self.folder / JOURNAL, "ab", buffering=0)
            self._journal.truncate(whole_lines(self.folder / JOURNAL))
            self._journal.seek(0, os.SEEK_END)
        except Timeout:
            raise at_work(self.about) from None
        except OSError as error:
            self._lock.release()
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); right: room there, or "
                f"another output_dir="
            ) from None
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run(self) -> str:
        """The run's id in MLflow; its key while it has none."""
        return self.about.key if self._opened is None else self._opened[1]

    @property
    def tracker(self) -> Tracker | None:
        """The store, once it is open."""
        return None if self._opened is None else self._opened[0]

    @property
    def left(self) -> int:
        """How many records are not delivered yet."""
        return sum(1 for _ in records(self.folder)) if self.folder.exists() else 0

    @property
    def away(self) -> str | None:
        """Why the store takes nothing now; `None` while it does."""
        return self._away

    def raise_if_refused(self) -> None:
        """Raise what MLflow refuses for good, such as to write to a run that was deleted."""
        if self.refusal is not None:
            raise self.refusal

    # What a run tells. Each of these returns as soon as it is written down.

    def log_settings(self, settings: Mapping[str, str]) -> None:
        """Record settings as parameters; those that the run already has stay as they are."""
        self._append("settings", hide_all(settings))

    def log_data(self, splits: list[dict[str, str]]) -> None:
        """Record the data as MLflow's inputs, see `Tracker.log_data`."""
        self._append("data", splits)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set several tags."""
        self._append("tags", hide_all(tags))

    def log_epochs(self, history: list[dict[str, Any]]) -> None:
        """Record the metrics of epochs, each `{"epoch": int, "timestamp_ms": int, name: value}`."""
        for start in range(0, len(history), 100):
            self._append("metrics", history[start : start + 100])

    def log_text(self, text: str, name: str) -> None:
        """Record text as an artifact called `name`."""
        content = hide(text).encode()
        self._append("file", _parent(name), name, lambda path: write_whole(path, content))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a picture as an artifact called `name`, a PNG."""
        self._append("file", _parent(name), name, lambda path: figure.savefig(path, dpi=110))

    def log_state(self, state: dict[str, Any], name: str) -> None:
        """Record a state dictionary as an artifact called `name`."""
        from mnist_hydra import checkpoint

        self._append("file", _parent(name), name, lambda path: checkpoint.save(path, state))

    def log_model(self, save: Callable[[Path], None], step: int) -> None:
        """Record an MLflow model.

        Args:
            save: writes the model's folder.
            step: the epoch that it is of.
        """
        self._append("model", step, "model", save)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Record the run's newest checkpoint."""
        from mnist_hydra import checkpoint

        at = {"epoch": state["epoch"], "step": state["steps"]}
        path = self._append("checkpoint", at, "state.pt", lambda p: checkpoint.save(p, state))
        assert path is not None
        self._holds_training = True
        self._checkpoints.append(path)
        while len(self._checkpoints) > CHECKPOINTS_KEPT:
            self._checkpoints.pop(0).unlink(missing_ok=True)

    def end(self, status: str, at_ms: int | None = None) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`; now, if it is not said when."""
        self._append("end", {"status": status, "at_ms": at_ms or int(time.time() * 1000)})

    def _append(
        self,
        kind: str,
        data: Any,
        name: str | None = None,
        make: Callable[[Path], Any] | None = None,
    ) -> Path | None:
        path, sha256 = None, None
        with self._changed:
            number = self._numbered
            self._numbered += 1
        if name is not None and make is not None:
            path = self.folder / str(number) / Path(name).name
            path.parent.mkdir(exist_ok=True)
            try:
                make(path)
                sha256 = sha256_of(path)
            except BaseException:  # no half of it takes room on a full disk
                shutil.rmtree(path.parent, ignore_errors=True)
                raise
        file = None if path is None else path.name
        line = line_of(Record(number, kind, data, file, sha256))
        with self._changed:
            whole = self._journal.tell()
            if self._journal.write(line) != len(line):
                self._journal.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
            self._changed.notify_all()
        return path

    def _deliver(self) -> None:
        try:
            self._deliver_until_closed()
        finally:
            if self._given_up:  # a request that nobody waited for has ended
                self._lock.release()

    def _deliver_until_closed(self) -> None:
        wait_s = FIRST_WAIT_S
        told: Collection[int] = ()
        while not self._given_up:
            try:
                if self._opened is None:
                    opened = self._open_run(self.about)
                    if self.about.run_id is not None:  # it may have been trained further before
                        told = opened[0].epochs_told(opened[1])
                    self.about = replace(self.about, run_id=opened[1])
                    write_about(self.folder, self.about)
                    self._opened = opened
                delivered = deliver_next(self.folder, *self._opened, told)
                self._away, wait_s = None, FIRST_WAIT_S
                with self._changed:
                    if not delivered and not self._pending():
                        if self._closing:
                            return
                        self._changed.wait(60)
            except Exception as error:
                # What was trained meanwhile waits for a store that is opened later, whatever keeps
                # it from that now: a name that is not found, a password that it does not take.
                if not is_away(error) and not (self._opened is None and self._holds_training):
                    self.refusal = self.refusal or error
                    if self._opened is None:
                        return
                    skip_next(self.folder)
                    continue
                self._away = first_line(error)
                with self._changed:
                    self._changed.wait(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _pending(self) -> bool:
        return position(self.folder) < (self.folder / JOURNAL).stat().st_size

    def wait(self) -> None:
        """Wait until all that is written down is delivered, unless the store is away."""
        while self._pending() and self._thread.is_alive():
            if self._away is not None or self.refusal is not None:
                return
            time.sleep(0.005)

    def close(self, stop: threading.Event | None = None) -> None:
        """Wait until all is delivered, but not for too long; what is left stays.

        Args:
            stop: wait on and on, until it is set; only then patience has an end.
        """
        if self._closed:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        began, said = time.monotonic(), False
        while self._thread.is_alive():
            self._thread.join(0.05)
            if stop is not None and not stop.is_set():
                began = time.monotonic()
                if self._away is not None and not said:
                    log.warning("waiting for the store, which does not answer: %s", self._away)
                    said = True
            patience_s = PATIENCE_S if self._away is None else PATIENCE_AWAY_S
            if self._thread.is_alive() and time.monotonic() - began > patience_s:
                break
        self._closed = True
        self._journal.close()
        self._given_up = self._thread.is_alive()
        if not self._given_up:
            never_begun = self._opened is None and not self._holds_training
            if self.left == 0 or (self.refusal is not None and never_begun):
                remove(self.folder)
            self._lock.release()


def _parent(name: str) -> str | None:
    folder = str(Path(name).parent)
    return None if folder == "." else folder
