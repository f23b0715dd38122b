"""The sweep's own command line on real data: run, resume, join, fail, stop, refuse."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from mnist_hydra import run as recording
from mnist_hydra import train
from mnist_hydra.data import idx
from mnist_hydra.errors import StoreAway, UserError
from mnist_hydra.ledger.ledger import Ledger
from mnist_hydra.ledger.owner import myself, new_token
from mnist_hydra.sweep import attempt
from mnist_hydra.targets import LET_IN
from mnist_hydra.tracking import journal, spool, tag
from mnist_hydra.tracking.tracker import MISTAKES_FILE, Tracker
from tests.commands import read_until
from tests.sweep_entries import claims, entries

QUICK = ("data=fashion_mnist", "epochs=1", "batch_size=50", "threads=1", "model=model1")
NO_REPORT = "sweep.report=false"
MODEL = '''
import glob, os, signal, sys, time, torch
from mnist_hydra.models import Model1

class Moody(Model1):
    """Model1 that fails, kills its process or takes its time, as its settings say."""

    def __init__(self, dropout: float = 0.0, mood: str = "fine", flag: str = "") -> None:
        super().__init__(dropout)
        self.mood, self.flag, self.steps = mood, flag, 0
        if mood == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            if self.mood == "angry" and not os.path.exists(self.flag):
                raise RuntimeError("not in the mood")
            if self.mood == "restless":
                os.chdir("/")
                sys.stdout.close()
            self.steps += 1
            until = time.monotonic() + (0.2 if self.steps <= 4 else 600)
            if self.mood == "slow":  # after its first epoch it waits for the flag
                while time.monotonic() < until and not os.path.exists(self.flag):
                    time.sleep(0.05)
            if self.mood == "sociable":  # it waits for a second process
                open(f"{self.flag}-{os.getpid()}", "w").close()
                while time.monotonic() < until + 300 and len(glob.glob(f"{self.flag}-*")) < 2:
                    time.sleep(0.05)
        return super().forward(images)
'''


@dataclass(frozen=True)
class Done:
    """What a command that has ended left."""

    code: int
    out: str
    err: str


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "mnist_hydra.train", "--multirun", *overrides]


def start(*overrides: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*overrides), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(process: subprocess.Popen[str]) -> Done:
    out, err = process.communicate(timeout=200)
    return Done(process.returncode, out, err)


def run(*overrides: str, cwd: Path, flags: tuple[str, ...] = ("--multirun",)) -> Done:
    """The command inside this process, which has torch already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv, folder, path = sys.argv, Path.cwd(), list(sys.path)
    GlobalHydra.instance().clear()
    sys.argv = ["train.py", *flags, *overrides]
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            train.main()
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os.chdir(folder)
        sys.argv, sys.path[:] = argv, path
    return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Data of 200 and 100 random images, to be given as an override."""
    folder = tmp_path_factory.mktemp("tiny")
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 200), ("t10k", 100)):
        images = random.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        idx.write_idx(raw / f"{part}-images-idx3-ubyte", images)
        idx.write_idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return f"data.root={folder}"


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")


def runs(folder: Path) -> tuple[list[Run], dict[str, Run]]:
    """The parents, oldest first, and the trials by name."""
    mlflow = client(folder)
    experiment = mlflow.get_experiment_by_name("mnist_hydra")
    assert experiment is not None
    found = mlflow.search_runs(
        [experiment.experiment_id], run_view_type=ViewType.ALL, order_by=["start_time"]
    )
    alive = [run for run in found if run.info.lifecycle_stage == "active"]
    parents = [run for run in alive if "mlflow.parentRunId" not in run.data.tags]
    trials = [run for run in alive if "mlflow.parentRunId" in run.data.tags]
    assert len({run.info.run_name for run in trials}) == len(trials)
    return parents, {str(run.info.run_name): run for run in trials}


def attempts(folder: Path, run: Run) -> int:
    return len(claims(client(folder), run))


def wait_for(what: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.3)


def write_moody(place: Path) -> Path:
    """Write a model of one's own below `place`; returns the folder for `--config-dir`."""
    folder = place / "mine"
    (folder / "model").mkdir(parents=True)
    (folder / "moody.py").write_text(MODEL)
    flag = place / "flag"
    (folder / "model" / "moody.yaml").write_text(
        f"_target_: moody.Moody\ndropout: 0.0\nmood: fine\nflag: {flag}\n"
    )
    return folder


@pytest.fixture
def moody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with a model of one's own, to be given as `--config-dir`."""
    monkeypatch.setattr(LET_IN, "folders", [])  # without those of commands of this process before
    monkeypatch.delitem(sys.modules, "moody", raising=False)
    return f"--config-dir={write_moody(tmp_path)}"


SWEPT = pytest.mark.xdist_group("swept")  # they share a sweep
AXES = ("dropout=0.02,0.04", "seed=1,2")


@pytest.fixture(scope="module")
def swept(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Done]]:
    """A folder with one finished sweep of four trials, and what the command printed."""
    folder = tmp_path_factory.mktemp("swept")
    done = run(tiny, *QUICK, *AXES, "sweep.keep=1", NO_REPORT, cwd=folder)
    assert done.code == 0, done.err
    yield folder, done


@SWEPT
def test_a_sweep_is_one_parent_with_a_child_for_each_trial(
    swept: tuple[Path, Done],
) -> None:
    folder, _ = swept
    [parent], trials = runs(folder)
    assert sorted(trials) == [f"dropout={d}, seed={s}" for d in ("0.02", "0.04") for s in "12"]
    assert {t.data.tags["mlflow.parentRunId"] for t in trials.values()} == {parent.info.run_id}
    assert {t.info.status for t in trials.values()} == {"FINISHED"}
    assert parent.info.status == "FINISHED"
    assert json.loads(parent.data.tags["mlflow.mnist_hydra.axes"]) == ["dropout", "seed"]
    assert "--multirun" in parent.data.tags["command"]
    assert [path.name for path in folder.iterdir()] == ["outputs"]


