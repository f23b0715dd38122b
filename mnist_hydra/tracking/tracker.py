"""Everything that training says to MLflow, and all that it reads back from there.

Training knows of runs, epochs and checkpoints; how MLflow keeps them is known here, and in the
rooms that read the store: the ledger, the report, and the commands about models. Every write is
`synchronous`, though a user's environment or code asks MLflow for asynchronous ones: what was only
queued would count as recorded.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml  # type: ignore[import-untyped]

from mnist_hydra.config import Place
from mnist_hydra.errors import StoreAway, UserError
from mnist_hydra.secrets import hide, hide_all, without_password
from mnist_hydra.tracking import store, tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

    from mnist_hydra.tracking.journal import SpooledRun

SLOT_KEYS = {"epoch", "step", "slot", "sha256"}
"""What a checkpoint's tag says of each of the two."""
ENTRIES_SUFFIX = ".ledger"
"""Is added to an experiment's name for the experiment that holds the entries of its sweeps."""
RUNS_PER_PAGE = 1_000
MISTAKES_FILE = "test_mistakes.json"
"""An artifact: index of each misclassified test image, to the class that it was taken for."""
TRAINING_KIND = {"mlflow.experimentKind": "custom_model_development"}
FINAL_CODES = (
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
)
"""MLflow's error codes after which to ask again is of no use, such as for a deleted run."""
CLOUDS = ("botocore", "boto3", "azure.", "google.api_core", "google.cloud", "google.auth")
"""Libraries of artifact stores whose errors MLflow passes on as they are."""
LASTING = (
    *("CredentialsError", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("NoSuchBucket", "ContainerNotFound", "Forbidden", "DefaultCredentials"),
)
"""What their errors say where to ask again is of no use."""
TOO_LARGE = ("413 Client Error", "error code 413")
"""What MLflow's client says of a proxy that does not let through what is so large."""


class NothingRecorded(UserError):
    """The store, or the experiment in it, is not there yet."""


class Tracker:
    """An MLflow store and one experiment in it.

    Opening one makes the store and the experiment where they do not exist yet; any number of
    processes may do so at once.

    Args:
        place: says where.
        make: whether store and experiment may be made; if not they have to be there.

    Raises:
        NothingRecorded: if they have to be there, and are not.
        UserError: if the server does not answer or the folder cannot be written.
    """

    def __init__(self, place: Place, *, make: bool = True) -> None:
        name = place.tracking.experiment_name
        self.store = store.read_address(place.tracking.uri, place.folder)
        self._damaged: set[str] = set()
        """SHA-256 of the checkpoints that were found damaged: the next one takes their place, even
        if they are further on.
        """
        path = self.store.path
        if not make and path is not None and store.is_unmade(path):
            key, where = "output_dir", place.output_dir
            if place.tracking.uri is not None:
                key, where = "tracking.uri", self.store.shown
            raise NothingRecorded(
                f"{key}={where} holds no runs; right: the one that an earlier run wrote to"
            )
        store.check_usable(self.store, place.folder, write=make)
        import_mlflow()
        self.client: MlflowClient = store.open_store(self.store)
        experiment = find_experiment(self.client, name, self.store.artifacts, make=make)
        self.experiment_id = str(experiment.experiment_id)
        if place.tracking.uri is None:
            check_not_moved(name, experiment.artifact_location, place.folder)

    def create_run(self, spooled: SpooledRun) -> str:
        """The MLflow run of a spool: found, or started now; returns its id."""
        if spooled.run_id is not None:
            return spooled.run_id
        found = self._runs_with_key(spooled.key)
        if not found:
            tags = hide_all({**spooled.tags, tag.KEY: spooled.key})
            name = None if spooled.name is None else tag.run_name(hide(spooled.name))
            self.client.create_run(self.experiment_id, spooled.start_ms, tag.fitting(tags), name)
            found = self._runs_with_key(spooled.key)
        # MLflow's client repeats a request that was not answered, and that may have made one, too.
        first, *others = found
        for other in others:
            self.client.delete_run(other.info.run_id)
        return str(first.info.run_id)

    def find_run(self, run_id: str, key: str = "resume") -> Run:
        """The run of that id, or of the key that it had before it got one.

        Raises:
            UserError: if this store has none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if is_away(error):
                raise
        found = self._runs_with_key(run_id) if run_id.isalnum() else []
        if not found:
            raise UserError(
                f"{key}={run_id}: no such run in {self.store.shown}; right: the id of one of its "
                f"runs (output_dir= and tracking= say which store)"
            )
        return found[0]

    def _runs_with_key(self, key: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], f"tags.`{tag.KEY}` = '{key}'"))

    def log_data(self, run_id: str, splits: Sequence[Mapping[str, str]]) -> None:
        """Record what a run was trained and measured on, as MLflow's inputs.

        Args:
            splits: of each its `name`, `digest`, `source` (JSON), `profile` (JSON) and `context`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for split in splits:
            fields = {key: text for key, text in split.items() if key != "context"}
            used_for = InputTag("mlflow.data.context", split["context"])
            inputs.append(DatasetInput(Dataset(source_type="local", **fields), [used_for]))
        self.client.log_inputs(run_id, inputs)

    def log_settings(self, run_id: str, settings: Mapping[str, str]) -> None:
        """Record settings as parameters; those that the run already has stay as they are."""
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        missing = [Param(k, v[:6000]) for k, v in settings.items() if k not in there]
        for start in range(0, len(missing), 100):
            self.client.log_batch(run_id, params=missing[start : start + 100], synchronous=True)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set several tags, without passwords."""
        tag_run(self.client, run_id, hide_all(tags))

    def log_epochs(self, run_id: str, history: list[dict[str, Any]]) -> None:
        """Record the metrics of epochs, each `{"epoch": int, "timestamp_ms": int, name: value}`.

        MLflow keeps identical rows once, so to record an epoch again changes nothing.
        """
        from mlflow.entities import Metric

        rows = [
            Metric(name, float(value), int(epoch["timestamp_ms"]), int(epoch["epoch"]))
            for epoch in history
            for name, value in epoch.items()
            if name not in ("epoch", "timestamp_ms")
        ]
        for start in range(0, len(rows), 1000):
            self.client.log_batch(run_id, metrics=rows[start : start + 1000], synchronous=True)

    def epochs_recorded(self, run_id: str) -> set[int]:
        """The epochs whose metrics the run has."""
        return {metric.step for metric in self.client.get_metric_history(run_id, "epoch_s")}

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Record text as an artifact called `name`."""
        self.client.log_text(run_id, hide(text), name)

    def read_text(self, run_id: str, name: str) -> str:
        """The text of an artifact.

        Raises:
            OSError or MlflowException: if there is no such artifact.
            UserError: the folder of all artifacts is on another machine.
        """
        here = _local_artifacts(self.client.get_run(run_id))
        if here is not None:  # MLflow would list the folder and copy it first
            if not (root := here.parents[1]).exists():
                raise UserError(
                    f"{self.store.shown}: the folder of its artifacts, {root}, is not on this "
                    "machine; right: tracking=server tracking.uri=http://HOST:5000 with an MLflow "
                    "server that keeps them (mlflow server --artifacts-destination ...)"
                )
            return (here / name).read_text()
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, name, folder)).read_text()

    def log_checkpoint(self, run_id: str, path: Path, about: Mapping[str, Any]) -> None:
        """Record a file as the run's newest checkpoint, unless that is of a later step.

        Two slots take turns, and the tag that names both is set last: a death at any moment leaves
        the checkpoint before.

        Args:
            about: `epoch`, `step` and `sha256` of the file.
        """
        run = self.client.get_run(run_id)
        before = read_checkpoint_tag(run.data.tags.get(tag.CHECKPOINT, ""))
        while before is not None and before["sha256"] in self._damaged:
            before = before.get("before")
        if before is not None and before["step"] > about["step"]:
            return
        slot = 1 - int(before["slot"]) if before else 0
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / f"slot-{slot}.pt"
            shutil.copyfile(path, named)
            self.client.log_artifact(run_id, str(named), "checkpoints")
        here = _local_artifacts(run)
        if here is not None:  # on the disk before the tag says so
            with open(here / "checkpoints" / named.name, "rb") as written:
                os.fsync(written.fileno())
        older = {key: value for key, value in (before or {}).items() if key != "before"}
        newest = {"slot": slot, **about, "before": older or None}
        text = json.dumps(newest)
        self.client.set_tag(run_id, tag.CHECKPOINT, text, synchronous=True)
        self._damaged.discard(about["sha256"])

    def load_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """The run's newest whole checkpoint; `None` if it has none.

        Raises:
            DamagedCheckpoint: if none that is stored is what was written.
        """
        from mnist_hydra import checkpoint

        text = self.client.get_run(run_id).data.tags.get(tag.CHECKPOINT)
        if text is None:
            return None
        newest = read_checkpoint_tag(text)
        if newest is None:
            raise checkpoint.DamagedCheckpoint(f"tag {tag.CHECKPOINT} is not what was written")
        problems = []
        there = {file.path for file in self.client.list_artifacts(run_id, "checkpoints")}
        for slot in filter(None, (newest, newest.get("before"))):
            name = f"checkpoints/slot-{slot['slot']}.pt"
            try:
                if name not in there:
                    raise checkpoint.DamagedCheckpoint(f"{name} is missing")
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(self.client.download_artifacts(run_id, name, folder))
                    state = checkpoint.load(path, slot["sha256"])
            except checkpoint.DamagedCheckpoint as error:
                problems.append(str(error))
                self._damaged.add(slot["sha256"])
                continue
            if problems:
                left = f"step {slot['step']} is gone on from instead"
                print(f"run {run_id}: its newest checkpoint is damaged ({problems[0]}); {left}")
            return state
        raise checkpoint.DamagedCheckpoint("; ".join(problems))

    def log_model(self, run_id: str, folder: Path, step: int) -> None:
        """Record an MLflow model as the run's one model, called `model`.

        What an earlier attempt left unfinished is deleted; a finished one stays, and is the one.

        Args:
            folder: the model, as a flavor's `save_model` wrote it.
            step: the epoch that it is of.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
        from mlflow.models import Model

        # `Model.load` takes a path for an address, and reads `%20` in it as a blank.
        about = Model.from_dict(yaml.safe_load((folder / "MLmodel").read_text()))
        run = self.client.get_run(run_id)
        mine = f"source_run_id = '{run_id}'"
        for model in self.client.search_logged_models([run.info.experiment_id], mine):
            if model.status == LoggedModelStatus.READY:
                return
            self.client.delete_logged_model(model.model_id)
        logged = self.client.create_logged_model(
            run.info.experiment_id, "model", run_id, params=run.data.params
        )
        about.run_id, about.model_id, about.model_uuid = run_id, logged.model_id, logged.model_id
        about.artifact_path = logged.artifact_location
        with tempfile.TemporaryDirectory() as above:  # what is given may be again
            copy = Path(above) / "model"
            shutil.copytree(folder, copy)
            about.save(str(copy / "MLmodel"))
            self.client.log_model_artifacts(logged.model_id, str(copy))
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        # The run's last metrics, for the model too; with equal times MLflow keeps no second row.
        newest = [self.client.get_metric_history(run_id, key)[-1] for key in run.data.metrics]
        metrics = [
            Metric(m.key, m.value, m.timestamp, m.step, model_id=logged.model_id, run_id=run_id)
            for m in newest
        ]
        self.client.log_batch(run_id, metrics=metrics, synchronous=True)
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def end(self, run_id: str, status: str, at_ms: int | None = None) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`; now, if it is not said when."""
        self.client.set_terminated(run_id, status, at_ms)

    def has_finished(self, run_id: str) -> bool:
        """Whether the run was trained to its end."""
        return str(self.client.get_run(run_id).info.status) == "FINISHED"


