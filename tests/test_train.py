"""The command line itself on real data: what a run records, how it resumes, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from mlflow import MlflowClient

from mnist_hydra import train
from mnist_hydra.build import prepare
from mnist_hydra.config import Config, settle
from mnist_hydra.stopping import StopReason
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.journal import SpooledRun
from mnist_hydra.tracking.spool import Spool
from mnist_hydra.tracking.tracker import Tracker
from mnist_hydra.trainer import Listener
from tests.commands import Commands, read_until

ROOT = Path(__file__).parents[1]
FINISHED = pytest.mark.xdist_group("finished_run")  # they share a run
IT_IS = r"model.name='it\'s'"
QUICK = ("epochs=2", "batch_size=128", "data.limit=1024", "threads=1")


def command(*overrides: str, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mnist_hydra.train", *overrides]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=300, **options)


def call(*overrides: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The same command inside this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *overrides])
    GlobalHydra.instance().clear()
    try:
        train.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")


def all_runs(folder: Path) -> list[Any]:
    mlflow = client(folder)
    experiment = mlflow.get_experiment_by_name("mnist_hydra")
    return list(mlflow.search_runs([experiment.experiment_id]))


def only_run(folder: Path) -> Any:
    (run,) = all_runs(folder)
    return run


def settled(*overrides: str) -> Config:
    with initialize_config_module("mnist_hydra.conf", version_base="1.3"):
        return settle(compose("config", overrides=list(overrides)))


@pytest.fixture(scope="module")
def finished(mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with one finished run, and what the command printed."""
    folder = tmp_path_factory.mktemp("finished")
    done = command("model=model3", "aug=ssr", f"data.root={mnist}", *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@FINISHED
def test_a_run_says_where_to_look(finished: tuple[Path, str]) -> None:
    folder, printed = finished
    assert only_run(folder).info.run_id in printed
    assert f"-m mnist_hydra.ui run={only_run(folder).info.run_id}" in printed
    assert "epoch" in printed


@FINISHED
def test_a_run_writes_only_below_its_output_folder(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert [path.name for path in folder.iterdir()] == ["outputs"]


@FINISHED
def test_a_run_records_metrics_settings_tags_and_artifacts(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    run, mlflow = only_run(folder), client(folder)
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "train/acc", "lr", "images_per_s", "epoch_s"):
        assert [m.step for m in mlflow.get_metric_history(run.info.run_id, name)] == [1, 2], name
    for name in ("test/loss", "test/acc"):
        assert len(mlflow.get_metric_history(run.info.run_id, name)) == 2
    metrics = run.data.metrics
    assert metrics["test/acc_last"] == metrics["test/acc"]
    assert metrics["test/acc_best"] >= metrics["test/acc_last"]
    assert {f"test/acc_class/{digit}" for digit in range(10)} <= set(metrics)
    assert "val/acc" not in metrics
    params = run.data.params
    assert params["lr"] == "0.15" and params["dropout"] == "0.04" and params["threads"] == "1"
    assert "auto" not in (params["device"], params["precision"], params["compile"])
    tags = run.data.tags
    assert tags["selected_on"] == "test"
    assert len(tags[tag.DATA]) == 64
    people = {name for name in tags if not name.startswith("mlflow.")}
    assert len(people) <= 10 and {"command", "device", "versions"} <= people
    tracker = Tracker(settled(f"output_dir={folder / 'outputs'}"), make=False)
    made = json.loads(tracker.read_text(run.info.run_id, "provenance.json"))
    assert made["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert made["data"]["sha256"] == tags[tag.DATA] and made["data"]["source"]
    splits = {part.tags[0].value: part.dataset for part in run.inputs.dataset_inputs}
    assert {use: split.name for use, split in splits.items()} == {
        "training": "MNIST train, 1,024 images",
        "testing": "MNIST test, 10,000 images",
    }
    assert json.loads(splits["training"].source)["sha256"] == tags[tag.DATA]
    assert "aug=ssr" in tags["mlflow.mnist_hydra.overrides"]
    names = {a.path for a in mlflow.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "provenance.json", "checkpoints", "pictures"} <= names
    pictures = {a.path for a in mlflow.list_artifacts(run.info.run_id, "pictures")}
    assert pictures == {
        f"pictures/{name}.png"
        for name in ("learning_curves", "confusion_matrix", "misclassified", "augmentation")
    }
    newest = json.loads(tags[tag.CHECKPOINT])
    assert (newest["epoch"], newest["step"]) == (2, 2 * 1024 // 128), "steps of the whole run"
    checkpoints = {a.path for a in mlflow.list_artifacts(run.info.run_id, "checkpoints")}
    assert {"checkpoints/last.pt", "checkpoints/best.pt"} <= checkpoints
    experiment = mlflow.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_exporting_a_model_imports_no_lightning_and_leaves_it_to_others(tmp_path: Path) -> None:
    for name in ("lightning", "pytorch_lightning"):
        (tmp_path / f"{name}.py").write_text("print('Lightning')")
    lines = [
        "from mnist_hydra.exported import lean_models",
        "with lean_models():",
        "    import mlflow.pytorch",
        "print('flavor')",
        "import mlflow.pytorch._lightning_autolog",  # fails, but not before it found ours
    ]
    search = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "flavor\nLightning\n", done.stderr


@FINISHED
def test_the_logged_model_is_an_exported_program_for_raw_images(
    finished: tuple[Path, str], mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    # what MLflow takes by itself where there is a GPU
    monkeypatch.setenv("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cuda")

    from mnist_hydra.data.load import load_dataset

    folder, _ = finished
    run = only_run(folder)
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'outputs' / 'mlflow.db'}")
    (logged,) = mlflow.search_logged_models([run.info.experiment_id], output_format="list")
    assert not [p for p in (folder / "outputs" / "artifacts").rglob("*.pkl")]
    assert logged.source_run_id == run.info.run_id
    model = mlflow.pyfunc.load_model(logged.model_uri)
    dataset = load_dataset(settled(f"data.root={mnist}").data, folder)
    images = dataset.test.images[:7]
    got = torch.from_numpy(model.predict(images))
    assert got.shape == (7, 10)
    assert torch.allclose(got.exp().sum(1), torch.ones(7), atol=1e-4)


def test_a_hold_out_is_measured_each_epoch_and_the_test_set_once(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not call(f"data.root={mnist}", "data.val_size=500", *QUICK, monkeypatch=monkeypatch)
    run, mlflow = only_run(tmp_path), client(tmp_path)
    assert len(mlflow.get_metric_history(run.info.run_id, "val/acc")) == 2
    assert len(mlflow.get_metric_history(run.info.run_id, "test/acc")) == 1
    assert "test/acc_best" not in run.data.metrics
    assert run.data.tags["selected_on"] == "val"


def test_the_same_command_twice_gives_bit_identical_weights(mnist: Path) -> None:
    config = settled("aug=ssr", f"data.root={mnist}", *QUICK)
    first, second = prepare(config), prepare(config)
    for trainer in (first, second):
        trainer.train(Listener())
    for name, weight in first.model.state_dict().items():
        assert torch.equal(weight, second.model.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop_after_steps", [3, 8, 11])
def test_a_run_stopped_anywhere_resumes_to_identical_weights_and_metrics(
    mnist: Path, tmp_path: Path, precision: str, stop_after_steps: int
) -> None:
    words = ("aug=ssr", f"data.root={mnist}", f"precision={precision}", f"output_dir={tmp_path}")
    if precision == "bf16":  # ten times as slow where the CPU does not multiply it; as many steps
        words += ("batch_size=32", "data.limit=256", "data.val_size=256")
    config = settled(*QUICK, *words)
    whole = prepare(config)
    whole.train(Listener())

    tracker = Tracker(config)
    spooled = SpooledRun("0" * 32, config.tracking.experiment_name, None, {}, 0, None)
    spool = Spool(tmp_path, spooled, lambda: tracker)
    stopped = prepare(config)

    class StopAfterSteps(Listener):
        def should_stop(self) -> StopReason | None:
            return StopReason.INTERRUPTED if stopped.steps >= stop_after_steps else None

        def save(self, state: dict[str, Any]) -> None:
            spool.save_checkpoint(state)

        def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
            return self.should_stop()

    with spool:
        assert stopped.train(StopAfterSteps()) is StopReason.INTERRUPTED
    assert stopped.steps == stop_after_steps

    resumed = prepare(config, tracker.load_checkpoint(spool.run.id))
    assert resumed.train(Listener()) is None
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name
    for ours, theirs in zip(whole.position.history, resumed.position.history, strict=True):
        measured = (f"{whole.monitored}/loss", f"{whole.monitored}/acc")
        for name in ("train/loss", "train/acc", *measured, "lr"):
            assert ours[name] == theirs[name], name


def test_a_killed_run_goes_on_in_its_own_mlflow_run(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    words = ("epochs=12", "batch_size=64", "data.limit=4096", "threads=1", f"data.root={mnist}")
    words += ("data.val_size=256",)
    running = subprocess.Popen(
        [sys.executable, "-m", "mnist_hydra.train", *words],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until_it_has_a_checkpoint(tmp_path, running)
    running.kill()
    running.wait()
    run_id = only_run(tmp_path).info.run_id
    done = commands.run(tmp_path, f"resume={run_id}", f"data.root={mnist}")
    assert done.code == 0, done.said
    run, mlflow = only_run(tmp_path), client(tmp_path)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    for name in ("train/loss", "val/acc"):
        assert [m.step for m in mlflow.get_metric_history(run_id, name)] == list(range(1, 13))
    again = commands.run(tmp_path, f"resume={run_id}")
    assert again.code == 2 and "has finished" in again.err
    mlflow.update_run(run_id, status="RUNNING")  # as if it had been killed in its last moment
    assert commands.run(tmp_path, f"resume={run_id}").code == 0
    trained_ms = max(row.timestamp for row in mlflow.get_metric_history(run_id, "train/loss"))
    assert only_run(tmp_path).info.end_time == trained_ms


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(mnist: Path, tmp_path: Path) -> None:
    words = ("epochs=50", "batch_size=64", "data.limit=4096", "threads=1", f"data.root={mnist}")
    running = start(*words, cwd=tmp_path)
    wait_until_it_has_a_checkpoint(tmp_path, running)
    running.send_signal(signal.SIGINT)
    printed, errors = running.communicate(timeout=180)
    run = only_run(tmp_path)
    assert running.returncode == 130, errors
    assert run.info.status == "KILLED"
    assert f"resume={run.info.run_id}" in printed
    assert "Traceback" not in errors


def test_ctrl_c_while_the_command_is_still_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "hydra.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    )
    done = command(cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_the_pictures_are_made_says_that_the_training_is_complete(
    mnist: Path, tmp_path: Path
) -> None:
    words = ("epochs=1", "batch_size=256", "data.limit=512", "threads=1", f"data.root={mnist}")
    for folder in (tmp_path / str(number) for number in range(3)):
        folder.mkdir()
        running = start(*words, cwd=folder)
        read_until("drawing the pictures", running.stderr)
        running.send_signal(signal.SIGINT)
        printed, errors = running.communicate(timeout=180)
        if "the training is complete" in errors:  # else it had ended before the signal came
            break
    assert "the training is complete" in errors, errors
    assert "checkpoint" not in errors and "once more to leave at once" in errors
    assert running.returncode == 0 and "test accuracy" in printed
    assert only_run(folder).info.status == "FINISHED"


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_hydra.train", *words],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until_it_has_a_checkpoint(folder: Path, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended by itself"
        if list(folder.glob("outputs/artifacts/*/artifacts/checkpoints/slot-*.pt")):
            run = only_run(folder)
            if tag.CHECKPOINT in run.data.tags:
                json.loads(run.data.tags[tag.CHECKPOINT])
                return
        time.sleep(0.1)
    raise AssertionError("no checkpoint in two minutes")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("dropout=1.5",), "dropout=1.5"),
        (("batch_size=2000",), "batch_size=2000"),
        (("device=cuda:7",), "device=cuda:7"),
        (("precision=fp16", "device=cpu"), "precision=fp16"),
        (("data.val_size=60000",), "data.val_size=60000"),
        (("aug.steps=[{Nonsense: {p: 1}}]",), "Nonsense"),
        (("model._target_=os.system",), "model._target_=os.system"),
        (("model._target_=torch.optim.SGD",), "model._target_=torch.optim.SGD"),
        (("model._target_=mnist_hydra.models.Model9",), "Model9"),
        (("optimizer._target_=torch.nn.Linear",), "optimizer._target_"),
        (("+model.width=3",), "width"),
        (("+scheduler.wobble=1",), "wobble"),
        (("tracking=server", "tracking.uri=http://nowhere.invalid"), "tracking.uri"),
        (("resume=0123",), "resume=0123"),
        (("output_dir=/proc/nowhere",), "output_dir=/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_left_behind(
    overrides: tuple[str, ...],
    named: str,
    mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("data.limit=1024", f"data.root={mnist}", "data.offline=true", *overrides)
    assert call(*words, monkeypatch=monkeypatch) == 2
    (message,) = [
        line for line in capfd.readouterr().err.splitlines() if not line.startswith("data: ")
    ]
    assert message.startswith("error: ") and named in message
    assert "right: " in message or "give " in message
    assert not list(tmp_path.iterdir())


def test_a_store_that_refuses_while_the_first_epoch_trains_is_bad_input_too(
    mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = Tracker(settled(f"output_dir={tmp_path}"))
    tracker.client.delete_experiment(tracker.experiment_id)
    words = (f"data.root={mnist}", f"output_dir={tmp_path}", "epochs=1000", "threads=1")
    assert call(*words, monkeypatch=monkeypatch) == 2
    assert "was deleted" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_whose_settings_cannot_be_recorded_is_not_left_running(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no room for settings")

    monkeypatch.setattr(Tracker, "log_settings", refuse)
    words = (f"data.root={mnist}", f"output_dir={tmp_path / 'outputs'}", "epochs=1000", "threads=1")
    assert call(*words, monkeypatch=monkeypatch) == 1
    assert only_run(tmp_path).info.status == "FAILED"


def test_missing_data_while_offline_is_named_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("data.offline=true", monkeypatch=monkeypatch) == 2
    message = capfd.readouterr().err
    assert "data.offline" in message and "data.root" in message
    assert not list(tmp_path.iterdir())


def test_a_process_that_gets_too_little_memory_says_so_in_one_line(
    mnist: Path, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "mnist_hydra.train", f"data.root={mnist}", "data.limit=600"]
    limited = ["bash", "-c", 'ulimit -v 700000; exec "$@"', "bash", *words]
    # Its threads, one for each core, would take some of that.
    one = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, env=one)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "memory (" in done.stderr.splitlines()[-1], done.stderr


def test_a_misspelt_key_of_a_users_own_model_is_named_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "mine" / "model"
    model.mkdir(parents=True)
    (model / "wide.yaml").write_text("_target_: wide.Wide\nwidth: 64\n")
    (model / "broken.yaml").write_text("a: [")
    own = ["--config-dir", "mine", "model=wide", "model.widht=3"]
    assert call(*own, monkeypatch=monkeypatch) == 2
    assert "'model.widht' (did you mean model.width" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=model9", "Could not find 'model/model9' (did you mean model3"),
        ("modell=3", "'modell' (did you mean model or model.name?)\n"),
        ("xyzzy=3", "'xyzzy'; right: a key that --help shows\n"),
        ("model.width=3", "To append to your config use +model.width=3\n"),
        ("model={width: 3}", "To append to your config use +model={width: 3}\n"),
        ("data.vel_size=3", "(did you mean data.val_size"),
        ("~sede", "'sede' (did you mean seed"),
        ("hydra.launcher.adress=host:1", "(did you mean hydra.launcher.address"),
        ("optimizer.lr=0.3", "'optimizer.lr' (did you mean lr?)"),
        ("scheduler={a:1}", "'scheduler' by keys that it does not have"),
        ("~tracking.uri", "~tracking.uri deletes what is null or not there; right: without it"),
        ("optimizer.betas=0.9", "'optimizer.betas' (a key of optimizer=adamw); right: optimizer="),
        ("experiment=null", "experiment=null names no entry of a group; right: "),
        ("model=3", "model=3 names no entry of a group; right: "),
        ("lr=[1", "lr=[1: "),
        ("+model.größe=1", "; right: a key of the letters a to z, digits, _ and ."),
        ("model.name=ö", "right, if it is text: \"model.name='ö'\""),
        ("model.name=it's", f"if it is text: {shlex.quote(IT_IS)}"),
        ("--lr=0.1", "unrecognized: --lr=0.1; right: settings such as lr=0.1"),
        ("--config-dir", "argument --config-dir/-cd: expected one argument; right: "),
        ("lr=0.1,0.2", "add --multirun"),
        ("--config-name=mine", "primary config 'mine'"),
        ("sweep.dry_run=true", "sweep.dry_run=true has no effect on a single run; right: "),
        ("++sweep.keep=3", "++sweep.keep=3 has no effect"),
        ("hydra/sweeper=search", "hydra/sweeper=search has no effect"),
        ("hydra.run.dir=/proc/x", "'/proc/x'; right: other settings of Hydra than hydra.run.dir="),
        ("hydra.job.chdir=true", "hydra.job.chdir=true moves the relative output_dir=outputs"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_refused_in_one_line(
    word: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("data.offline=true", word, monkeypatch=monkeypatch) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert message.startswith("error: ") and said in f"{message}\n"
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert call("epochs=1", monkeypatch=monkeypatch) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: the current folder cannot be used (No such file or directory)")


@pytest.mark.parametrize(
    "content",
    [b"_target_: !!python/name:os.system\n", "name: größe\n".encode("latin-1"), b"\xff" * 9000],
)
def test_a_yaml_file_that_cannot_be_read_is_refused_in_one_line(
    content: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_bytes(content)
    words = (f"--config-dir={tmp_path}", "model=mine", "data.offline=true")
    assert call(*words, monkeypatch=monkeypatch) == 2
    (message,) = capfd.readouterr().err.splitlines()
    assert message.startswith("error: ") and f"{tmp_path}/model/mine.yaml" in message


@pytest.mark.parametrize("name", ["model/model3", "config"])
def test_a_file_that_another_of_its_name_comes_before_is_refused_unless_it_is_a_copy(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine" / f"{name}.yaml"
    mine.parent.mkdir(parents=True)
    words = ("--config-dir", "mine", "--cfg", "job")
    built_in = (ROOT / "conf" / f"{name}.yaml").read_text()
    mine.write_text(built_in)
    assert call(*words, monkeypatch=monkeypatch) == 0
    assert capfd.readouterr().err == ""
    mine.write_text(built_in + "width: 8\n")
    assert call(*words, monkeypatch=monkeypatch) == 2
    assert capfd.readouterr().err == (
        f"error: {mine} would not be read, since pkg://mnist_hydra.conf has another one of that "
        "name; right: a name of its own\n"
    )


def test_a_non_finite_loss_fails_the_run_and_names_epoch_step_and_lr(
    mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("lr=1e30", "scheduler=constant", f"data.root={mnist}", *QUICK)
    assert call(*words, monkeypatch=monkeypatch) == 1
    message = capfd.readouterr().err
    assert "epoch 1" in message and "step" in message and "lr=1e+30" in message
    run = only_run(tmp_path)
    assert run.info.status == "FAILED"
    # What it began with is recorded, however soon it fails.
    assert "command" in run.data.tags and run.data.params["lr"] == "1e+30"


def test_a_users_own_model_and_augmentation_need_no_fork(
    mnist: Path, tmp_path: Path, commands: Commands
) -> None:
    own = tmp_path / "own"
    (own / "model").mkdir(parents=True)
    (own / "optimizer").mkdir()
    (own / "aug").mkdir()
    (own / "mine.py").write_text(
        "import albumentations as A\n"
        "import torch\n"
        "class Linear(torch.nn.Module):\n"
        "    def __init__(self, dropout=0.0):\n"
        "        super().__init__()\n"
        "        self.scores = torch.nn.Linear(784, 10)\n"
        "    def forward(self, images):\n"
        "        return self.scores(images.flatten(1)).log_softmax(1)\n"
        "class Plain(torch.optim.SGD):\n"
        "    pass\n"
        "class Invert(A.ImageOnlyTransform):\n"
        "    def apply(self, img, **params):\n"
        "        return 255 - img\n"
    )
    (own / "model" / "linear.yaml").write_text("_target_: mine.Linear\ndropout: 0.0\n")
    (own / "optimizer" / "plain.yaml").write_text(
        "name: plain\n_target_: mine.Plain\nlr: 0.05\nmomentum: 0.9\nweight_decay: 0.0\n"
    )
    (own / "aug" / "invert.yaml").write_text(
        "name: invert\nsteps:\n  - {_target_: mine.Invert, p: 0.5}\n"
    )
    words = ("model=linear", "optimizer=plain", "aug=invert", "dropout=0.1")
    where = ("--config-dir", str(own), f"data.root={mnist}")
    done = commands.run(tmp_path, *where, *words, *QUICK)
    assert done.code == 0, done.said
    assert only_run(tmp_path).data.params["model.name"] == "Linear"


def test_a_thread_that_a_users_own_code_leaves_does_not_hold_the_command_up(
    mnist: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "clingy.yaml").write_text("_target_: clingy.Clingy\ndropout: 0.0\n")
    (tmp_path / "clingy.py").write_text(
        "import threading, time\n"
        "from mnist_hydra.models import Model1\n"
        "threading.Thread(target=time.sleep, args=[3600]).start()\n"
        "class Clingy(Model1):\n    pass\n"
    )
    words = ("--config-dir", ".", "model=clingy", f"data.root={mnist}", *QUICK)
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_help_and_the_composed_configuration_are_shown_without_torch(tmp_path: Path) -> None:
    for flag in (["--help"], ["--cfg", "job"]):
        words = [sys.executable, "-X", "importtime", "-m", "mnist_hydra.train", *flag]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert "| torch" not in done.stderr and "mlflow" not in done.stderr
    assert not list(tmp_path.iterdir())


@FINISHED
def test_a_run_that_the_store_does_not_know_cannot_be_resumed(
    finished: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(finished[0])
    assert call("resume=0123", monkeypatch=monkeypatch) == 2
    assert "error: resume=0123: no such run" in capfd.readouterr().err


@FINISHED
def test_a_run_that_was_deleted_is_not_resumed_before_it_is_restored(
    finished: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    store, run_id = client(folder), only_run(folder).info.run_id
    store.delete_run(run_id)
    try:
        assert call(f"resume={run_id}", monkeypatch=monkeypatch) == 2
    finally:
        store.restore_run(run_id)
    said = capfd.readouterr().err
    [restore] = re.findall(r"right: `MLFLOW_TRACKING_URI=(.*) mlflow runs restore --run-id", said)
    assert restore == store.tracking_uri and f"--run-id {run_id}` first" in said


def test_sixteen_first_starts_at_once_all_open_the_store(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "import mlflow.store.tracking.sqlalchemy_store\n"
        "from hydra import compose, initialize_config_module\n"
        "from uuid import uuid4\n"
        "from mnist_hydra.config import settle\n"
        "from mnist_hydra.tracking.journal import SpooledRun\n"
        "from mnist_hydra.tracking.tracker import Tracker\n"
        "with initialize_config_module('mnist_hydra.conf', version_base='1.3'):\n"
        "    config = settle(compose('config'))\n"
        "children = []\n"
        "for _ in range(16):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        Tracker(config).create_run(SpooledRun(uuid4().hex, 'x', 'x', {}, 0, None))\n"
        "        os._exit(0)\n"
        "    children.append(child)\n"
        "sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    mlflow = client(tmp_path)
    experiment = mlflow.get_experiment_by_name("mnist_hydra")
    assert len(mlflow.search_runs([experiment.experiment_id])) == 16


def test_what_a_stopped_run_prints_goes_on_with_it_when_it_is_pasted(
    mnist: Path, tmp_path: Path
) -> None:
    own = tmp_path / "my own"
    for group in ("model", "experiment"):
        (own / group).mkdir(parents=True)
    (own / "mine.py").write_text(
        "from mnist_hydra.models import Model1\nclass Mine(Model1):\n    pass\n"
    )
    (own / "model" / "mine.yaml").write_text("_target_: mine.Mine\ndropout: 0.0\n")
    (own / "experiment" / "there.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mine\noutput_dir: it's größer\n"
    )
    main = (ROOT / "conf" / "config.yaml").read_text(encoding="utf-8")
    (own / "root.yaml").write_text(main.replace("seed: 14596", "seed: 7"), encoding="utf-8")
    words = ["--config-dir=my own", "--config-name=root", "experiment=there", "epochs=12"]
    words += ["batch_size=64", "data.limit=2048", "data.val_size=256", "threads=1"]
    words += [f"data.root={mnist}", "++tracking.experiment_name=a b"]
    printed = tmp_path / "printed"
    with open(printed, "w") as file:
        running = subprocess.Popen(
            [sys.executable, "-m", "mnist_hydra.train", *words],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while "epoch  1/12" not in printed.read_text():  # a line is in the file at once
            assert time.monotonic() < deadline and running.poll() is None
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=180)
    assert running.returncode == 130, errors
    [again] = [line for line in printed.read_text().splitlines() if "resume=" in line]
    pasted = subprocess.run(
        ["bash", "-c", again], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert pasted.returncode == 0, pasted.stderr
    assert "after 12 epochs" in pasted.stdout
    [shown] = [line for line in pasted.stdout.splitlines() if "mnist_hydra.ui" in line]
    assert shlex.split(shown)[3:5] == [
        "output_dir='it\\'s größer'",
        "tracking.experiment_name='a b'",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"my own", "printed", "it's größer"}
    database = tmp_path / "it's größer" / "mlflow.db"
    store = MlflowClient(f"sqlite:///{database}")
    [run] = store.search_runs([store.get_experiment_by_name("a b").experiment_id])
    assert shlex.split(run.data.tags["command"])[3:] == words, "the command that began it"


def test_a_sweep_outlives_who_reads_what_it_prints(mnist: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ["--multirun", f"data.root={mnist}", "epochs=1", "data.limit=600", "lr=0.1,0.2"]
    words = [sys.executable, "-m", "mnist_hydra.train", *words]
    done = subprocess.run(words, cwd=tmp_path, stdout=writer, stderr=writer, timeout=300)
    os.close(writer)
    assert done.returncode == 0
    (parent,) = (run for run in all_runs(tmp_path) if run.info.run_name == "sweep over lr")
    assert parent.info.status == "FINISHED"
    there = {file.path for file in client(tmp_path).list_artifacts(parent.info.run_id)}
    assert {"results.csv", "report"} <= there


def test_a_run_without_standard_streams_is_trained(mnist: Path, tmp_path: Path) -> None:
    words = [f"data.root={mnist}", "epochs=1", "data.limit=600"]
    closed = shlex.join([sys.executable, "-m", "mnist_hydra.train", *words]) + " >&- 2>&-"
    assert subprocess.run(closed, shell=True, cwd=tmp_path, timeout=300).returncode == 0
    assert only_run(tmp_path).info.status == "FINISHED"


def test_any_text_is_fine_where_the_locale_is_ascii(mnist: Path, tmp_path: Path) -> None:
    words = ("tracking.experiment_name='größe'", "output_dir='ä'", f"data.root={mnist}", *QUICK)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = command(*words, cwd=tmp_path, env=os.environ | ascii_only)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    store = MlflowClient(f"sqlite:///{tmp_path / 'ä' / 'mlflow.db'}")
    assert store.get_experiment_by_name("größe") is not None
