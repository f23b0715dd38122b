"""What a run has to tell MLflow: written down first, then delivered in order by a thread.

Each record is a line of a journal below `output_dir`, its file lies beside it, and both go away
once MLflow has them. So a store that is away costs a training nothing, and what it has not taken
outlives the process: `python -m mnist_hydra.sync`, or the run's next process, delivers it.
To deliver a record twice changes nothing: MLflow keeps equal metrics, parameters and tags once, and
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
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mnist_hydra.errors import ClaimLost, InUse, UserError, first_line
from mnist_hydra.secrets import hide, hide_all, hide_in_error
from mnist_hydra.tracking import journal
from mnist_hydra.tracking.journal import Record, SpooledRun
from mnist_hydra.tracking.store import is_busy, shown_address
from mnist_hydra.tracking.tracker import Tracker, is_away, is_for_later

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_hydra.config import Place

CHECKPOINTS_KEPT = 2
"""Older ones that the store has not taken make room for newer ones."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
"""Between two attempts to deliver; it doubles from the first to the longest."""
PATIENCE_S, PATIENCE_AWAY_S = 30.0, 5.0
"""After a run's end: if the store takes nothing for so long, the rest is left to later. The second
holds while it is known to be away, and not only busy.
"""
CHECK_AFTER_S = 10.0
"""Seconds without a delivered record after which it is asked whose run it is: well below those
after which another process takes one over (`ledger.owner.SILENT_S`).
"""
LOCK_WAIT_S = 10.0

log = logging.getLogger(__name__)


def deliver_next(
    folder: Path,
    tracker: Tracker,
    run_id: str,
    recorded: Collection[int] = (),
    check: Callable[[], None] = lambda: None,
) -> bool:
    """Deliver the next record of a spool; false if there is none.

    A record or file that is not as it was written is left out, and said.

    Args:
        recorded: epochs that MLflow knows already, perhaps trained again elsewhere.
        check: called before a record is delivered; what it raises keeps that back.
    """
    record, end = next(journal.undelivered(folder), (None, 0))
    if end == 0:
        return False
    if record is None:
        where = folder / journal.JOURNAL
        journal.say(f"a record of run {run_id} is damaged and is left out ({where})")
    else:
        if record.kind != "end":  # once that has arrived its run has ended, by ourselves
            check()
        _deliver(record, folder, tracker, run_id, recorded)
    _pass_by(folder, record, end)
    return True


def skip_next(folder: Path) -> None:
    """Leave out the next record, which MLflow refuses, with its file."""
    _pass_by(folder, *next(journal.undelivered(folder)))


def _pass_by(folder: Path, record: Record | None, end: int) -> None:
    """Write down that the journal is done up to `end`, and remove the record's file."""
    journal.set_position(folder, end)
    if record is not None and record.file is not None:
        shutil.rmtree(folder / str(record.number), ignore_errors=True)


def _deliver(
    record: Record, folder: Path, tracker: Tracker, run_id: str, recorded: Collection[int]
) -> None:
    data, path = record.data, record.path(folder)
    if record.kind == "checkpoint" and not path.exists():
        return  # it has made room for a newer one
    if record.file is not None and not record.is_whole(folder):
        journal.say(f"a file of run {run_id} is damaged or gone and is left out ({path})")
        return
    if record.kind == "settings":
        tracker.log_settings(run_id, data)
    elif record.kind == "tags":
        tracker.set_tags(run_id, data)
    elif record.kind == "data":
        tracker.log_data(run_id, data)
    elif record.kind == "metrics":
        new = [epoch for epoch in data if "epoch_s" not in epoch or epoch["epoch"] not in recorded]
        tracker.log_epochs(run_id, new)
    elif record.kind == "file":
        tracker.client.log_artifact(run_id, str(path), data)
    elif record.kind == "checkpoint":
        tracker.log_checkpoint(run_id, path, {**data, "sha256": record.sha256})
    elif record.kind == "model":
        try:
            tracker.log_model(run_id, path, data)
        except Exception as error:
            if is_away(error) or is_for_later(error):
                raise
            why = hide_in_error(first_line(error))
            journal.say(f"no exported model of run {run_id}: {why}")
    elif record.kind == "end" and not tracker.has_finished(run_id):  # elsewhere, meanwhile
        tracker.end(run_id, data["status"], data["at_ms"])


