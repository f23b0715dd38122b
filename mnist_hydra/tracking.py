"""Everything that training says to MLflow, and all that it reads back from there.

The other modules know of runs, epochs and checkpoints; only this one (and a sweep's ledger) knows
how MLflow keeps them.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import platform
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock

import mnist_hydra
from mnist_hydra.config import TrackingConfig
from mnist_hydra.errors import StoreAway, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from mnist_hydra.spool import About

PREFIX = "mnist_hydra."
CHECKPOINT_TAG = PREFIX + "checkpoint"
KEY_TAG = "mlflow.mnist_hydra.key"
"""A run's own name in this program, by which it is found where MLflow's id was not known yet."""
OVERRIDES_TAG = PREFIX + "overrides"
MISTAKES_FILE = "test_mistakes.json"
"""An artifact: index of each misclassified test image, to the class that it was taken for."""
FINGERPRINT_TAG = PREFIX + "fingerprint"
DATA_TAG = PREFIX + "data_sha256"
COMMIT_TAG = "mlflow.source.git.commit"
DIRTY_TAG = PREFIX + "git_dirty"
TRAINING_KIND = {"mlflow.experimentKind": "custom_model_development"}
LIBRARIES = ("torch", "torchvision", "albumentations", "hydra-core", "omegaconf", "mlflow", "numpy")
CONNECT_TIMEOUT_S = 5.0
UI_ADDRESS = "http://127.0.0.1:5000"  # where `mlflow ui` listens


class Place(Protocol):
    """What a tracker has to know of a configuration."""

    @property
    def output_dir(self) -> str:
        """Everything that a run writes lies below it."""

    @property
    def tracking(self) -> TrackingConfig:
        """Which store, which experiment."""


class Tracker:
    """An MLflow store and one experiment in it.

    Opening one makes the store and the experiment where they do not exist yet; any number of
    processes may do so at once.

    Args:
        place: says where.
        make: whether a store below `output_dir` may be made; if not it has to be there.

    Raises:
        UserError: if the server does not answer or the folder cannot be written.
    """

    def __init__(self, place: Place, *, make: bool = True) -> None:
        output_dir = Path(place.output_dir).absolute()
        self.experiment_name = place.tracking.experiment_name
        self.is_local = place.tracking.uri is None
        self.uri = place.tracking.uri or f"sqlite:///{output_dir / 'mlflow.db'}"
        self._last_checkpoint: dict[str, dict[str, Any]] = {}
        check_store(place)
        if self.is_local:
            if not make and not (output_dir / "mlflow.db").exists():
                raise UserError(
                    f"output_dir={place.output_dir} holds no runs; right: the folder that an "
                    f"earlier run wrote to"
                )
            output_dir.mkdir(parents=True, exist_ok=True)
        artifacts = (output_dir / "artifacts").as_uri() if self.is_local else None
        import_mlflow()
        from mlflow import MlflowClient

        with _first_start_lock(self.uri):
            self.client: MlflowClient = MlflowClient(self.uri)
            self.experiment_id = find_or_make_experiment(
                self.client, self.experiment_name, artifacts
            )

    def ui_command(self) -> str:
        """The one command that opens the UI on this store (for a server: its address)."""
        if not self.is_local:
            return self.ui_page()
        ours = Path(sys.executable).with_name("mlflow")
        at_hand = shutil.which("mlflow") == str(ours)  # not where the environment is not activated
        mlflow = ["mlflow"] if at_hand else [sys.executable, "-m", "mlflow"]
        return shlex.join([*mlflow, "ui", "--backend-store-uri", self.uri])

    def ui_page(self) -> str:
        """The address of the experiment's runs in the UI.

        Without its last part MLflow 3.17 opens any experiment on the pages for GenAI, whatever
        its kind: https://github.com/mlflow/mlflow/issues/24498
        """
        root = UI_ADDRESS if self.is_local else self.uri.rstrip("/")
        return f"{root}/#/experiments/{self.experiment_id}?workflowType=machine_learning"

    def create_run(self, about: About) -> str:
        """The MLflow run of a spool: found, or started now; returns its id."""
        if about.run_id is not None:
            return about.run_id
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{about.key}'")
        if found:
            return str(found[0].info.run_id)
        tags = {**about.tags, KEY_TAG: about.key}
        run = self.client.create_run(self.experiment_id, about.start_ms, tags, about.name)
        return str(run.info.run_id)

    def find_run(self, run_id: str) -> Run:
        """The run of that id.

        Raises:
            UserError: if this store has none.
        """
        from mlflow.exceptions import MlflowException

        with suppress(MlflowException):
            return self.client.get_run(run_id)
        with suppress(MlflowException):
            found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{run_id}'")
            if found:
                return found[0]
        raise UserError(
                f"resume={run_id}: no such run in {self.uri}; right: the id of one of its runs "
                f"(output_dir= and tracking= say which store)"
            ) from None

    def log_settings(self, run_id: str, settings: Mapping[str, str]) -> None:
        """Record settings as parameters; those that the run already has stay as they are."""
        from mlflow.entities import Param

        there = self.client.get_run(run_id).data.params
        missing = [Param(k, v[:6000]) for k, v in settings.items() if k not in there]
        for start in range(0, len(missing), 100):
            self.client.log_batch(run_id, params=missing[start : start + 100])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set several tags in one request."""
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])

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
            self.client.log_batch(run_id, metrics=rows[start : start + 1000])

    def epochs_told(self, run_id: str) -> set[int]:
        """The epochs whose metrics the run has."""
        return {metric.step for metric in self.client.get_metric_history(run_id, "epoch_s")}

    def log_file(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Record a file as an artifact of the run."""
        self.client.log_artifact(run_id, str(path), folder)

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """Record text as an artifact called `name`."""
        self.client.log_text(run_id, text, name)

    def read_text(self, run_id: str, name: str) -> str:
        """The text of an artifact.

        Raises:
            OSError or MlflowException: if there is no such artifact.
        """
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run_id, name, folder)).read_text()

    def log_checkpoint(self, run_id: str, path: Path, about: Mapping[str, Any]) -> None:
        """Record a file as the run's newest checkpoint, unless that is of a later step.

        Two slots take turns, and the tag that names both is set last: a death at any moment leaves
        the checkpoint before.

        Args:
            about: `epoch`, `step` and `sha256` of the file.
        """
        before = self._checkpoint_tag(run_id)
        if before is not None and before["step"] > about["step"]:
            return
        slot = 1 - int(before["slot"]) if before else 0
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / f"slot-{slot}.pt"
            shutil.copyfile(path, named)
            self.log_file(run_id, named, "checkpoints")
        older = {key: value for key, value in (before or {}).items() if key != "before"}
        tag = {"slot": slot, **about, "before": older or None}
        self.client.set_tag(run_id, CHECKPOINT_TAG, json.dumps(tag))
        self._last_checkpoint[run_id] = tag

    def load_checkpoint(self, run_id: str) -> dict[str, Any] | None:
        """The run's newest whole checkpoint; `None` if it has none.

        Raises:
            DamagedCheckpoint: if none that is stored is what was written.
        """
        from mlflow.exceptions import MlflowException

        from mnist_hydra import checkpoint

        self._last_checkpoint.pop(run_id, None)
        tag = self._checkpoint_tag(run_id)
        if tag is None:
            return None
        problems = []
        for slot in (tag, tag.get("before")):
            if slot is None:
                continue
            name = f"checkpoints/slot-{slot['slot']}.pt"
            try:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(self.client.download_artifacts(run_id, name, folder))
                    state = checkpoint.load(path, slot["sha256"])
            except (checkpoint.DamagedCheckpoint, MlflowException, OSError) as error:
                problems.append(f"{name}: {str(error).splitlines()[0]}")
                continue
            if problems:
                left = f"step {slot['step']} is gone on from instead"
                print(f"run {run_id}: its newest checkpoint is damaged ({problems[0]}); {left}")
            self._last_checkpoint[run_id] = slot
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

        run = self.client.get_run(run_id)
        mine = f"source_run_id = '{run_id}'"
        for model in self.client.search_logged_models([run.info.experiment_id], mine):
            if model.status == LoggedModelStatus.READY:
                return
            self.client.delete_logged_model(model.model_id)
        logged = self.client.create_logged_model(
            run.info.experiment_id, "model", run_id, params=run.data.params
        )
        about = Model.load(str(folder))
        about.run_id, about.model_id, about.model_uuid = run_id, logged.model_id, logged.model_id
        about.artifact_path = logged.artifact_location
        about.save(str(folder / "MLmodel"))
        self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        # The same rows once more, of the model: another time would be another row of the run.
        newest = [self.client.get_metric_history(run_id, key)[-1] for key in run.data.metrics]
        metrics = [
            Metric(m.key, m.value, m.timestamp, m.step, model_id=logged.model_id, run_id=run_id)
            for m in newest
        ]
        self.client.log_batch(run_id, metrics=metrics)
        self.client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def end(self, run_id: str, status: str, at_ms: int | None = None) -> None:
        """Close the run: `FINISHED`, `FAILED` or `KILLED`; now, if it is not said when."""
        self.client.set_terminated(run_id, status, at_ms)

    def reopen(self, run_id: str) -> None:
        """Mark a closed run as running again."""
        self.client.update_run(run_id, status="RUNNING")

    def _checkpoint_tag(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self._last_checkpoint:
            text = self.client.get_run(run_id).data.tags.get(CHECKPOINT_TAG)
            if text is None:
                return None
            self._last_checkpoint[run_id] = json.loads(text)
        return self._last_checkpoint[run_id]


def provenance() -> dict[str, str]:
    """Tags that say what made a run: code, libraries, machine, command."""
    tags = {
        PREFIX + "command": shlex.join(["python", "-m", "mnist_hydra.train", *sys.argv[1:]]),
        PREFIX + "host": platform.node(),
        "mlflow.source.name": "mnist_hydra.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": user(),
    }
    tags |= git_state()
    tags[PREFIX + "version.mnist_hydra"] = mnist_hydra.__version__
    tags[PREFIX + "version.python"] = platform.python_version()
    return tags | {f"{PREFIX}version.{name}": _version(name) for name in LIBRARIES}


@cache
def git_state() -> dict[str, str]:
    """Commit of this program's code and whether it differs from it; nothing if not in git."""
    folder = Path(mnist_hydra.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {}
    commit = git("rev-parse", "HEAD")
    changes = git("status", "--porcelain", "--untracked-files=no", "--", "..")
    return {COMMIT_TAG: commit or "", DIRTY_TAG: str(bool(changes)).lower()}


def check_store(place: Place) -> None:
    """See that runs can be recorded, and leave nothing behind; takes no MLflow.

    Raises:
        UserError: if the server does not answer or `output_dir` cannot be written.
    """
    uri = place.tracking.uri
    if uri is not None and uri.startswith(("http://", "https://")):
        _insist_on_an_answer(uri)
    folder = Path(place.output_dir).absolute()
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"output_dir={folder} cannot be written ({error.strerror}); right: a folder that can"
        ) from None
    finally:
        for path in missing:
            with suppress(OSError):  # not made, or another process uses it already
                path.rmdir()


def import_mlflow() -> None:
    """Import MLflow, which takes more than a second, and keep it quiet."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # Whoever needs the store asks again by himself, and sooner than MLflow's client would.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow  # noqa: F401


def _insist_on_an_answer(uri: str) -> None:
    """One short request first: MLflow's own client would retry for minutes."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise StoreAway(
            f"tracking.uri={uri} does not answer ({reason}); right: the address of a running "
            f"MLflow server, or tracking=local"
        ) from None


@contextmanager
def _first_start_lock(uri: str) -> Iterator[None]:
    """Let one process at a time open a SQLite store: MLflow's schema migration takes no two."""
    prefix = "sqlite:///"
    if not uri.startswith(prefix):
        yield
        return
    path = Path(uri.removeprefix(prefix).partition("?")[0])
    with FileLock(path.with_name(f".{path.name}.lock")):
        yield
        with closing(sqlite3.connect(path)) as connection:  # readers and a writer side by side
            connection.execute("PRAGMA journal_mode=WAL")


def find_or_make_experiment(client: MlflowClient, name: str, artifacts: str | None = None) -> str:
    """The id of the experiment of that name; any number of processes may ask at once.

    Args:
        artifacts: where its artifacts go if it is made; `None` leaves that to MLflow.

    Raises:
        UserError: if it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            made = client.create_experiment(name, artifact_location=artifacts, tags=TRAINING_KIND)
            return str(made)
        except MlflowException:  # another process was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"tracking.experiment_name={name} was deleted in this store; right: another name, or "
            f"restore it with `mlflow experiments restore -x {found.experiment_id}`"
        )
    return str(found.experiment_id)


def user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
