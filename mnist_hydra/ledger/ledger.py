"""A sweep's ledger: entries in MLflow that are written once, and the trials that they describe.

An entry is a parameter, since MLflow refuses a second value for one. All are in runs of their own,
the ledger's pages, so that a trial's parameters are its settings alone. `trial.py` works out what
the entries mean.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from sys import intern
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from mnist_hydra.errors import UserError, first_line
from mnist_hydra.ledger.owner import Observer, Owner, read_owner
from mnist_hydra.ledger.parent import existing_run, pages_of
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import (
    DIED,
    FAILURES,
    FINISHED,
    MAX_ENTRY,
    NOTICE,
    POINT,
    RUNNING,
    STOP,
    Claim,
    End,
    Entry,
    Point,
    Trial,
    claim_key,
    claims_of,
    end_key,
    proposed_points,
    read_entry,
    replay,
    trial_of,
)
from mnist_hydra.secrets import storable
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import (
    each_run,
    is_away,
    read_checkpoint_tag,
    restore_command,
    tag_run,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATUS = {FINISHED: "FINISHED", DIED: "FAILED"} | dict.fromkeys(FAILURES, "FAILED")
"""MLflow's status for an end; `KILLED` for any other."""
MAX_ERROR = 2_000
SHARE_OF_TIME = 0.1
"""The most of a worker's time that goes into reading the entries, however many there are."""
LOOK_EVERY_S = 2.0
"""How often a process that waits looks again."""

P = ParamSpec("P")
Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class View:
    """The ledger as it was read at one moment."""

    trials: Mapping[str, Trial]
    """Those that were attempted, by fingerprint."""
    points: Sequence[Point] = ()
    """Those that a search has proposed so far; a grid has none."""
    stops: Mapping[str, str] = field(default_factory=dict)
    """Why trials are to stop, by the token of their sweeper."""

    def wanted(self, planned: Sequence[Planned]) -> list[Planned]:
        """The trials of a command that are known now, in order; `planned` are those of a grid."""
        return [*planned, *self.points]