def deliver_all(
    folder: Path, spooled: SpooledRun, tracker: Tracker, *, wait_s: float = 0.0
) -> tuple[int, str]:
    """Deliver what a dead process left in a spool; returns how many records that were, and the
    run's id.

    What it left of the training of a run that has finished since is left out, and said: the weights
    are to be those of whoever finished it, as all else.

    Args:
        wait_s: for another process that delivers it, or whose run it is.

    Raises:
        InUse: its run is still at work.
        UserError: MLflow refuses a record; what is left stays.
        Exception: MLflow's, if the store does not take one; what is left stays.
    """
    try:
        with FileLock(folder / journal.LOCK, timeout=wait_s):
            journal.warn_of_lost_records(folder, spooled.id)
            if not (folder / journal.JOURNAL).exists():  # another process has just delivered it
                journal.remove(folder)
                return 0, spooled.id
            run_id = tracker.create_run(spooled)
            journal.write_run(folder, replace(spooled, run_id=run_id))
            left = journal.records(folder)
            own = all(record.is_product or record.kind == "end" for record in left)
            if not own and tracker.has_finished(run_id):
                old = f"{len(left)} records of before are left out"
                journal.say(f"run {run_id} has finished: {old}")
                journal.remove(folder)
                return 0, run_id
            delivered, recorded = 0, tracker.epochs_recorded(run_id)
            while deliver_next(folder, tracker, run_id, recorded):
                delivered += 1
            journal.remove(folder)
            return delivered, run_id
    except Timeout:
        raise in_use(spooled) from None
    except Exception as error:
        if isinstance(error, UserError) or is_away(error):
            raise
        right = f"restore the run if it was deleted, or delete {folder}"
        if is_for_later(error):
            right = "more memory, or a higher limit of the proxy before the server; then again"
        raise UserError(
            f"MLflow refuses what run {spooled.id} has left; right: {right} ({first_line(error)})"
        ) from None


def deliver_left(place: Place, tracker: Tracker, run: str, *, wait_s: float = 0.0) -> None:
    """Deliver what dead processes of a run could not.

    Args:
        wait_s: for another process that delivers it just now.

    Raises:
        InUse: another process has one of its spools; the others are delivered.
        Exception: MLflow's, if the store does not take it.
    """
    busy: InUse | None = None
    for folder, spooled in journal.spools(place.folder, run):
        try:
            deliver_all(folder, spooled, tracker, wait_s=wait_s)
        except InUse as error:
            busy = error
    if busy is not None:
        raise busy


def spooled_run(
    place: Place, run_id: str, config: str | None = None, attempt: int | None = None
) -> SpooledRun:
    """A run that MLflow has, as a spool is of it.

    Args:
        config: see `SpooledRun`.
        attempt: at a trial, whose spool is its own: that of a process that lost the trial, and
            stands still, may stay locked.
    """
    store, experiment = shown_address(place.tracking.uri), place.tracking.experiment_name
    key = run_id if attempt is None else f"{run_id}-{attempt}"
    return SpooledRun(key, experiment, None, {}, 0, store, run_id, config)