@SWEPT
def test_the_results_are_printed_and_kept_on_the_parent(
    swept: tuple[Path, Done],
) -> None:
    folder, done = swept
    assert "test/acc_last" in done.out and "no ground for choosing" in done.out
    best = next(line for line in done.out.splitlines() if "mnist_hydra.train" in line)
    assert "--multirun" not in best and "dropout=0.0" in best and "epochs=1" in best
    [parent], _ = runs(folder)
    mlflow = client(folder)
    text = Path(mlflow.download_artifacts(parent.info.run_id, "results.csv")).read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["n"] for row in rows] == ["2", "2"]
    assert {row["dropout"] for row in rows} == {"0.02", "0.04"}


@SWEPT
def test_only_the_best_trials_get_pictures_and_the_exported_model(
    swept: tuple[Path, Done],
) -> None:
    folder, _ = swept
    mlflow = client(folder)
    _, trials = runs(folder)
    best = max(trial.data.metrics["test/acc_last"] for trial in trials.values())
    completed = []
    for trial in trials.values():
        names = {item.path for item in mlflow.list_artifacts(trial.info.run_id)}
        assert {"checkpoints", "config.yaml"} <= names
        completed += [trial] if "pictures" in names else []
    assert [trial.data.metrics["test/acc_last"] for trial in completed] == [best]
    models = mlflow.search_logged_models([completed[0].info.experiment_id])
    assert [model.source_run_id for model in models] == [completed[0].info.run_id]


def test_what_is_done_later_moves_the_end_of_no_run_and_one_that_cannot_be_done_costs_no_other(
    tiny: str, tmp_path: Path
) -> None:
    words = (tiny, *QUICK, "seed=1,2")
    assert run(*words, "sweep.keep=0", NO_REPORT, cwd=tmp_path).code == 0
    [parent], trials = runs(tmp_path)
    ends = {r.info.run_id: (r.info.status, r.info.end_time) for r in (parent, *trials.values())}
    damaged, whole = sorted(trials.values(), key=lambda r: -r.data.metrics["test/acc_last"])
    Path(damaged.info.artifact_uri.removeprefix("file://"), "config.yaml").unlink()
    again = run(*words, "sweep.keep=2", NO_REPORT, cwd=tmp_path)
    assert again.code == 0 and "2 done and skipped" in again.err, again.err
    assert f"are missing: run {damaged.info.run_id}: FileNotFoundError" in again.err
    assert client(tmp_path).list_artifacts(whole.info.run_id, "pictures")
    [parent], trials = runs(tmp_path)
    now = {r.info.run_id: (r.info.status, r.info.end_time) for r in (parent, *trials.values())}
    assert now == ends


def test_the_end_of_a_sweep_closes_what_killed_workers_have_left_open(
    tiny: str, tmp_path: Path
) -> None:
    words = (tiny, *QUICK, "seed=1", "sweep.keep=0", NO_REPORT)
    assert run(*words, cwd=tmp_path).code == 0
    [parent], trials = runs(tmp_path)
    [trial], mlflow = trials.values(), client(tmp_path)
    [last] = mlflow.get_metric_history(trial.info.run_id, "epoch_s")
    mlflow.update_run(trial.info.run_id, status="RUNNING")  # killed before that was changed
    dead = replace(myself(new_token()), start_time=1.0).text()  # killed before its claim
    tags = {tag.PARENT: parent.info.run_id, tag.CREATOR: dead}
    orphan = mlflow.create_run(trial.info.experiment_id, tags=tags).info.run_id
    again = run(*words, cwd=tmp_path)
    assert again.code == 0 and "1 done and skipped" in again.err, again.err
    closed = mlflow.get_run(trial.info.run_id).info
    assert (closed.status, closed.end_time) == ("FINISHED", last.timestamp)
    assert mlflow.get_run(orphan).info.lifecycle_stage == "deleted"


@SWEPT
def test_a_trial_is_not_resumed_without_its_sweep(swept: tuple[Path, Done]) -> None:
    folder, _ = swept
    [parent], trials = runs(folder)
    trial = next(iter(trials.values())).info.run_id
    refused = run(f"resume={trial}", cwd=folder, flags=())
    assert refused.code == 2
    assert f"resume={trial} is a trial of the sweep {parent.info.run_id}" in refused.err
    assert parent.data.tags["command"] in refused.err
    assert "Traceback" not in refused.err


@SWEPT
def test_a_sweep_is_not_resumed_as_a_run(swept: tuple[Path, Done]) -> None:
    folder, _ = swept
    [parent], _ = runs(folder)
    refused = run(f"resume={parent.info.run_id}", cwd=folder, flags=())
    assert refused.code == 2
    assert f"error: resume={parent.info.run_id} is a sweep; right: " in refused.err
    assert parent.data.tags["command"] in refused.err


@SWEPT
def test_each_event_is_a_line_where_there_is_no_terminal(
    swept: tuple[Path, Done],
) -> None:
    _, done = swept
    for name in ("dropout=0.02, seed=1", "dropout=0.04, seed=2"):
        assert f"{name}: finished after epoch 1, accuracy" in done.err
    assert "4 trials: 4 to run" in done.err
    assert "4 of 4 trials done" in done.err


