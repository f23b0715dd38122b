"""A sweep's ledger: its trials and their states, read from and written to MLflow and nowhere else.

What must happen once is written as a parameter, of which MLflow refuses a second value. It decides
nothing: see `decide.py`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mnist_hydra.sweep import trial as names
from mnist_hydra.sweep.trial import (
    ATTEMPT_TAG,
    CLAIM_PARAM,
    CREATOR_TAG,
    DIED,
    ERROR_TAG,
    FINISHED,
    FORGIVEN_TAG,
    HEARTBEAT_TAG,
    PARENT_TAG,
    POINT_PARAM,
    RESULT_TAG,
    RUNNING,
    SECONDS_TAG,
    STATE_TAG,
    STOP_TAG,
    TRIAL_PARAM,
    Attempt,
    Claim,
    Owner,
    Point,
    Trial,
    attempts_of,
    read_owner,
    read_point,
)
from mnist_hydra.tracking import CHECKPOINT_TAG, COMMIT_TAG, DATA_TAG, DIRTY_TAG, FINGERPRINT_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MADE_BY_TAGS = (COMMIT_TAG, DIRTY_TAG, names.OWN + "version.mnist_hydra", DATA_TAG)
STATUS = {FINISHED: "FINISHED", names.FAILED: "FAILED", names.TIMEOUT: "FAILED", DIED: "FAILED"}
"""MLflow's status for an end; `KILLED` for any other."""
PAGE = 500
MAX_TAG = 7_900
MAX_NAME = 250
MAX_ERROR = 2_000
SHARE_OF_TIME = 0.1
"""Reading the parent takes at most this share of a worker's time, however many trials it has."""


@dataclass(frozen=True)
class View:
    """The ledger as it was read at one moment."""

    trials: Mapping[str, Trial]
    """By fingerprint."""
    points: Sequence[Point] = ()
    """What a search has proposed so far."""
    stops: Mapping[str, str] = field(default_factory=dict)
    """Why a sweeper's trials are to stop, by its token."""
    forgiven: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By a sweeper's token: attempts that were over when its command began, by fingerprint."""


