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
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.secrets import hide, hide_all
from mnist_hydra.tracking import Tracker, is_away

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "spool"
"""Below `output_dir`; in it a folder for each run that has anything undelivered."""
JOURNAL, POSITION, LOCK, ABOUT = "journal", "position", ".lock", "run.json"
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


@dataclass(frozen=True)
class About:
    """The MLflow run that a spool is of; it may not have been made yet."""

    key: str
    """The run's own name in this program, 32 hexadecimal digits: its id once MLflow has one."""
    experiment: str
    name: str | None
    tags: Mapping[str, str]
    start_ms: int
    store: str | None
    """The address of its store, without a password; `None` for the one below `output_dir`."""
    run_id: str | None = None
    config: str | None = None
    """What it began with, in YAML, for going on with it while the store is away."""

    def is_called(self, run: str) -> bool:
        """Whether that is its id or its key."""
        return run in (self.key, self.run_id)


@dataclass(frozen=True)
class Record:
    """One thing that is to be delivered."""

    number: int
    """From 0; the folder of its file is called so."""
    kind: str
    """`settings`, `data`, `tags`, `metrics`, `file`, `checkpoint`, `model` or `end`."""
    data: Any
    """Anything that JSON can hold."""
    file: str | None = None
    """Name of its file or folder, below the folder of its number."""
    sha256: str | None = None


def line_of(record: Record) -> bytes:
    """A record as a line of the journal: its CRC-32 in 8 hexadecimal digits, a blank, JSON."""
    return _with_checksum(json.dumps(asdict(record), separators=(",", ":")).encode())


def record_of(line: bytes) -> Record | None:
    """The record of a line; `None` for a line that is not as it was written."""
    text = _checked(line)
    return None if text is None else Record(**json.loads(text))


class Spool:
    """The way of one run's records to MLflow.

    Entering it starts the thread; leaving it waits until all is delivered, or the store has been
    away for `PATIENCE_S`.

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
        self._opened: tuple[Tracker, str] | None = None
        self.refusal: BaseException | None = None
        """What MLflow refused for good, first."""
        self._away: str | None = None
        self._closed = self._given_up = False
        self._thread = threading.Thread(target=self._deliver, name="spool", daemon=True)
        self._lock = FileLock(self.folder / LOCK, thread_local=False)

    def __enter__(self) -> Spool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=LOCK_WAIT_S)
            write_about(self.folder, self.about)
            waiting = [record.number for record in records(self.folder) if record is not None]
            self._numbered = max(waiting, default=-1) + 1
            self._journal = open(self.folder / JOURNAL, "ab", buffering=0)
            self._journal.truncate(_whole_lines(self.folder / JOURNAL))
        except Timeout:
            raise _at_work(self.about) from None
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
        self._append("file", _parent(name), name, lambda path: _write(path, hide(text).encode()))

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
                        if self._closed:
                            return
                        self._changed.wait(60)
            except Exception as error:
                if not is_away(error):
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
        return _position(self.folder) < (self.folder / JOURNAL).stat().st_size

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
            self._closed = True
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
        self._journal.close()
        self._given_up = self._thread.is_alive()
        if not self._given_up:
            if self.left == 0 or (self.refusal is not None and self._opened is None):
                _remove(self.folder)
            self._lock.release()


def records(folder: Path) -> Iterator[Record | None]:
    """The records of a spool that are not delivered, in order; `None` for a damaged one.

    A last line without an end, where the process was killed as it wrote, is none.
    """
    position = _position(folder)
    try:
        with open(folder / JOURNAL, "rb") as journal:
            journal.seek(position)
            for line in journal:
                if line.endswith(b"\n"):
                    yield record_of(line)
    except FileNotFoundError:
        return


def deliver_next(
    folder: Path, tracker: Tracker, run_id: str, told: Collection[int] = ()
) -> bool:
    """Deliver the next record of a spool; false if there is none.

    A record or file that is not as it was written is left out, and said.

    Args:
        told: epochs that MLflow knows already, perhaps trained again elsewhere.
    """
    position = _position(folder)
    with open(folder / JOURNAL, "rb") as journal:
        journal.seek(position)
        line = journal.readline()
    if not line.endswith(b"\n"):
        return False
    record = record_of(line)
    if record is None:
        _say(f"a record of run {run_id} is damaged and is left out ({folder / JOURNAL})")
    else:
        _deliver(record, folder, tracker, run_id, told)
    _set_position(folder, position + len(line))
    if record is not None and record.file is not None:
        shutil.rmtree(folder / str(record.number), ignore_errors=True)
    return True


def skip_next(folder: Path) -> None:
    """Leave out the next record, which MLflow refuses."""
    position = _position(folder)
    with open(folder / JOURNAL, "rb") as journal:
        journal.seek(position)
        _set_position(folder, position + len(journal.readline()))


def _deliver(
    record: Record, folder: Path, tracker: Tracker, run_id: str, told: Collection[int]
) -> None:
    data, path = record.data, folder / str(record.number) / str(record.file)
    made_room = record.kind == "checkpoint" and not path.exists()
    if record.file is not None and not made_room and not whole_file(folder, record):
        _say(f"a file of run {run_id} is damaged or gone and is left out ({path})")
        return
    if record.kind == "settings":
        tracker.log_settings(run_id, data)
    elif record.kind == "tags":
        tracker.set_tags(run_id, data)
    elif record.kind == "data":
        tracker.log_data(run_id, data)
    elif record.kind == "metrics":
        new = [epoch for epoch in data if "epoch_s" not in epoch or epoch["epoch"] not in told]
        tracker.log_epochs(run_id, new)
    elif record.kind == "file":
        tracker.log_file(run_id, path, data)
    elif record.kind == "model":
        tracker.log_model(run_id, path, data)
    elif record.kind == "end":
        tracker.end(run_id, data["status"], data["at_ms"])
    elif path.exists():  # a checkpoint that has not made room for a newer one
        tracker.log_checkpoint(run_id, path, {**data, "sha256": record.sha256})


def whole_file(folder: Path, record: Record) -> bool:
    """Whether a record's file is there, and as it was written."""
    try:
        return sha256_of(folder / str(record.number) / str(record.file)) == record.sha256
    except OSError:
        return False