@SWEPT
def test_the_same_command_again_trains_nothing_and_shows_the_same_table_without_torch(
    tiny: str, swept: tuple[Path, Done]
) -> None:
    folder, done = swept
    words = [sys.executable, "-X", "importtime", "-m", "mnist_hydra.train", "--multirun"]
    words += [tiny, *QUICK, *AXES, "sweep.keep=1", NO_REPORT]
    again = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert again.stdout == done.out
    assert "4 trials: 4 done and skipped" in again.stderr
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines()}
    assert "mlflow" in imported and not {"torch", "albumentations", "optuna"} & imported
    [_], trials = runs(folder)
    assert [attempts(folder, trial) for trial in trials.values()] == [1, 1, 1, 1]


@SWEPT
def test_a_dry_run_lists_what_would_be_done_and_leaves_nothing_behind(
    tiny: str, swept: tuple[Path, Done], tmp_path: Path
) -> None:
    folder, _ = swept
    dry = ("sweep.dry_run=true", tiny, *QUICK)
    elsewhere = run(*dry, *AXES, cwd=tmp_path)
    assert (elsewhere.code, list(tmp_path.iterdir())) == (0, [])
    assert elsewhere.out.count("to run  ") == 4
    here = run(*dry, *AXES, "sweep.keep=1", NO_REPORT, cwd=folder)
    assert here.out.count("done and skipped  ") == 4
    assert len(runs(folder)[0]) == 1
    other = run(*dry, *AXES, "tracking.experiment_name=other", cwd=folder)
    assert other.out.count("to run  ") == 4
    assert client(folder).get_experiment_by_name("other") is None


def test_under_a_name_values_and_axes_are_added_and_another_base_is_refused(
    tiny: str, tmp_path: Path
) -> None:
    common = (tiny, *QUICK, "sweep.name=mine", "sweep.keep=0", NO_REPORT)
    assert run(*common, "dropout=0.02", "seed=1", cwd=tmp_path).code == 0
    assert run(*common, "dropout=0.02,null", cwd=tmp_path).code == 2
    more = run(*common, "dropout=0.02,0.04", "seed=1", cwd=tmp_path)
    assert more.code == 0 and "1 to run, 1 done and skipped" in more.err
    long = "weight_decay=null," + " " * 4_000 + "0.001"
    axis = run(*common, "dropout=0.02,0.04", "seed=1", long, cwd=tmp_path)
    assert axis.code == 0 and "2 to run, 2 done and skipped" in axis.err
    known = run(*common, "dropout=0.02,0.04", "seed=1", "weight_decay=0.001", cwd=tmp_path)
    assert known.code == 0 and "2 done and skipped" in known.err, known.err
    parents, trials = runs(tmp_path)
    assert [parent.info.run_name for parent in parents] == ["mine"]
    assert [attempts(tmp_path, trial) for trial in trials.values()] == [1, 1, 1, 1]
    refused = run(*common, "dropout=0.02,0.04", "seed=1", "batch_size=64", cwd=tmp_path)
    assert refused.code == 2
    assert "batch_size: 50 -> 64" in refused.err and "Traceback" not in refused.err
    fresh = run(
        *common, "dropout=0.02", "seed=1", "batch_size=64", "sweep.fresh=true", cwd=tmp_path
    )
    assert fresh.code == 0 and "1 to run" in fresh.err