def _local_artifacts(run: Run) -> Path | None:
    """The folder of a run's artifacts where that is on this machine's disks."""
    recorded = urlsplit(run.info.artifact_uri)
    return Path(unquote(recorded.path)) if recorded.scheme == "file" else None


def read_checkpoint_tag(text: str) -> dict[str, Any] | None:
    """What a run's tag says of its newest checkpoint, and of the one `before` that.

    Returns:
        `epoch`, `step`, `slot`, `sha256` and `before`; `None` if it is not as it was written.
    """
    with suppress(ValueError, AttributeError):
        newest = json.loads(text)
        before = newest.get("before") or newest
        return newest if newest.keys() & before.keys() >= SLOT_KEYS else None
    return None


def is_away(error: BaseException) -> bool:
    """Whether an error says that the store does not take anything now, and may do so later: it
    does not answer, is locked, has no space or wants a password.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if is_for_later(error):
        return False
    if isinstance(error, MlflowException):
        return error.error_code not in FINAL_CODES
    if type(error).__module__.startswith(CLOUDS):
        return not any(word in f"{type(error).__name__}: {error}" for word in LASTING)
    return isinstance(error, StoreAway | OSError | SQLAlchemyError | sqlite3.Error)


def is_for_later(error: BaseException) -> bool:
    """Whether a record may be taken once somebody has changed something: the limit of a proxy
    before the server, or this process's memory. The store is not away then.
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in TOO_LARGE)