def spools(output_dir: Path) -> list[tuple[Path, About]]:
    """The spools below `output_dir`, the oldest run first; one that does not say of which run it
    is, is said and left alone.
    """
    found = []
    for folder in (output_dir / FOLDER).glob("*/"):
        about = read_about(folder)
        if about is None and not (folder / JOURNAL).exists():
            continue  # another process begins it
        if about is None:
            _say(f"{folder / ABOUT} is damaged; right: delete {folder}, whose run is not known")
        else:
            found.append((folder, about))
    return sorted(found, key=lambda spool: spool[1].start_ms)


def deliver_all(folder: Path, about: About, tracker: Tracker) -> tuple[int, str]:
    """Deliver what a dead process left in a spool; returns how many records that were, and the
    run's id.

    Raises:
        UserError: its run is still at work, or MLflow refuses a record; what is left stays.
        Exception: MLflow's, if the store does not take one; what is left stays.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _at_work(about) from None
    try:
        run_id = tracker.create_run(about)
        write_about(folder, replace(about, run_id=run_id))
        count, told = 0, tracker.epochs_told(run_id)
        while deliver_next(folder, tracker, run_id, told):
            count += 1
        _remove(folder)
        return count, run_id
    except Exception as error:
        if isinstance(error, UserError) or is_away(error):
            raise
        raise UserError(
            f"MLflow refuses what run {about.run_id or about.key} has left ({first_line(error)}); "
            f"right: restore the run if it was deleted, or delete {folder}"
        ) from None
    finally:
        lock.release()


def is_at_work(folder: Path) -> bool:
    """Whether a process writes to a spool or delivers it."""
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _remove(folder: Path) -> None:
    """Remove a spool, and the folder of spools with the last one."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


def _at_work(about: About) -> UserError:
    return UserError(
        f"run {about.run_id or about.key} is at work in another process; right: wait for its end"
    )


def sha256_of(path: Path) -> str:
    """The SHA-256 (hex) of a file, or of a folder: of its files' names and hashes, in order."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        told = "".join(f"{p.relative_to(path)} {sha256_of(p)}\n" for p in files)
        return hashlib.sha256(told.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _position(folder: Path) -> int:
    """Up to where the journal is delivered, in bytes; damaged, all of it is delivered again."""
    try:
        return int(_checked((folder / POSITION).read_bytes()) or 0)
    except FileNotFoundError:
        return 0


def _set_position(folder: Path, position: int) -> None:
    _write(folder / POSITION, _with_checksum(str(position).encode()))


def read_about(folder: Path) -> About | None:
    """The run that a spool is of; `None` if that is damaged or missing."""
    try:
        text = _checked((folder / ABOUT).read_bytes())
    except FileNotFoundError:
        return None
    return None if text is None else About(**json.loads(text))


def write_about(folder: Path, about: About) -> None:
    """Write down which run a spool is of."""
    _write(folder / ABOUT, _with_checksum(json.dumps(asdict(about)).encode()))


def _with_checksum(text: bytes) -> bytes:
    """One line: the CRC-32 of a text in 8 hexadecimal digits, a blank, the text."""
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _checked(line: bytes) -> bytes | None:
    """The text of such a line; `None` if the line is not as it was written."""
    text = line[9:-1]
    return text if line == _with_checksum(text) else None


def _whole_lines(journal: Path) -> int:
    """Up to where a journal's lines are whole, in bytes: a killed process leaves part of one."""
    return journal.read_bytes().rfind(b"\n") + 1


def _parent(name: str) -> str | None:
    folder = str(Path(name).parent)
    return None if folder == "." else folder


def _write(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