def test_settings_that_are_whole_with_the_axes_alone_are_swept(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    mine = tmp_path / "mine"
    (mine / "optimizer").mkdir()
    (mine / "optimizer" / "plain.yaml").write_text("name: plain\n_target_: torch.optim.SGD\n")
    (mine / "model" / "moody.yaml").write_text("_target_: moody.Moody\ndropout: 0.0\nmood: ???\n")
    own = (moody, tiny, *QUICK, "model=moody", "optimizer=plain", "scheduler=constant")
    done = run(*own, "lr=0.05,0.1", "model.mood=fine", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert done.code == 0 and "2 of 2 trials done" in done.err, done.err
    done = run(*own, "lr=0.05", "model.mood=fine,slow", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert done.code == 0 and "2 of 2 trials done" in done.err, done.err


def test_a_trial_whose_last_checkpoint_is_damaged_gets_no_model_of_an_earlier_one(
    tiny: str, tmp_path: Path
) -> None:
    words = (tiny, *QUICK[:1], *QUICK[2:], "epochs=2", "seed=1", NO_REPORT)
    assert run(*words, "sweep.keep=0", cwd=tmp_path).code == 0
    _, trials = runs(tmp_path)
    [trial] = trials.values()
    newest = json.loads(trial.data.tags[tag.CHECKPOINT])
    (slot,) = (tmp_path / "outputs").rglob(f"{trial.info.run_id}/**/slot-{newest['slot']}.pt")
    slot.write_bytes(slot.read_bytes()[:-9])
    done = run(*words, "sweep.keep=1", cwd=tmp_path)
    assert "its last checkpoint is missing or damaged" in done.err, done.err
    assert not client(tmp_path).search_logged_models([trial.info.experiment_id])


def test_what_a_dead_process_left_of_a_trial_does_not_go_into_the_one_that_another_finished(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (tiny, *QUICK, "seed=1", NO_REPORT)
    assert run(*words, "sweep.keep=0", cwd=tmp_path).code == 0
    _, trials = runs(tmp_path)
    [trial] = trials.values()
    run_id = trial.info.run_id
    spooled = journal.SpooledRun(run_id, "mnist_hydra", None, {}, 0, None, run_id)

    def away() -> Tracker:
        raise StoreAway("away")

    monkeypatch.setattr(spool, "PATIENCE_AWAY_S", 0.1)
    with spool.Spool(tmp_path / "outputs", spooled, away) as left:
        left.log_text("{}", MISTAKES_FILE)
    monkeypatch.undo()
    before = client(tmp_path).download_artifacts(run_id, MISTAKES_FILE, str(tmp_path))
    assert Path(before).read_text() != "{}"
    done = run(*words, "sweep.keep=1", cwd=tmp_path)
    assert done.code == 0, done.err
    after = client(tmp_path).download_artifacts(run_id, MISTAKES_FILE, str(tmp_path))
    assert Path(after).read_text() != "{}"
    assert client(tmp_path).list_artifacts(run_id, "pictures")


def test_a_trials_time_limit_is_for_its_training_alone(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_s, close = 7.0, spool.Spool.close

    def late(*_: Any, **__: Any) -> None:
        time.sleep(limit_s + 0.5)

    def close_late(self: spool.Spool, stop: threading.Event | None = None) -> None:
        late()
        close(self, stop)

    monkeypatch.setattr(attempt, "GRACE_S", 0.1)
    monkeypatch.setattr(spool, "deliver_left", late)
    monkeypatch.setattr(spool.Spool, "close", close_late)
    limit = (f"sweep.trial_timeout_s={limit_s}", "sweep.retries=0", "sweep.keep=0", NO_REPORT)
    done = run(tiny, *QUICK, "compile=false", "seed=1", *limit, cwd=tmp_path)
    assert done.code == 0 and "1 of 1 trials done" in done.err, done.err


def test_what_a_dead_worker_could_not_tell_of_its_training_is_gone_on_from(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (tiny, *QUICK[:1], *QUICK[2:], "epochs=3", "seed=1", "sweep.keep=0", NO_REPORT)
    code = f"""
import os, sys
from mnist_hydra import run, train
from mnist_hydra.errors import StoreAway
from mnist_hydra.tracking import spool

def away(*_):
    raise StoreAway("away")

def after_epoch(self, epoch, metrics):
    if epoch == 2:
        os._exit(9)

spool.deliver_next = away
run._Recorder.after_epoch = after_epoch
sys.argv[1:] = ["--multirun", *{words!r}]
train.command()
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 9
    trained: list[int] = []
    told = recording._Recorder.after_epoch

    def after_epoch(self: Any, epoch: int, metrics: Any) -> Any:
        trained.append(epoch)
        return told(self, epoch, metrics)

    monkeypatch.setattr(recording._Recorder, "after_epoch", after_epoch)
    done = run(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert trained == [3], "epochs 1 and 2 waited in the spool"


def edit(model: Path, dropout: float) -> None:
    model.write_text(re.sub("dropout: .*", f"dropout: {dropout}", model.read_text()))


EDITED = "a configuration file, or mnist_hydra, was changed since it was planned; right: undo that"


def test_a_file_that_is_edited_while_a_sweep_runs_is_not_trained_as_what_was_planned(
    tiny: str, tmp_path: Path, moody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = tmp_path / "mine" / "model" / "moody.yaml", recording._Recorder.after_epoch

    def after_epoch(self: Any, epoch: int, metrics: Any) -> Any:
        edit(model, 0.5)
        return record(self, epoch, metrics)

    words = (moody, tiny, *QUICK[:-1], "model=model1,moody", "sweep.keep=0", NO_REPORT)
    with monkeypatch.context() as patch:
        patch.setattr(recording._Recorder, "after_epoch", after_epoch)
        done = run(*words, "sweep.name=mine", cwd=tmp_path)
    said = f"model=moody would be another training now: {EDITED}"
    assert done.code == 1 and said in done.err, done.err
    _, trials = runs(tmp_path)
    assert trials["model=model1"].info.status == "FINISHED"
    assert not trials["model=moody"].data.params, "nothing was trained"
    edit(model, 0.0)
    again = run(*words, "sweep.name=mine", cwd=tmp_path)
    assert again.code == 0 and "1 to be tried again, 1 done and skipped" in again.err, again.err


def test_a_search_trains_no_point_of_before_with_a_file_that_was_edited_since(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK[:-1], "hydra/sweeper=search", "sweep.n_trials=1")
    words += ("data.val_size=50", NO_REPORT, "sweep.keep=0", "model=choice(moody)")
    words += ("++model.mood=angry", "lr=interval(0.05,0.3)")
    assert run(*words, cwd=tmp_path).code == 1
    model = tmp_path / "mine" / "model" / "moody.yaml"
    edit(model, 0.5)
    (tmp_path / "flag").touch()  # it would be trained now
    other = run(*words, cwd=tmp_path)
    assert other.code == 1 and EDITED in other.err and "sweep.fresh=true" in other.err, other.err
    edit(model, 0.0)
    again = run(*words, cwd=tmp_path)
    assert again.code == 0 and "1 of 1 trials done" in again.err, again.err


def test_a_trial_does_not_go_on_from_a_checkpoint_of_other_settings(
    tiny: str, tmp_path: Path, moody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (moody, tiny, *QUICK, "seed=1", "epochs=2", "sweep.keep=0", NO_REPORT)

    def after_epoch(*_: object) -> None:
        raise RuntimeError("enough")

    with monkeypatch.context() as patch:  # as of a version that trained an edited file
        patch.setattr(recording, "fingerprint", lambda config: "0123456789abcdef")
        patch.setattr(recording._Recorder, "after_epoch", after_epoch)
        assert run(*words, "sweep.retries=0", cwd=tmp_path).code == 1
    [trial] = runs(tmp_path)[1].values()
    refused = run(*words, "sweep.retries=0", cwd=tmp_path)
    assert refused.code == 1 and "its checkpoint is of other settings" in refused.err, refused.err
    assert f"right: delete run {trial.info.run_id} in MLflow" in refused.err
    client(tmp_path).delete_run(trial.info.run_id)
    again = run(*words, "sweep.retries=0", cwd=tmp_path)
    assert again.code == 0 and "1 of 1 trials done" in again.err, again.err


def test_a_search_over_other_axes_trains_no_point_of_before_as_another(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    flag = tmp_path / "flag"
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=angry", f"model.flag={flag}")
    search = ("hydra/sweeper=search", "sweep.name=mine", "sweep.n_trials=1", "data.val_size=50")
    first = (*words, *search, NO_REPORT, "sweep.keep=0", "lr=interval(0.05,0.3)", "dropout=0.05")
    assert run(*first, cwd=tmp_path).code == 1
    flag.touch()
    other = run(*first[:-1], "dropout=interval(0.0,0.1)", cwd=tmp_path)
    assert other.code == 1 and "was proposed by a command over other axes" in other.err
    assert "right: that command again" in other.err
    again = run(*first, cwd=tmp_path)
    assert again.code == 0, again.err
    fewer = run(*first[:-2], "dropout=interval(0.0,0.1)", "lr=0.1", cwd=tmp_path)
    assert fewer.code == 0 and "1 of 1 trials done" in fewer.err, fewer.err
    names, row = (line.split() for line in fewer.out.splitlines()[1:3])
    assert names[:3] == ["rank", "dropout", "lr"], "a column for the axis that was left out, too"
    assert row[1] == "0.05" and 0.05 <= float(row[2]) <= 0.3
    best = next(line for line in fewer.out.splitlines() if "mnist_hydra.train" in line)
    assert "lr=0.1" not in best.split() and f"lr={row[2]}" in best and "dropout=0.05" in best
    [parent], _ = runs(tmp_path)
    views = client(tmp_path).get_experiment(parent.info.experiment_id).tags
    columns = json.loads(views[tag.VIEW + parent.info.run_id])["selectedColumns"]
    assert columns[1:] == ["params.`lr`", "params.`dropout`"], "in MLflow's list, too"


def test_a_search_goes_on_over_fewer_points_than_it_has_trials(tiny: str, tmp_path: Path) -> None:
    words = (tiny, *QUICK, "hydra/sweeper=search", "sweep.name=mine", "data.val_size=50")
    words = (*words, NO_REPORT, "sweep.keep=0")
    first = run(*words, "sweep.n_trials=2", "lr=interval(0.05,0.09)", cwd=tmp_path)
    assert first.code == 0, first.err
    more = run(*words, "sweep.n_trials=9", "lr=choice(0.1,0.2)", cwd=tmp_path)
    assert more.code == 0 and "4 trials: 2 done and skipped, 2 to be proposed" in more.err, more.err
    assert "4 of 4 trials done" in more.err
    again = run(*words, "sweep.n_trials=9", "lr=choice(0.1,0.2)", cwd=tmp_path)
    assert again.code == 0 and "4 trials: 4 done and skipped" in again.err


def test_trials_that_train_the_same_stand_in_the_table_once(tiny: str, tmp_path: Path) -> None:
    words = (tiny, *QUICK, "model=model3,model2", "dropout=0.02", "sweep.keep=0", NO_REPORT)
    done = run(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert "1 of 2 points is the same training as another, such as model=model2" in done.err
    rows = [line.split() for line in done.out.splitlines() if "model=" not in line]
    assert [row[:2] for row in rows if row[:1] == ["1"]] == [["1", "model3"]]
    [parent], trials = runs(tmp_path)
    text = client(tmp_path).download_artifacts(parent.info.run_id, "results.csv")
    assert [row["model"] for row in csv.DictReader(Path(text).open())] == ["model3"]
    accuracies = {trial.data.metrics["test/acc_last"] for trial in trials.values()}
    assert len(trials) == 2 and len(accuracies) == 1


def test_a_failed_trial_is_told_at_once_and_the_others_go_on(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "sweep.keep=0", NO_REPORT)
    failed = run(*words, "model.mood=angry,fine", cwd=tmp_path)
    assert failed.code == 1
    [parent], trials = runs(tmp_path)
    assert parent.info.status == "FAILED"
    assert trials["model.mood=fine"].info.status == "FINISHED"
    assert trials["model.mood=angry"].info.status == "FAILED"
    assert attempts(tmp_path, trials["model.mood=angry"]) == 2  # sweep.retries=1
    told = failed.err
    assert "model.mood=angry: FAILED in attempt 1" in told
    assert "RuntimeError: not in the mood" in told
    # It is mended, and the same command gives it a fresh attempt.
    (tmp_path / "flag").touch()
    again = run(*words, "model.mood=angry,fine", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "1 to be tried again, 1 done and skipped" in again.err
    [parent], trials = runs(tmp_path)
    assert attempts(tmp_path, trials["model.mood=angry"]) == 3
    assert parent.info.status == trials["model.mood=angry"].info.status == "FINISHED"


def test_ctrl_c_stops_after_a_checkpoint_and_the_printed_command_goes_on(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "epochs=6", "sweep.keep=0", NO_REPORT)
    axes = ("model.mood=slow", "seed=1,2")
    going = start(*words, "sweep.fresh=true", *axes, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/artifacts/**/slot-0.pt")))
    going.send_signal(signal.SIGINT)
    (tmp_path / "flag").touch()
    stopped_command = end(going)
    assert stopped_command.code == 130, stopped_command.err
    assert "Ctrl-C: running trials write a checkpoint" in stopped_command.err
    [parent], trials = runs(tmp_path)
    [stopped] = trials.values()
    assert stopped.data.tags["state"] == "interrupted"
    assert (parent.info.status, stopped.info.status) == ("KILLED", "KILLED")
    printed = shlex.split(stopped_command.err.splitlines()[-1])[4:]
    assert printed == [*words, *axes]
    again = run(*printed, cwd=tmp_path)
    assert again.code == 0, again.err
    assert "1 to run, 1 to be continued" in again.err
    _, trials = runs(tmp_path)
    assert sorted(attempts(tmp_path, trial) for trial in trials.values()) == [1, 2]
    history = client(tmp_path).get_metric_history(stopped.info.run_id, "train/loss")
    assert sorted(row.step for row in history) == [1, 2, 3, 4, 5, 6]


def test_a_trial_that_changes_the_folder_and_closes_a_stream_leaves_the_sweep_its_own(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "sweep.keep=0", NO_REPORT)
    done = run(*words, "model.mood=restless,fine", cwd=tmp_path)
    assert done.code == 0 and "2 of 2 trials done" in done.err
    assert "first in the table" in done.out
    [parent], trials = runs(tmp_path)
    assert parent.info.status == "FINISHED" and len(trials) == 2


def test_after_ctrl_c_the_next_sweep_of_the_same_process_trains(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=slow", "epochs=3", "sweep.keep=0")
    words += (NO_REPORT,)
    is_over = threading.Event()

    def press_ctrl_c() -> None:
        wait_for(lambda: list(tmp_path.glob("outputs/artifacts/**/slot-0.pt")))
        if not is_over.is_set():
            os.kill(os.getpid(), signal.SIGINT)
        (tmp_path / "flag").touch()

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    try:
        assert run(*words, "seed=1,2", cwd=tmp_path).code == 130
    finally:
        is_over.set()
    again = run(*words, "seed=1,2", cwd=tmp_path)
    assert again.code == 0, again.err
    assert "2 of 2 trials done" in again.err


def test_a_second_process_joins_and_no_trial_is_trained_twice(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=sociable", "sweep.keep=0", NO_REPORT)
    axes = ("seed=1,2,3,4,5,6", "epochs=4")
    other = start(*words, *axes, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/artifacts/**/config.yaml")))
    ends = [run(*words, *axes, cwd=tmp_path), end(other)]
    assert [done.code for done in ends] == [0, 0], ends
    assert ends[0].out == ends[1].out
    [parent], trials = runs(tmp_path)
    assert [attempts(tmp_path, trial) for trial in trials.values()] == [1] * 6
    owners = [claims(client(tmp_path), trial)[0]["owner"] for trial in trials.values()]
    assert len({owner["pid"] for owner in owners}) == 2, "both took part"
    assert parent.info.status == "FINISHED"


SPREAD = pytest.mark.xdist_group("spread")  # they share a sweep


@pytest.fixture(scope="module")
def spread(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """The folder of a sweep under joblib that has ended, of a model of one's own in a relative
    `--config-dir`, whose experiment makes a sweep of it, and what the command printed, with what
    its process imported.
    """
    folder = tmp_path_factory.mktemp("spread")
    write_moody(folder)
    (folder / "mine" / "experiment").mkdir()
    swept = "# @package _global_\nhydra: {mode: MULTIRUN}\n"
    (folder / "mine" / "experiment" / "swept.yaml").write_text(swept)
    words = [sys.executable, "-X", "importtime", "-m", "mnist_hydra.train"]
    words += ["--config-dir=mine", tiny, *QUICK, "model=moody", "hydra/launcher=joblib"]
    words += ["experiment=swept", "seed=1,2,3", "sweep.keep=1", "device=cpu"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    return folder, Done(done.returncode, done.stdout, done.stderr)


@SPREAD
def test_a_sweep_under_joblib_keeps_torch_out_of_its_own_process(spread: tuple[Path, Done]) -> None:
    folder, done = spread
    assert done.code == 0, done.err[-3000:]
    _, trials = runs(folder)
    assert [attempts(folder, trial) for trial in trials.values()] == [1, 1, 1]
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "mlflow" in imported and not {"torch", "albumentations"} & imported


def test_the_death_of_the_process_that_checks_is_one_line_and_nothing_is_begun(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=deadly", "hydra/launcher=joblib")
    done = end(start(*words, "seed=1,2", cwd=tmp_path))
    assert done.code == 1
    assert "error: the process that checks the trials died (SIGKILL)" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@SPREAD
def test_a_relative_config_dir_reaches_the_workers_and_their_output_is_kept_apart(
    spread: tuple[Path, Done],
) -> None:
    folder, done = spread
    assert done.code == 0, done.err[-3000:]
    [parent], trials = runs(folder)
    assert [attempts(folder, trial) for trial in trials.values()] == [1, 1, 1]
    logs = folder / "outputs" / "workers" / parent.info.run_id
    assert any("data.root" in log.read_text() for log in logs.glob("worker-*.log"))
    assert "data.root" not in done.err
    (slow,) = (line for line in done.err.splitlines() if "plain PyTorch's speed" in line)
    assert slow.endswith(f"not Moody (on {platform.node()})")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dropout=0.02,1.5",), "trial dropout=1.5: dropout=1.5"),
        (("model=glob(resnet*)",), "matches nothing; right: one of model1, model2, model3"),
        (("lr=0.1,0.2", "+lr=0.3,0.4"), "set the same key"),
        (("seed=1,2", "sweep.n_trials=0"), "sweep.n_trials=0"),
        (("hydra/sweeper=search", "data.val_size=100"), "the search has no axis"),
        (("hydra/sweeper=search", "lr=interval(0.1,0.2)"), "data.val_size=5000"),
        (("lr=interval(0.1,0.2)",), "hydra/sweeper=search"),
        (("seed=1,2", "batch_size=50", "device=cuda:7"), "device=cuda:7"),
        (("seed=1,2", "batch_size=100,100000"), "trial .*batch_size=100000"),
        (("seed=1,2", "tracking=server", "tracking.uri=http://127.0.0.1:9"), "does not answer"),
        (("seed=1,2", "sweep.objective=val/ac"), "sweep.objective=val/ac is no metric"),
        (("seed=1,2", "hydra.job.chdir=true"), "hydra.job.chdir=true moves"),
        (("seed=1,2", "output_dir=${hydra:runtime.output_dir}"), "right: one folder"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_left_behind(
    tiny: str, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    refused = run(tiny, "data=fashion_mnist", *overrides, cwd=tmp_path)
    assert refused.code == 2, refused.err
    assert re.search(message, refused.err), refused.err
    assert "Traceback" not in refused.err
    told = [line for line in refused.err.splitlines() if not line.startswith("data: ")]
    assert len(told) == 1 and told[0].startswith("error: ")
    assert not (tmp_path / "outputs").exists()


def test_a_key_that_does_not_exist_is_refused_and_nothing_is_left_behind(
    tiny: str, tmp_path: Path
) -> None:
    refused = run(tiny, "data=fashion_mnist", "seed=1,2", "sweep.retrys=3", cwd=tmp_path)
    assert refused.code == 2
    assert "'sweep.retrys' (did you mean sweep.retries" in refused.err
    assert len(refused.err.splitlines()) == 1
    assert not (tmp_path / "outputs").exists()


def test_a_worker_that_somebody_else_stops_is_started_again_and_goes_on(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=slow", "epochs=6", "sweep.keep=0")
    words += (NO_REPORT, "seed=1", "hydra/launcher=joblib", "sweep.workers=1")
    going = start(*words, cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/artifacts/**/slot-0.pt")))
    [worker] = psutil.Process(going.pid).children()
    worker.terminate()  # as earlyoom does
    (tmp_path / "flag").touch()
    done = end(going)
    assert done.code == 0 and "1 of 1 trials done" in done.err, done.err
    assert "worker 0 was stopped and is started again: exit code 143" in done.err
    _, trials = runs(tmp_path)
    assert [attempts(tmp_path, trial) for trial in trials.values()] == [2]


def test_ctrl_c_twice_leaves_at_once_and_loses_at_most_an_epoch(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "model.mood=slow", "epochs=6", "sweep.keep=0")
    words += (NO_REPORT,)
    going = start(*words, "seed=1,2", cwd=tmp_path)
    wait_for(lambda: list(tmp_path.glob("outputs/artifacts/**/slot-0.pt")))
    going.send_signal(signal.SIGINT)
    read_until("once more to leave at once", going.stderr)
    going.send_signal(signal.SIGINT)  # in a step that goes on for minutes
    left = end(going)
    assert left.code == 130, left.err
    (tmp_path / "flag").touch()
    again = run(*words, "seed=1,2", cwd=tmp_path)
    assert again.code == 0, again.err
    _, trials = runs(tmp_path)
    assert sorted(attempts(tmp_path, trial) for trial in trials.values()) == [1, 2]
    for trial in trials.values():
        history = client(tmp_path).get_metric_history(trial.info.run_id, "train/loss")
        assert [row.step for row in history] == [1, 2, 3, 4, 5, 6]


def test_fail_fast_stops_everything_at_the_first_final_failure(
    tiny: str, tmp_path: Path, moody: str
) -> None:
    words = (moody, tiny, *QUICK, "model=moody", "sweep.fail_fast=true", "sweep.retries=0")
    words += (NO_REPORT,)
    failed = run(*words, "model.mood=angry,fine", "seed=1,2", cwd=tmp_path)
    assert failed.code == 1
    assert "1 failed" in failed.err and "not finished" in failed.err
    _, trials = runs(tmp_path)
    assert [name for name in trials if "fine" in name] == []


def test_a_search_goes_on_toward_its_total_and_proposes_nothing_twice(
    tiny: str, tmp_path: Path
) -> None:
    words = (tiny, *QUICK, "hydra/sweeper=search", "data.val_size=50", "sweep.keep=0", NO_REPORT)
    axes = ("lr=tag(log,interval(0.02,0.5))", "dropout=range(0,0.3,0.1)")
    first = run(*words, *axes, "sweep.n_trials=3", cwd=tmp_path)
    assert first.code == 0, first.err
    more = run(*words, *axes, "sweep.n_trials=5", cwd=tmp_path)
    assert more.code == 0 and "3 done and skipped, 2 to be proposed" in more.err
    [parent], trials = runs(tmp_path)
    assert len(trials) == 5
    assert [attempts(tmp_path, trial) for trial in trials.values()] == [1] * 5
    assert {trial.data.tags["mlflow.mnist_hydra.fingerprint"] for trial in trials.values()} == {
        json.loads(text)["fingerprint"]
        for key, text in entries(client(tmp_path), parent).items()
        if key.startswith("point/")
    }
    assert "Configurations by val/acc on the hold-out" in more.out


def test_axes_of_the_configuration_itself_are_swept_too(tiny: str, tmp_path: Path) -> None:
    params = '+hydra.sweeper.params={lr: "0.1,0.2", seed: "range(3)", momentum: 0.5}'
    listed = run(tiny, *QUICK, params, "seed=4", "sweep.dry_run=true", cwd=tmp_path)
    assert listed.out.splitlines()[0] == "2 trials: 2 to run"
    assert "lr=0.1" in listed.out and "seed" not in listed.out


@pytest.fixture
def experiments(tmp_path: Path) -> str:
    """A folder with experiments of one's own, to be given as `--config-dir`."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    head = "# @package _global_\n"
    (folder / "axes.yaml").write_text(head + 'hydra: {sweeper: {params: {lr: "0.1,0.2"}}}\n')
    (folder / "there.yaml").write_text(head + "output_dir: there\n")
    (folder / "too.yaml").write_text(head + "output_dir: there\nlr: 0.2\n")
    return f"--config-dir={folder.parent}"


def test_axes_that_only_one_of_the_swept_experiments_brings_are_refused(
    tiny: str, tmp_path: Path, experiments: str
) -> None:
    words = (experiments, tiny, "sweep.dry_run=true")
    alone = run(*words, "experiment=axes", cwd=tmp_path)
    assert alone.out.splitlines()[0] == "2 trials: 2 to run"
    refused = run(*words, "experiment=axes,exp1", cwd=tmp_path)
    assert refused.code == 2 and "brings axes of its own (lr=0.1,0.2)" in refused.err


def test_the_trials_of_a_sweep_are_kept_in_one_place_which_an_experiment_may_name(
    tiny: str, tmp_path: Path, experiments: str
) -> None:
    refused = run(experiments, tiny, "experiment=there,exp1", cwd=tmp_path)
    assert refused.code == 2 and "experiment=exp1 has another output_dir" in refused.err
    words = (experiments, tiny, *QUICK, "experiment=there,too", "sweep.keep=0")
    done = run(*words, "hydra/launcher=joblib", cwd=tmp_path)
    assert done.code == 0, done.err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "there"}


class Flaky(BasicLauncher):
    """Raises as often as it is told before it launches, or always when its workers have ended."""

    raises = 0
    raises_late = False

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        if Flaky.raises:
            Flaky.raises -= 1
            raise OSError("the cluster is on fire")
        returned = super().launch(job_overrides, initial_job_idx)
        if Flaky.raises_late:
            raise OSError("the cluster is on fire")
        return returned


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> str:
    """A launcher that raises, to be given as an override."""
    module = ModuleType("hydra_plugins.tests")
    module.Flaky = Flaky  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Flaky, "__module__", module.__name__)
    Plugins.instance().register(Flaky)
    return "hydra.launcher._target_=hydra_plugins.tests.Flaky"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_stopped_while_the_store_is_away_says_so_by_its_exit_code(
    tiny: str, tmp_path: Path, flaky: str, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def launch(*_: object, **__: object) -> None:
        def read(*_: object, **__: object) -> None:
            raise ConnectionError("away")

        monkeypatch.setattr(Ledger, "read", read)
        os.kill(os.getpid(), number)
        raise ConnectionError("away")

    monkeypatch.setattr(Flaky, "launch", launch)
    done = run(tiny, *QUICK, flaky, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert done.code == 128 + number, done.err
    assert "error: the store takes nothing now: away" in done.err
    assert "go on with the same command:" in done.err and "Traceback" not in done.err


def test_a_launcher_that_raises_is_asked_again(tiny: str, tmp_path: Path, flaky: str) -> None:
    Flaky.raises = 2
    done = run(tiny, *QUICK, flaky, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert done.code == 0, done.err
    _, trials = runs(tmp_path)
    assert [attempts(tmp_path, trial) for trial in trials.values()] == [1, 1]


def test_a_launcher_that_raises_when_all_trials_are_done_costs_none(
    tiny: str, tmp_path: Path, flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "raises_late", True)
    done = run(tiny, *QUICK, flaky, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert "the launcher failed: OSError: the cluster is on fire" in done.err
    assert done.code == 0 and "2 of 2 trials done" in done.err


def test_one_worker_that_cannot_begin_costs_the_others_nothing(
    tiny: str, tmp_path: Path, flaky: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(self: Flaky, job_overrides: Any, initial_job_idx: int) -> Any:
        refused = JobReturn(overrides=[], status=JobStatus.FAILED)
        refused.return_value = UserError("output_dir=there cannot be written")
        return [refused, *BasicLauncher.launch(self, job_overrides, initial_job_idx)]

    monkeypatch.setattr(Flaky, "launch", launch)
    done = run(tiny, *QUICK, flaky, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert done.code == 0 and "2 of 2 trials done" in done.err, done.err
    assert "a worker could not begin: output_dir=there cannot be written" in done.err


def test_a_plan_is_whole_though_a_password_is_a_part_of_it(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = run(tiny, *QUICK, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert listed.code == 0, listed.err
    _, trials = runs(tmp_path)
    fingerprint = next(iter(trials.values())).data.tags[tag.FINGERPRINT]
    words = ["seed=1,2", "sweep.keep=0", NO_REPORT, "sweep.fresh=true"]
    for password in ("seed", fingerprint[6:10]):
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
        done = run(tiny, *QUICK, *words, cwd=tmp_path)
        assert done.code == 0 and "2 of 2 trials done" in done.err, done.err


def test_a_launcher_that_always_raises_ends_the_command_and_says_why(
    tiny: str, tmp_path: Path, flaky: str
) -> None:
    Flaky.raises = 1000
    given_up = run(tiny, *QUICK, flaky, "seed=1,2", "sweep.keep=0", NO_REPORT, cwd=tmp_path)
    assert given_up.code == 1
    assert "the launcher failed: OSError: the cluster is on fire" in given_up.err
    assert "Traceback" not in given_up.err