def check_store(place: Place) -> None:
    """See that runs can be recorded, and leave nothing behind; takes no MLflow.

    Raises:
        StoreAway: the server or the database does not answer.
        UserError: `output_dir` cannot be written, or the store or the experiment cannot be used.
    """
    name = place.tracking.experiment_name
    address = store.read_address(place.tracking.uri, place.folder)
    store.check_usable(address, place.folder)
    if address.path is not None and (found := store.experiment_in(address.path, name)):
        experiment_id, stage, artifacts = found
        check_not_deleted(name, experiment_id, stage, store.sqlite_uri(address.path))
        if place.tracking.uri is None:
            check_not_moved(name, artifacts, place.folder)


def import_mlflow(place: Place | None = None) -> None:
    """Import MLflow, which takes more than a second, and keep it quiet.

    Args:
        place: whose store is opened next; what that takes is imported, too.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Whoever needs the store asks again by himself, and sooner than MLflow's client would.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # All of them together in less than `ledger.owner.SILENT_S`, or a heartbeat would come too late.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow  # noqa: F401

    # Whoever asks the store is told by an exception; these would say it once more, in 40 lines.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    if place is not None and store.read_address(place.tracking.uri, place.folder).path is not None:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def tag_run(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Set several tags in one request."""
    from mlflow.entities import RunTag

    pairs = [RunTag(key, value) for key, value in tags.items()]
    client.log_batch(run_id, tags=pairs, synchronous=True)