class Spool:
    """The way of one run's records to MLflow.

    Entering it starts the thread; leaving it waits until all is delivered, or the store has taken
    nothing for `PATIENCE_S`, or `PATIENCE_AWAY_S` where it is away.

    Args:
        output_dir: where the folder of spools is.
        spooled: the run, which is made in MLflow if it is not there.
        open_tracker: opens the store; repeated while that is away.
        reopen: whether the run has been closed before and goes on.
        check: raises `ClaimLost` if another process has taken the run over; asked before a record
            that comes after a silence, and then none is delivered any more. Without it a training's
            run is looked at, whether that has finished elsewhere.
    """

    def __init__(
        self,
        output_dir: Path,
        spooled: SpooledRun,
        open_tracker: Callable[[], Tracker],
        *,
        reopen: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.run = spooled
        """Gets its id once the store is open."""
        self.folder = output_dir / journal.FOLDER / spooled.key
        self.tracker: Tracker | None = None
        """The store, once it is open."""
        self.refusal: BaseException | None = None
        """What MLflow refused for good, first."""
        self.away: str | None = None
        """Why the store takes nothing now; `None` while it does."""
        self._is_busy = False
        """Whether that is because another process writes to it."""
        self._taken_at = time.monotonic()
        """When the store last took something, or had nothing to take."""
        self._open_tracker, self._reopen = open_tracker, reopen
        self._check, self._heard_at = check or self._check_finished, 0.0
        """Whether the run is still this process's own, and when the store last took a record."""
        self._changed = threading.Condition()
        self._checkpoints: list[Path] = []
        """The newest ones; each is here until the store has it."""
        self._closing = self._closed = self._given_up = False
        self._thread = threading.Thread(target=self._deliver, name="spool", daemon=True)
        self._lock = FileLock(self.folder / journal.LOCK, thread_local=False)

    def __enter__(self) -> Spool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_WAIT_S)
            journal.write_run(self.folder, self.run)
            waiting = journal.records(self.folder)
            self._numbers = count(max((record.number for record in waiting), default=-1) + 1)
            self._checkpoints = [r.path(self.folder) for r in waiting if r.kind == "checkpoint"]
            path = self.folder / journal.JOURNAL
            self._journal = open(path, "ab", buffering=0)
            # A process that was killed as it wrote has left part of a line.
            self._journal.truncate(path.read_bytes().rfind(b"\n") + 1)
            size = self._journal.seek(0, os.SEEK_END)
            if journal.position(self.folder) > size:  # a loss of power has taken the journal's end
                journal.set_position(self.folder, size)
        except Timeout:
            raise in_use(self.run) from None
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
    def left(self) -> int:
        """How many records are not delivered yet."""
        return sum(1 for _ in journal.undelivered(self.folder))

    @property
    def _is_gone(self) -> bool:
        """Whether the store is away, and not only busy."""
        return self.away is not None and not self._is_busy

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

    def end(self, status: str, at_ms: int | None = None) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`; now, if it is not said when."""
        self._append("end", {"status": status, "at_ms": at_ms or int(time.time() * 1000)})

    def log_text(self, text: str, name: str) -> None:
        """Record text as an artifact called `name`."""
        content = hide(text).encode()
        self._append_artifact(name, lambda path: path.write_bytes(content))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Record a picture as an artifact called `name`, a PNG."""
        self._append_artifact(name, lambda path: figure.savefig(path, dpi=110))

    def log_state(self, state: dict[str, Any], name: str) -> None:
        """Record a state dictionary as an artifact called `name`."""
        from mnist_hydra import checkpoint

        self._append_artifact(name, lambda path: checkpoint.save(path, state))

    def log_model(self, save: Callable[[Path], None], step: int) -> None:
        """Record an MLflow model.

        Args:
            save: writes the model's folder.
            step: the epoch that it is of.
        """
        self._append_file("model", step, "model", save)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Record the run's newest checkpoint."""
        from mnist_hydra import checkpoint

        at = {"epoch": state["epoch"], "step": state["steps"]}
        path = self._append_file("checkpoint", at, "state.pt", lambda p: checkpoint.save(p, state))
        self._checkpoints.append(path)
        while len(self._checkpoints) > CHECKPOINTS_KEPT:
            self._checkpoints.pop(0).unlink(missing_ok=True)

    def _append_artifact(self, name: str, make: Callable[[Path], Any]) -> None:
        folder, _, file = name.rpartition("/")
        self._append_file("file", folder or None, file, make)

    def _append_file(self, kind: str, data: Any, name: str, make: Callable[[Path], Any]) -> Path:
        record = Record(next(self._numbers), kind, data, name)
        path = record.path(self.folder)
        # A killed process may have left part of a file there that is in no record.
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        try:
            make(path)
            sha256 = journal.sha256_of(path)
        except BaseException:  # no half of it takes room on a full disk
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        self._write_down(replace(record, sha256=sha256))
        return path

    def _append(self, kind: str, data: Any) -> None:
        self._write_down(Record(next(self._numbers), kind, data))

    def _write_down(self, record: Record) -> None:
        line = journal.line_of(record)
        with self._changed:
            whole = self._journal.seek(0, os.SEEK_END)
            if self._journal.write(line) != len(line):
                self._journal.truncate(whole)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
            self._changed.notify_all()

    def _deliver(self) -> None:
        try:
            self._deliver_until_closed()
        finally:
            if self._given_up:  # a request that nobody waited for has ended
                self._lock.release()

    def _deliver_until_closed(self) -> None:
        wait_s = FIRST_WAIT_S
        recorded: Collection[int] = ()
        while not self._given_up:
            try:
                if self.tracker is None:
                    recorded = self._open()
                assert self.tracker is not None
                delivered = deliver_next(
                    self.folder, self.tracker, self.run.id, recorded, self._check_after_silence
                )
                if delivered:
                    self._heard_at = time.time()
                self.away, wait_s = None, FIRST_WAIT_S
                self._taken_at = time.monotonic()
                with self._changed:
                    if not delivered and not self._pending():
                        if self._closing:
                            return
                        self._changed.wait(60)
                        self._taken_at = time.monotonic()
            except Exception as error:
                # If a checkpoint waits here for a store that was never opened, try on, whatever the
                # error: a name that is not found, a password that is not taken.
                if not is_away(error) and not (self.tracker is None and self._checkpoints):
                    self.refusal = self.refusal or error
                    if self.tracker is None:
                        return
                    if is_for_later(error):  # what is left stays
                        self.away = first_line(error)
                        return
                    skip_next(self.folder)
                    continue
                self._is_busy = is_busy(error)
                self.away = first_line(error)
                with self._changed:
                    self._changed.wait(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _open(self) -> Collection[int]:
        """Open the store, find or make the run; returns the epochs that MLflow knows of it."""
        tracker = self._open_tracker()
        run_id = tracker.create_run(self.run)
        if self._reopen and not tracker.has_finished(run_id):
            tracker.client.update_run(run_id, status="RUNNING")
        was_there = self.run.run_id is not None  # then it may have been trained further before
        recorded: Collection[int] = tracker.epochs_recorded(run_id) if was_there else ()
        self.run = replace(self.run, run_id=run_id)
        journal.write_run(self.folder, self.run)
        self.tracker = tracker
        self._taken_at = time.monotonic()
        return recorded

    def _check_after_silence(self) -> None:
        """Ask whose run it is before the first record, and after a while in which it may have been
        taken over. The time of day goes on while the machine sleeps.
        """
        if isinstance(self.refusal, ClaimLost):
            raise self.refusal
        if abs(time.time() - self._heard_at) > CHECK_AFTER_S:
            self._check()

    def _check_finished(self) -> None:
        run_id, is_training = self.run.id, self.run.config is not None
        if is_training and self.tracker is not None and self.tracker.has_finished(run_id):
            raise ClaimLost(f"run {run_id} was finished by another process, whose results stay")

    def _pending(self) -> bool:
        path = self.folder / journal.JOURNAL
        return journal.position(self.folder) < path.stat().st_size

    def wait(self, is_enough: Callable[[], bool]) -> None:
        """Wait until all that is written down is delivered; not for a store that is away, and not
        longer than `PATIENCE_S` for one that is busy or answers slowly.

        Args:
            is_enough: asked again and again: whether to wait no longer.
        """
        began = time.monotonic()
        while self._pending() and self._thread.is_alive():
            since = max(began, self._taken_at) if self.away is None else self._taken_at
            is_silent = time.monotonic() - since > PATIENCE_S
            if is_silent or self._is_gone or self.refusal is not None or is_enough():
                return
            time.sleep(0.005)

    def close(self, stop: threading.Event | None = None) -> None:
        """Wait until all is delivered or the store takes no more; what is left stays.

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
                if self.away is not None and not said:
                    log.warning("waiting for the store, which does not answer: %s", self.away)
                    said = True
            took_nothing_s = time.monotonic() - max(began, self._taken_at)
            patience_s = PATIENCE_AWAY_S if self._is_gone else PATIENCE_S
            if took_nothing_s > patience_s:
                break
        self._closed = True
        self._journal.close()
        self._given_up = self._thread.is_alive()
        if not self._given_up:
            never_begun = self.tracker is None and not self._checkpoints
            if self.left == 0 or (self.refusal is not None and never_begun):
                journal.remove(self.folder)
            self._lock.release()
            with suppress(OSError):  # over NFS the folder stays as long as its lock is open
                self.folder.rmdir()


def in_use(spooled: SpooledRun) -> InUse:
    """The error of whoever wants a spool that another process has."""
    return InUse(f"run {spooled.id} is at work in another process; right: wait for its end")
