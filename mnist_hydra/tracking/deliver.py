"""How the records of a journal reach MLflow: one after the other, each to the effect of once."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.tracking.journal import (
    JOURNAL,
    LOCK,
    About,
    Record,
    at_work,
    position,
    record_of,
    remove,
    say,
    set_position,
    whole_file,
    write_about,
)
from mnist_hydra.tracking.tracker import Tracker, is_away


def deliver_next(
    folder: Path, tracker: Tracker, run_id: str, told: Collection[int] = ()
) -> bool:
    """Deliver the next record of a spool; false if there is none.

    A record or file that is not as it was written is left out, and said.

    Args:
        told: epochs that MLflow knows already, perhaps trained again elsewhere.
    """
    start = position(folder)
    with open(folder / JOURNAL, "rb") as journal:
        journal.seek(start)
        line = journal.readline()
    if not line.endswith(b"\n"):
        return False
    record = record_of(line)
    if record is None:
        say(f"a record of run {run_id} is damaged and is left out ({folder / JOURNAL})")
    else:
        _deliver(record, folder, tracker, run_id, told)
    set_position(folder, start + len(line))
    if record is not None and record.file is not None:
        shutil.rmtree(folder / str(record.number), ignore_errors=True)
    return True


def skip_next(folder: Path) -> None:
    """Leave out the next record, which MLflow refuses."""
    start = position(folder)
    with open(folder / JOURNAL, "rb") as journal:
        journal.seek(start)
        set_position(folder, start + len(journal.readline()))


def _deliver(
    record: Record, folder: Path, tracker: Tracker, run_id: str, told: Collection[int]
) -> None:
    data, path = record.data, folder / str(record.number) / str(record.file)
    made_room = record.kind == "checkpoint" and not path.exists()
    if record.file is not None and not made_room and not whole_file(folder, record):
        say(f"a file of run {run_id} is damaged or gone and is left out ({path})")
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


def deliver_all(
    folder: Path, about: About, tracker: Tracker, *, wait_s: float = 0.0
) -> tuple[int, str]:
    """Deliver what a dead process left in a spool; returns how many records that were, and the
    run's id.

    Args:
        wait_s: for another process that delivers it, or whose run it is.

    Raises:
        UserError: its run is still at work, or MLflow refuses a record; what is left stays.
        Exception: MLflow's, if the store does not take one; what is left stays.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise at_work(about) from None
    try:
        if not (folder / JOURNAL).exists():  # another process has just delivered it
            remove(folder)
            return 0, about.run_id or about.key
        run_id = tracker.create_run(about)
        write_about(folder, replace(about, run_id=run_id))
        count, told = 0, tracker.epochs_told(run_id)
        while deliver_next(folder, tracker, run_id, told):
            count += 1
        remove(folder)
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