class Ledger:
    """One sweep's ledger.

    Args:
        client: of the MLflow store.
        experiment_id: where the parent run is and the trials' runs are to be.
        parent_id: the sweep's run.
    """

    def __init__(self, client: MlflowClient, experiment_id: str, parent_id: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.parent_id = parent_id
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._read_at: float | None = None
        self._read_s = 0.0
        self._closed: dict[str, tuple[str, Trial]] = {}
        self._deleted: set[str] | None = None

    def read(self, fresh: bool = False) -> View:
        """Read the ledger; after the first time it costs what is running, not what is done.

        Args:
            fresh: what the parent says is of this moment too, and not a little older.
        """
        patience_s = 0.0 if fresh else self._read_s / SHARE_OF_TIME
        if self._read_at is None or time.monotonic() - self._read_at > patience_s:
            self._read_parent()
        if self._deleted is None:
            self._deleted = {run.info.run_id for run in self._children(deleted=True)}
        opened = {run.info.run_id: run for run in self._children("attributes.status = 'RUNNING'")}
        trials = {}
        for fingerprint, run_id in self._registered().items():
            trial = self._trial(fingerprint, run_id, opened.get(run_id))
            if trial is not None:
                trials[fingerprint] = trial
        return View(trials, _points(self._params), _stops(self._tags), _forgiven(self._tags))

    def read_trial(self, trial: Trial) -> Trial | None:
        """The trial as it is this moment; `None` if its run was deleted."""
        return self._from_run(trial.fingerprint, self.client.get_run(trial.run_id))

    def register(self, fingerprint: str, name: str, owner: Owner) -> Trial | None:
        """Make a trial's run and enter it, unclaimed; `None` if another process was faster.

        Args:
            name: for people: what was swept.
            owner: who enters it; should it die halfway, the run can be told to be nobody's.
        """
        if self._read_at is None:
            self._read_parent()
        key = self._free_key(fingerprint)
        if key is None:
            return None
        tags = {
            PARENT_TAG: self.parent_id,
            FINGERPRINT_TAG: fingerprint,
            STATE_TAG: names.WAITING,
            CREATOR_TAG: owner.text(),
        }
        name = name if len(name) <= MAX_NAME else name[: MAX_NAME - 3] + "..."
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=name)
        if self._write_once(self.parent_id, key, run.info.run_id) != run.info.run_id:
            self.client.delete_run(run.info.run_id)
            return None
        return Trial(fingerprint, run.info.run_id, name)

    def claim(self, trial: Trial, owner: Owner, by: str) -> Trial | None:
        """Take the next attempt at a trial; `None` if another process was faster.

        Args:
            trial: as it was read a moment ago (`read_trial`).
            by: the token of the sweeper that the worker belongs to.
        """
        number = trial.number + 1
        claim = Claim(owner, by, trial.step)
        key = f"{CLAIM_PARAM}{number}"
        if self._write_once(trial.run_id, key, claim.text()) != claim.text():
            return None
        if number > 1:
            self.client.update_run(trial.run_id, status="RUNNING")
        heartbeat = f"{number}:0"
        self._tag(trial.run_id, {STATE_TAG: RUNNING, HEARTBEAT_TAG: heartbeat, ERROR_TAG: ""})
        attempt = Attempt(number, trial.step, None, claim)
        return Trial(
            trial.fingerprint,
            trial.run_id,
            trial.name,
            (*trial.attempts, attempt),
            heartbeat,
            trial.epoch,
            trial.step,
            seconds=trial.seconds,
        )

    def beat(self, trial: Trial, count: int) -> bool:
        """Move a claimed trial's heartbeat; false if another process ended it or took it over."""
        self.client.set_tag(trial.run_id, HEARTBEAT_TAG, f"{trial.number}:{count}")
        run = self.client.get_run(trial.run_id)
        if not _is_latest(run, trial.number):
            return False
        ended = f"{ATTEMPT_TAG}{trial.number}" in run.data.tags
        if run.info.status != "RUNNING" and not ended:  # somebody tidied up an earlier attempt
            self.client.update_run(trial.run_id, status="RUNNING")
        return not ended

    def end(self, trial: Trial, end: str, *, seconds: float = 0.0, error: str = "") -> bool:
        """Record how a trial's last attempt ended; false if another process took the trial over.

        Args:
            end: one of the ends in `trial.py`.
            seconds: that the attempt took.
            error: what went wrong; its last lines are kept.
        """
        run = self.client.get_run(trial.run_id)
        key = f"{ATTEMPT_TAG}{trial.number}"
        if not _is_latest(run, trial.number) or key in run.data.tags:
            return False
        total = float(run.data.tags.get(SECONDS_TAG, 0.0)) + seconds
        self._tag(
            trial.run_id,
            {
                key: end,
                STATE_TAG: end,
                SECONDS_TAG: f"{total:.1f}",
                ERROR_TAG: error[-MAX_ERROR:],
            },
        )
        self.close(trial)
        return True

    def close(self, trial: Trial) -> None:
        """Put an ended trial into the parent's index and set its run's status; may be repeated."""
        run = self.client.get_run(trial.run_id)
        now = self._from_run(trial.fingerprint, run)
        if now is None or now.state == RUNNING:
            return
        key, text = RESULT_TAG + trial.fingerprint, _result(now)
        self.client.set_tag(self.parent_id, key, text)
        self._tags[key] = text
        self.client.set_terminated(trial.run_id, STATUS.get(now.state, "KILLED"))

    def begin_command(self, token: str, forgiven: Mapping[str, int]) -> None:
        """Give failed trials fresh attempts in the command whose sweeper has this token.

        Args:
            forgiven: attempts so far, by fingerprint (`decide.forgivable`).
        """
        for number, part in enumerate(_in_parts(forgiven)):
            self.client.set_tag(self.parent_id, f"{FORGIVEN_TAG}{token}/{number}", part)

    def stop(self, token: str, reason: str) -> None:
        """Ask all trials of a sweeper, in whatever process, to write a checkpoint and end."""
        self.client.set_tag(self.parent_id, STOP_TAG + token, reason)

    def stopped(self, token: str) -> str | None:
        """Why a sweeper's trials are to stop, read afresh; `None` if they are not."""
        tags: dict[str, str] = self.client.get_run(self.parent_id).data.tags
        return tags.get(STOP_TAG + token)

    def propose(self, number: int, point: Point) -> bool:
        """Enter a search's point; false if that number was taken by another process."""
        text = point.text()
        return self._write_once(self.parent_id, f"{POINT_PARAM}{number}", text) == text

    def history(self, trial: Trial, metric: str) -> dict[int, float]:
        """A metric's values by epoch."""
        rows = self.client.get_metric_history(trial.run_id, metric)
        return {row.step: row.value for row in sorted(rows, key=lambda row: row.timestamp)}

    def orphans(self) -> Iterator[tuple[str, Owner]]:
        """Runs that were made for a trial and never entered, with who made them."""
        self._read_parent()
        entered = set(self._registered().values())
        for run in self._children("attributes.status = 'RUNNING'"):
            if run.info.run_id not in entered and CREATOR_TAG in run.data.tags:
                yield run.info.run_id, read_owner(run.data.tags[CREATOR_TAG])

    def _read_parent(self) -> None:
        started = time.monotonic()
        run = self.client.get_run(self.parent_id)
        self._params, self._tags = dict(run.data.params), dict(run.data.tags)
        self._read_at = time.monotonic()
        self._read_s = self._read_at - started

    def _children(self, condition: str = "", deleted: bool = False) -> Iterator[Run]:
        from mlflow.entities import ViewType

        which = f"tags.`{PARENT_TAG}` = '{self.parent_id}'"
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id],
                f"{which} and {condition}" if condition else which,
                run_view_type=view,
                max_results=PAGE,
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def _registered(self) -> dict[str, str]:
        """Run ids by fingerprint; of a trial whose run was deleted, that of the next one."""
        found: dict[str, tuple[int, str]] = {}
        for key, run_id in self._params.items():
            if key.startswith(TRIAL_PARAM) and run_id not in (self._deleted or ()):
                fingerprint, _, again = key.removeprefix(TRIAL_PARAM).partition("/")
                found[fingerprint] = max(found.get(fingerprint, (0, "")), (int(again or 1), run_id))
        return {fingerprint: run_id for fingerprint, (_, run_id) in found.items()}

    def _free_key(self, fingerprint: str) -> str | None:
        """The parameter under which a trial is to be entered; `None` if it is entered."""
        key, again = TRIAL_PARAM + fingerprint, 1
        while key in self._params:
            if self._params[key] not in (self._deleted or ()):
                return None
            again += 1
            key = f"{TRIAL_PARAM}{fingerprint}/{again}"
        return key

    def _trial(self, fingerprint: str, run_id: str, run: Run | None) -> Trial | None:
        if run is not None:
            return self._from_run(fingerprint, run)
        text = self._tags.get(RESULT_TAG + fingerprint, "")
        known = self._closed.get(fingerprint)
        if known is not None and known[0] == text and known[1].run_id == run_id:
            return known[1]
        trial = _from_result(fingerprint, text) if text else None
        if trial is None or trial.run_id != run_id:
            # Its process died between the run's end and the parent's index, or it was begun just
            # now, after the parent was read.
            return self._from_run(fingerprint, self.client.get_run(run_id))
        self._closed[fingerprint] = (text, trial)
        return trial

    def _from_run(self, fingerprint: str, run: Run) -> Trial | None:
        if run.info.lifecycle_stage == "deleted":
            self._deleted = (self._deleted or set()) | {run.info.run_id}
            return None
        params, tags = run.data.params, run.data.tags
        checkpoint = json.loads(tags.get(CHECKPOINT_TAG, "{}"))
        return Trial(
            fingerprint,
            run.info.run_id,
            run.info.run_name or "",
            attempts_of(params, tags),
            tags.get(HEARTBEAT_TAG, ""),
            checkpoint.get("epoch", 0),
            checkpoint.get("step", -1),
            dict(run.data.metrics),
            tags.get(ERROR_TAG, ""),
            float(tags.get(SECONDS_TAG, 0.0)),
            {key: tags[key] for key in MADE_BY_TAGS if key in tags},
        )

    def _write_once(self, run_id: str, key: str, value: str) -> str:
        """Write a parameter that nobody has written, and return the value that stands."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.log_param(run_id, key, value)
            if run_id == self.parent_id:
                self._params[key] = value
            return value
        except MlflowException:
            if run_id == self.parent_id:
                self._read_parent()
                params = self._params
            else:
                params = self.client.get_run(run_id).data.params
            if key not in params:
                raise
            return str(params[key])

    def _tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def _is_latest(run: Run, number: int) -> bool:
    return f"{CLAIM_PARAM}{number + 1}" not in run.data.params


def _points(params: Mapping[str, str]) -> list[Point]:
    found: list[Point] = []
    while (text := params.get(f"{POINT_PARAM}{len(found)}")) is not None:
        found.append(read_point(len(found), text))
    return found


def _stops(tags: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix(STOP_TAG): v for k, v in tags.items() if k.startswith(STOP_TAG)}


def _forgiven(tags: Mapping[str, str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for key, text in tags.items():
        if key.startswith(FORGIVEN_TAG):
            token = key.removeprefix(FORGIVEN_TAG).partition("/")[0]
            found.setdefault(token, {}).update(json.loads(text))
    return found


def _in_parts(forgiven: Mapping[str, int]) -> Iterator[str]:
    """JSON objects that fit into a tag each."""
    items = list(forgiven.items())
    size = 200
    for start in range(0, len(items), size):
        yield json.dumps(dict(items[start : start + size]))


def _result(trial: Trial) -> str:
    """What the parent's index says of a trial; it fits into a tag."""
    content: dict[str, Any] = {
        "run": trial.run_id,
        "name": trial.name,
        "attempts": [[attempt.end, attempt.from_step] for attempt in trial.attempts],
        "epoch": trial.epoch,
        "step": trial.step,
        "metrics": dict(trial.metrics),
        "error": trial.error[-500:],
        "seconds": trial.seconds,
        "made_by": dict(trial.made_by),
    }
    text = json.dumps(content)
    if len(text) > MAX_TAG:
        content["metrics"] = dict(sorted(trial.metrics.items())[:50])
        content["error"] = ""
        text = json.dumps(content)
    return text if len(text) <= MAX_TAG else ""  # then its own run is read each time


def _from_result(fingerprint: str, text: str) -> Trial:
    raw = json.loads(text)
    attempts = [Attempt(n, step, end) for n, (end, step) in enumerate(raw["attempts"], start=1)]
    return Trial(
        fingerprint,
        raw["run"],
        raw["name"],
        tuple(attempts),
        "",
        raw["epoch"],
        raw["step"],
        raw["metrics"],
        raw["error"],
        raw["seconds"],
        raw["made_by"],
    )