def each_run(
    client: MlflowClient,
    experiments: Sequence[str],
    query: str,
    *,
    order: Sequence[str] = (),
    deleted: bool = False,
) -> Iterator[Run]:
    """Every run that MLflow's search finds; asks again for each `RUNS_PER_PAGE` of them.

    Args:
        experiments: their ids.
        order: what to sort by, in MLflow's words; none: the newest first.
        deleted: whether to look among deleted runs instead.
    """
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    ids, by, token = list(experiments), list(order) or None, None
    while True:
        page = client.search_runs(ids, query, view, RUNS_PER_PAGE, by, token)
        yield from page
        token = page.token
        if not token:
            return


def history_of(client: MlflowClient, run_id: str, metric: str) -> dict[int, float]:
    """A metric's values by epoch; of an epoch that was trained twice the later one."""
    rows = client.get_metric_history(run_id, metric)
    last = {row.step: row.value for row in sorted(rows, key=lambda row: row.timestamp)}
    return dict(sorted(last.items()))


def find_experiment(
    client: MlflowClient, name: str, artifacts: str | None = None, *, make: bool = True
) -> Experiment:
    """The experiment of that name; any number of processes may ask at once.

    Args:
        artifacts: where its artifacts go if it is made; `None` leaves that to MLflow.
        make: whether it is made where there is none.

    Raises:
        NothingRecorded: there is none, and it may not be made.
        UserError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None and not make:
        others = [e.name for e in client.search_experiments(max_results=20, order_by=["name"])]
        named = [e for e in others if e != "Default" and not e.endswith(ENTRIES_SUFFIX)]
        raise NothingRecorded(
            f"tracking.experiment_name={name} is not in this store; right: the name of an "
            f"experiment that an earlier run made ({', '.join(named) or 'there is none'})"
        )
    if found is None:
        try:
            made = client.create_experiment(name, artifact_location=artifacts, tags=TRAINING_KIND)
            return client.get_experiment(made)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    check_not_deleted(name, found.experiment_id, found.lifecycle_stage, client.tracking_uri)
    return found


def check_not_deleted(name: str, experiment_id: str, stage: str, uri: str) -> None:
    """See that an experiment takes runs.

    Args:
        uri: the store's.

    Raises:
        UserError: it was deleted.
    """
    if stage == "deleted":
        restore = _mlflow_command(uri, f"experiments restore -x {experiment_id}")
        raise UserError(
            f"tracking.experiment_name={name} was deleted in this store; right: another name, or "
            f"restore it with `{restore}`"
        )


def restore_command(client: MlflowClient, run_id: str) -> str:
    """MLflow's command that brings a deleted run back."""
    return _mlflow_command(client.tracking_uri, f"runs restore --run-id {run_id}")


def _mlflow_command(uri: str, words: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(without_password(uri))} mlflow {words}"


def check_not_moved(name: str, artifacts: str, output_dir: Path) -> None:
    """See that the artifacts of an experiment in the store below `output_dir` lie there, too.

    MLflow writes down where they are, and would go on with writing there.

    Args:
        artifacts: where they are, as MLflow wrote it down.

    Raises:
        UserError: they lie elsewhere: the folder was moved or copied, or another one was named.
    """
    recorded = urlsplit(artifacts)
    there = Path(unquote(recorded.path)).resolve()
    if recorded.scheme == "file" and not there.is_relative_to(output_dir.resolve()):
        old, now = (shlex.quote(str(path)) for path in (there.parent, output_dir))
        right = f"move it back, or ln -s {now} {old}"
        if there.parent.exists():
            right = f"output_dir={there.parent}"
        raise UserError(
            f"output_dir={output_dir}: the artifacts of tracking.experiment_name={name} are kept "
            f"in {there}; right: {right}, or a name or a folder of its own"
        )