def wait_for_store(
    stop: threading.Event,
    call: Callable[P, Answer],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Answer:
    """Call again and again while the store is away, and say so once.

    Args:
        stop: once it is set, the store's error is raised.
        call: may be repeated.
    """
    warned = False
    while True:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            if not is_away(error) or stop.is_set():
                raise
            if not warned:
                log.warning("waiting for the store, which does not answer: %s", first_line(error))
            warned = True
            stop.wait(LOOK_EVERY_S)


class Ledger:
    """One sweep's ledger.

    One thread at a time may use it, but for `beat`, `stopped`, `has_ended` and `holds`, which keep
    nothing here: an attempt's heartbeat and its spool call them beside its training.

    Args:
        client: of the MLflow store.
        parent_id: the sweep's run.
    Raises:
        UserError: that run was deleted, or belongs to a sweep that an earlier version began.
    """

    def __init__(self, client: MlflowClient, parent_id: str) -> None:
        parent = existing_run(client, parent_id)
        if parent is None:
            raise _deleted(client, parent_id)
        self.client = client
        self.parent_id = parent_id
        self.experiment_id: str = parent.info.experiment_id
        self._pages_experiment, self._pages = pages_of(parent)
        self._entries: dict[str, Entry] = {}
        self._trials: dict[str, Trial] = {}
        self._deleted: set[str] = set()
        self._read_at = -math.inf
        self._read_s = 0.0

    def read(self, up_to_date: bool = False) -> View:
        """Read the ledger; after the first time it takes time for running trials alone.

        Args:
            up_to_date: read the entries again in any case; else they may be a little old.
        Raises:
            UserError: the sweep's run, or the one with its entries, was deleted in MLflow.
        """
        read_now = self._read_entries(0.0 if up_to_date else self._read_s / SHARE_OF_TIME)
        opened = {run.info.run_id: run for run in self._children("attributes.status = 'RUNNING'")}
        known = list(self._trials.values())
        now = [self._as_it_is(trial, opened.get(trial.run_id), read_now) for trial in known]
        trials = {trial.fingerprint: trial for trial in now if trial is not None}
        return View(trials, proposed_points(self._entries), self.entries(STOP))

    def mark_dead(self, observer: Observer, up_to_date: bool = False) -> View:
        """Read the ledger, and record the death of every owner that is dead, for all to see.

        Args:
            up_to_date: see `read`.
        """
        view = self.read(up_to_date)
        running = [trial for trial in view.trials.values() if trial.state == RUNNING]
        # With the run, since a worker's next trial begins at the same beat as the one before.
        dead = [t for t in running if observer.is_dead(t.owner, f"{t.run_id} {t.heartbeat}")]
        for trial in dead:
            owner = trial.owner
            notice = f"process {owner.pid} on {owner.machine} is gone (killed, out of memory?)"
            self.end(trial, DIED, error=notice)
        return self.read(up_to_date=True) if dead else view

    def finish_half_done(self, observer: Observer) -> None:
        """Close the runs of trials that have ended, and delete those that were made for a trial and
        never claimed: their processes are dead, or the trial was claimed in another run. Any
        process may do so; where no run is open it takes one request.
        """
        opened = list(self._children("attributes.status = 'RUNNING'"))
        if opened:
            self._read_entries(0.0)
        by_run = {trial.run_id: trial for trial in self._trials.values()}
        for run in opened:
            run_id, tags = run.info.run_id, run.data.tags
            trial, creator = by_run.get(run_id), tags.get(tag.CREATOR)
            if trial is None:
                number = int(tags.get(tag.HEARTBEAT, "0:0").partition(":")[0])
                taken = claim_key(tags.get(tag.FINGERPRINT, ""), number) in self._entries
                if creator is not None and (taken or observer.is_dead(read_owner(creator))):
                    self.client.delete_run(run_id)
            elif trial.state != RUNNING:
                self._read_page(self._page_of(claim_key(trial.fingerprint, 1)))
                now = self._trials.get(trial.fingerprint)  # perhaps begun again meanwhile
                if now is not None and now.run_id == run_id and now.state != RUNNING:
                    self.close(run, now.state, now.error, self._last_epoch_ms(run_id))

    def write_once(self, key: str, text: str) -> bool:
        """Write an entry that nobody has written; whether the one that stands is the same.

        Args:
            key: letters, digits and `_ - . /`.
            text: at most `MAX_ENTRY` characters.
        """
        from mlflow.exceptions import MlflowException

        assert len(text) <= MAX_ENTRY, f"{key}: {len(text)} characters"
        page = self._page_of(key)
        try:
            self.client.log_param(page, key, text, synchronous=True)
        except MlflowException:
            there = self._read_page(page)
            if key not in there:
                raise
            return there[key] == text
        self._take_in({key: text})
        return True

    def holds(self, key: str) -> bool:
        """Whether there is such an entry now; quick, however many entries there are."""
        which = f"attributes.run_id = '{self._page_of(key)}' and params.`{key}` != ''"
        return bool(self.client.search_runs([self._pages_experiment], which, max_results=1))

    def entries(self, prefix: str) -> dict[str, str]:
        """The texts under a prefix, as they were last read, by the rest of their key.

        Not for entries about trials or points, see `read`.
        """
        return {
            key.removeprefix(prefix): text
            for key, text in self._entries.items()
            if key.startswith(prefix) and isinstance(text, str)
        }

    def claim(
        self, fingerprint: str, name: str, trial: Trial | None, owner: Owner, sweeper: str
    ) -> Trial | None:
        """Take the next attempt at a trial; `None` if another process was faster.

        Args:
            name: for people, such as `lr=0.1`.
            trial: as it was read; `None` if it was never attempted, then its run is made.
            sweeper: the token of the sweeper that the worker belongs to.
        """
        if self._trials.get(fingerprint) != trial:
            return None
        name = tag.run_name(name)
        number = 1 + len(claims_of(fingerprint, self._entries))
        if trial is None:
            run_id = self._make_run(fingerprint, name, owner, number)
        elif self._without_deleted(trial) is not trial:
            return None
        else:
            run_id = trial.run_id
        step = -1 if trial is None else trial.step
        text = Claim(run_id, name, owner, sweeper, step).text()
        if not self.write_once(claim_key(fingerprint, number), text):
            if trial is None:
                self.client.delete_run(run_id)
            return None
        if trial is not None:
            self.beat(self._trials[fingerprint], 0)
        return replace(self._trials[fingerprint], heartbeat=f"{number}:0")

    def beat(self, trial: Trial, count: int) -> bool:
        """Change a claimed trial's heartbeat.

        Returns:
            False if another process has ended the attempt, or the trial's run was deleted.
        """
        number = trial.attempts[-1].number
        run = existing_run(self.client, trial.run_id)
        if run is None or self.has_ended(trial):
            return False
        tags = {tag.HEARTBEAT: f"{number}:{count}"}
        closed = run.info.status != "RUNNING"  # by the attempt before, and perhaps late
        if closed:
            self.client.update_run(trial.run_id, status="RUNNING")
        if closed or count == 0:
            tags[tag.STATE] = RUNNING
        tag_run(self.client, trial.run_id, tags)
        return True

    def has_ended(self, trial: Trial) -> bool:
        """Whether a claimed trial's attempt has ended, asked of the store now."""
        return self.holds(end_key(trial.fingerprint, trial.attempts[-1].number))

    def end(self, trial: Trial, state: str, *, seconds: float = 0.0, error: str = "") -> bool:
        """Record how a trial's last attempt ended.

        Args:
            state: one of the ends in `trial.py`.
            seconds: that the attempt took.
            error: what went wrong; its end is kept.

        Returns:
            False if another process has done so already, or the trial's run was deleted.
        """
        run = existing_run(self.client, trial.run_id)
        if run is None:
            return False
        epoch, step = _checkpoint(run)
        tags = run.data.tags
        made_by = {key: tags[key] for key in tag.ORIGIN if key in tags}
        error = error[-MAX_ERROR:]
        end = End(state, round(seconds, 1), epoch, step, dict(run.data.metrics), error, made_by)
        key = end_key(trial.fingerprint, trial.attempts[-1].number)
        if not self.write_once(key, end.text()):
            return False
        # A process before may have died after the last epoch; no time since is the training's.
        began_ms = 1000 * (time.time() - seconds)
        went_on = state == FINISHED and trial.number > 1
        last_ms = self._last_epoch_ms(trial.run_id) if went_on else None
        at_ms = last_ms if last_ms is not None and last_ms < began_ms else None
        # Also where it stands already: then this is asked again, since the store was away here.
        self.close(run, state, error, at_ms)
        return True

    def close(self, run: Run, state: str, error: str = "", at_ms: int | None = None) -> None:
        """Set status, tags and end time (now, or `at_ms`) of a trial's run as its attempt ended."""
        from mlflow.exceptions import MlflowException

        run_id = run.info.run_id
        tags = {tag.STATE: state} | ({tag.ERROR: storable(error)} if error else {})
        tag_run(self.client, run_id, tags)
        if not error and tag.ERROR in run.data.tags:  # of an attempt before, whose entry keeps it
            with suppress(MlflowException):  # somebody else has removed it
                self.client.delete_tag(run_id, tag.ERROR)
        self.client.set_terminated(run_id, STATUS.get(state, "KILLED"), at_ms)

    def stop(self, token: str, reason: str) -> None:
        """Ask all trials of a sweeper, in any process, to write a checkpoint and end."""
        self.write_once(STOP + token, reason)

    def stopped(self, token: str) -> bool:
        """Whether a sweeper's trials are to stop, asked of the store now."""
        return self.holds(STOP + token)

    def notify(self, token: str, notice: str) -> None:
        """Tell a sweeper something, once however many workers do so."""
        key = f"{NOTICE}{token}/{zlib.crc32(notice.encode()):08x}"
        if key not in self._entries:
            self.write_once(key, notice[:MAX_ENTRY])

    def propose(self, point: Point) -> bool:
        """Add a search's point; false if another process has taken its number."""
        return self.write_once(f"{POINT}{point.number}", point.text())

    def _last_epoch_ms(self, run_id: str) -> int | None:
        """When the last epoch of a run was measured; `None` if none was."""
        rows = self.client.get_metric_history(run_id, "epoch_s")
        return max((int(row.timestamp) for row in rows), default=None)

    def _make_run(self, fingerprint: str, name: str, owner: Owner, number: int) -> str:
        """Make a trial's run; a tag names this process, in case it dies before its claim."""
        tags = {tag.PARENT: self.parent_id, tag.FINGERPRINT: fingerprint}
        tags |= {tag.CREATOR: owner.text(), tag.HEARTBEAT: f"{number}:0", tag.STATE: RUNNING}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        return str(run.info.run_id)

    def _read_entries(self, patience_s: float) -> bool:
        """Read the entries if they are older than `patience_s`; whether that was done."""
        first = self._read_at == -math.inf
        if time.monotonic() - self._read_at <= patience_s:
            return False
        if first:
            self._deleted = {run.info.run_id for run in self._children(deleted=True)}
        elif existing_run(self.client, self.parent_id) is None:
            raise _deleted(self.client, self.parent_id)
        started = time.monotonic()
        for page in self._pages:
            self._read_page(page)
        read_at = time.monotonic()
        if first:
            self._forget_removed_runs()
        self._read_at, self._read_s = read_at, read_at - started
        return True

    def _read_page(self, page: str) -> Mapping[str, str]:
        """Take in the entries of a page; returns all of them as they stand."""
        run = existing_run(self.client, page)
        if run is None:
            raise UserError(
                f"the entries of this sweep (run {page}) were deleted in MLflow; "
                f"right: restore it with `{restore_command(self.client, page)}` (its experiment "
                "with `mlflow experiments restore`), or begin the sweep anew with sweep.fresh=true"
            )
        there: Mapping[str, str] = run.data.params
        self._take_in(there)
        return there

    def _page_of(self, key: str) -> str:
        """The page of an entry: those of one trial are together, all others are on the first."""
        about = trial_of(key)
        number = 0 if about is None else zlib.crc32(about.encode())
        return self._pages[number % len(self._pages)]

    def _take_in(self, entries: Mapping[str, str]) -> None:
        """Add entries, and replay the trials that the new ones are about."""
        new = [(intern(key), text) for key, text in entries.items() if key not in self._entries]
        self._entries.update((key, read_entry(key, text)) for key, text in new)
        for fingerprint in {trial_of(key) for key, _ in new} - {None}:
            self._replay(str(fingerprint))

    def _replay(self, fingerprint: str) -> Trial | None:
        trial = replay(fingerprint, self._entries, self._deleted)
        if trial is None:
            self._trials.pop(fingerprint, None)
        else:
            self._trials[fingerprint] = trial
        return trial

    def _as_it_is(self, trial: Trial, run: Run | None, exact: bool) -> Trial | None:
        """A trial, if it is running with what its run says; `None` if that was deleted.

        Args:
            run: `None` where it is not open: the attempt may have ended since the last reading.
            exact: the entries were read just now, so the attempt cannot have ended.
        """
        if trial.state != RUNNING or (run is None and not exact):
            return trial
        run = run or existing_run(self.client, trial.run_id)
        if run is None:
            return self._without_deleted(trial)
        epoch, step = _checkpoint(run)
        heartbeat = run.data.tags.get(tag.HEARTBEAT, "")
        metrics = dict(run.data.metrics)
        return replace(trial, heartbeat=heartbeat, epoch=epoch, step=step, metrics=metrics)

    def _without_deleted(self, trial: Trial) -> Trial | None:
        """The trial, without the attempts whose runs were deleted; `None` if none is left."""
        left: Trial | None = trial
        while left is not None and existing_run(self.client, left.run_id) is None:
            self._deleted.add(left.run_id)
            left = self._replay(trial.fingerprint)
        return left

    def _forget_removed_runs(self) -> None:
        """Forget the attempts whose runs `mlflow gc` has removed.

        Listing the runs is slow, so it is done only where there are fewer than there must be.
        """
        ended = [trial for trial in self._trials.values() if trial.state != RUNNING]
        if ended and not self._has_children(len({trial.run_id for trial in ended})):
            there = {run.info.run_id for run in self._children()}
            for trial in ended:
                if trial.run_id not in there:
                    self._without_deleted(trial)

    def _has_children(self, count: int) -> bool:
        """Whether there are at least `count` closed runs; asks for the last of them only."""
        from mlflow.exceptions import MlflowException
        from mlflow.utils.search_utils import SearchUtils

        which = f"tags.`{tag.PARENT}` = '{self.parent_id}' and attributes.status != 'RUNNING'"
        token: bytes = SearchUtils.create_page_token(count - 1)  # type: ignore[no-untyped-call]
        try:
            last = self.client.search_runs(
                [self.experiment_id], which, max_results=1, page_token=token.decode()
            )
        except MlflowException:  # a server that counts its pages in another way
            return False
        return bool(last)

    def _children(self, condition: str = "", deleted: bool = False) -> Iterator[Run]:
        which = f"tags.`{tag.PARENT}` = '{self.parent_id}'"
        which += f" and {condition}" if condition else ""
        return each_run(self.client, [self.experiment_id], which, deleted=deleted)


def _deleted(client: MlflowClient, parent_id: str) -> UserError:
    return UserError(
        f"this sweep (run {parent_id}) was deleted in MLflow; right: the same command again, which "
        f"begins it anew, or `{restore_command(client, parent_id)}` before it"
    )


def _checkpoint(run: Run) -> tuple[int, int]:
    """Epoch and step of a run's newest checkpoint; 0 and -1 if it has none."""
    newest = read_checkpoint_tag(run.data.tags.get(tag.CHECKPOINT, ""))
    return (0, -1) if newest is None else (newest["epoch"], newest["step"])
