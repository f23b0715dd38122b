"""A trained model is found by its names, and sees in any picture what it sees in MNIST's own."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import pty
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from omegaconf import OmegaConf
from PIL import Image

from mnist_hydra import evaluate, exported, predict, register, ui
from mnist_hydra.cli.entry import take_words
from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.errors import UserError
from mnist_hydra.report.read import read_sweeps
from mnist_hydra.report.results import best_of
from mnist_hydra.to_onnx import write_checked
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import Tracker
from tests.commands import Commands
from tests.data.small import mini
from tests.faults.postgres import free_port, mlflow_server

ROOT = Path(__file__).parents[1]
SWEPT = pytest.mark.xdist_group("used_model")  # they share a sweep, and what forks commands
Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def test_images(mnist: Path) -> Pixels:
    raw = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    return np.fromfile(raw, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def labels(mnist: Path) -> Pixels:
    return np.fromfile(mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.uint8, offset=8)


WHERE_A_GPU_IS = {"MLFLOW_DEFAULT_PREDICTION_DEVICE": "cuda"}
"""What MLflow takes by itself on a machine that has one; the models are programs for a CPU."""


def call(name: str, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command as a user starts it."""
    command = [sys.executable, "-m", f"mnist_hydra.{name}", *words]
    env = {**os.environ, **WHERE_A_GPU_IS, **env}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300, env=env)


Fast = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def fast(commands: Commands) -> Fast:
    """`call` for the commands of which another test sees that they start by themselves."""

    def run(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        done = commands.run_module(name, *words, cwd=cwd, env=WHERE_A_GPU_IS)
        return subprocess.CompletedProcess((name, *words), done.code, done.out, done.err)

    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, mnist: Path, fast: Fast) -> Path:
    """A folder with a sweep of two seeds, chosen between on a hold-out."""
    folder = tmp_path_factory.mktemp("swept")
    words = ["seed=1,2", "epochs=2", "batch_size=128", "data.limit=6000", "data.val_size=1000"]
    words += [f"data.root={mnist}", "sweep.name=two", "sweep.report=false"]
    done = fast("train", "--multirun", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def champion(swept: Path) -> str:
    """The printed line of the sweep's registration."""
    done = call("register", "sweep=two", cwd=swept)
    assert done.returncode == 0, done.stderr
    return done.stdout


def predicted(done: subprocess.CompletedProcess[str]) -> list[int]:
    return [int(row["digit"]) for row in csv.DictReader(io.StringIO(done.stdout))]


@pytest.fixture(scope="module")
def own(swept: Path, champion: str, mnist: Path) -> list[int]:
    """What the champion takes each of MNIST's test images for."""
    raw = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    done = call("predict", "model=mnist@champion", str(raw), cwd=swept)
    assert done.returncode == 0, done.stderr
    return predicted(done)


def write(folder: Path, pixels: Pixels, suffix: str = ".png", times: int = 1) -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(pixels):
        picture = Image.fromarray(image)
        if times > 1:
            picture = picture.resize((28 * times, 28 * times), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:04}{suffix}")
    return folder


@SWEPT
def test_a_champion_is_chosen_on_the_hold_out_and_stays_until_it_is_beaten(
    swept: Path, champion: str, fast: Fast
) -> None:
    assert champion.startswith("mnist@champion is version 1: run ") and "val/acc" in champion
    again = fast("register", "sweep=two", cwd=swept)
    reached = champion.partition(": ")[2].strip()
    assert again.returncode == 0
    assert again.stdout == f"mnist@champion is version 1 already: {reached}\n"


@SWEPT
def test_a_champion_is_not_compared_with_a_model_chosen_on_another_hold_out(
    swept: Path, champion: str, mnist: Path, fast: Fast
) -> None:
    words = ["seed=1", "epochs=1", "batch_size=128", "data.limit=1000", "data.val_size=500"]
    words += [f"data.root={mnist}", "sweep.name=other", "sweep.report=false"]
    done = fast("train", "--multirun", *words, cwd=swept)
    assert done.returncode == 0, done.stderr
    refused = fast("register", "sweep=other", cwd=swept)
    assert refused.returncode == 2 and "data.val_size=500" in refused.stderr, refused.stderr


@SWEPT
def test_a_model_is_chosen_and_recorded_by_the_last_epoch_which_it_is_of(
    swept: Path, fast: Fast
) -> None:
    tracker = Tracker(Place(str(swept / "outputs"), TrackingConfig("local", None, "mnist_hydra")))
    client, names = tracker.client, [tracker.experiment_id]
    [sweep] = client.search_runs(names, "attributes.run_name = 'two'")
    trials = client.search_runs(names, f"tags.`{tag.PARENT}` = '{sweep.info.run_id}'")
    worse, better = sorted(trials, key=lambda run: run.data.metrics["val/acc"])
    client.log_metric(worse.info.run_id, "val/acc", 0.999, step=0)  # better before its last epoch
    client.set_tag(sweep.info.run_id, tag.OBJECTIVE_AT, "best")
    try:
        first = best_of(read_sweeps(tracker, ["two"]).results.ranked_trials, minimize=False)
        done = fast("register", "sweep=two", "name=peak", cwd=swept)
    finally:
        client.set_tag(sweep.info.run_id, tag.OBJECTIVE_AT, "last")
    assert (first.run_id, first.score) == (worse.info.run_id, 0.999)
    reached = better.data.metrics["val/acc"]
    said = f"run {better.info.run_id}, val/acc {reached:.4f} in the last epoch, which the model is"
    assert done.returncode == 0 and said in done.stdout, done
    made = client.get_model_version_by_alias("peak", "champion")
    assert (made.run_id, made.tags["value"]) == (better.info.run_id, repr(reached))


@SWEPT
def test_a_champion_that_cannot_be_looked_up_now_is_not_replaced(
    swept: Path, champion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise MlflowException("503", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(MlflowClient, "get_model_version_by_alias", away)
    where = Place(str(swept / "outputs"), TrackingConfig("local", None, "mnist_hydra"))
    settings = {"sweep": "two", "name": "mnist", "by_test_set": False}
    place = {"output_dir": where.output_dir, "tracking": asdict(where.tracking)}
    with pytest.raises(MlflowException, match="503"):
        register.register(OmegaConf.create(settings | place))
    with pytest.raises(MlflowException, match="503"):
        exported.address_of(Tracker(where), "mnist@champion")


@SWEPT
def test_a_champion_that_was_made_by_hand_is_not_replaced(
    swept: Path, champion: str, fast: Fast
) -> None:
    tracker = Tracker(Place(str(swept / "outputs"), TrackingConfig("local", None, "mnist_hydra")))
    made = tracker.client.get_model_version_by_alias("mnist", "champion")
    where = tracker.client.get_run(made.run_id).info.artifact_uri
    tracker.client.create_registered_model("hand")
    tracker.client.create_model_version("hand", where, made.run_id)
    tracker.client.set_registered_model_alias("hand", "champion", "1")
    refused = fast("register", "sweep=two", "name=hand", cwd=swept)
    expected = (
        "error: name=hand: its champion, version 1, was not made by this command, and does not say "
        "what it reached; right: another name\n"
    )
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", expected)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("register", ["sweep=tow"], "two"),
        ("register", ["sweep=null"], "names no sweep"),
        ("register", ["sweep=two", "name=null"], "name=null"),
        ("register", ["sweep=two", "by_test_set=off"], "by_test_set=off"),
        ("predict", ["model=nobody@champion", "x.png"], "mnist@champion"),
        ("predict", ["model=0123456789abcdef", "x.png"], "no such run"),
        ("predict", ["model=null", "x.png"], "names no model"),
        ("predict", ["model=mnist@champion"], "images: none"),
        ("predict", ["model=mnist@champion", "no.png", "empty.png"], "no image of a digit"),
        ("predict", ["model=empty.png", "x.png"], "cannot be read"),
        ("predict", ["model=mnist@champion", "n" * 256], "no image of a digit"),
        ("predict", ["model=" + "n" * 256, "x.png"], "cannot be read"),
        ("evaluate", ["model=mnist@champion", "split=train"], "test or val"),
        ("evaluate", ["model=mnist@champion", "split=val"], "data.val_size"),
        ("evaluate", ["model=mnist@champion", "splitt=val"], "'splitt' (did you mean split?)"),
        ("to_onnx", ["model=mnist@champion"], "file=null"),
        ("to_onnx", ["model=mnist@champion", "file=nowhere/digits.onnx"], "a file in a folder"),
    ],
)
@SWEPT
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    swept: Path, champion: str, fast: Fast, name: str, words: list[str], said: str
) -> None:
    (swept / "empty.png").touch()
    done = fast(name, *words, cwd=swept)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and said in last, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("predict", ["empty.png"], "no image of a digit was found"),
        ("evaluate", ["data=kmnist", "data.offline=true"], "data.offline"),
    ],
)
@SWEPT
def test_what_is_wrong_with_images_is_said_before_the_model_is_loaded(
    swept: Path, champion: str, name: str, words: list[str], said: str
) -> None:
    (swept / "empty.png").touch()
    line = [sys.executable, "-X", "importtime", "-m", f"mnist_hydra.{name}", *words]
    done = subprocess.run(
        [*line, "model=mnist@champion"], capture_output=True, text=True, cwd=swept, timeout=300
    )
    assert done.returncode == 2 and said in done.stderr.splitlines()[-1], done.stderr[-2000:]
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mlflow" in imported and "torch" not in imported


@SWEPT
def test_pictures_of_any_kind_are_read_as_the_test_images_themselves(
    swept: Path, own: list[int], fast: Fast, tmp_path: Path, test_images: Pixels, labels: Pixels
) -> None:
    count = 200
    images, truth = test_images[:count], labels[:count]
    assert len(own) == 10_000
    right = np.mean(np.array(own[:count]) == truth)
    assert right > 0.85

    def of(folder: Path) -> list[int]:
        done = fast("predict", "model=mnist@champion", str(folder), cwd=swept)
        assert done.returncode == 0, done.stderr
        return predicted(done)

    assert of(write(tmp_path / "png", images)) == own[:count]
    assert of(write(tmp_path / "dark on light", 255 - images)) == own[:count]
    larger = np.mean(np.array(of(write(tmp_path / "jpeg", 255 - images, ".jpg", 5))) == truth)
    assert larger > right - 0.05


@SWEPT
def test_an_unreadable_file_is_one_line_while_the_others_go_on(
    swept: Path, champion: str, fast: Fast, tmp_path: Path, test_images: Pixels
) -> None:
    folder = write(tmp_path / "mixed", test_images[:2])
    (folder / "broken.png").write_text("no picture")
    done = fast("predict", "model=mnist@champion", str(folder), str(folder / "none.png"), cwd=swept)
    assert done.returncode == 1 and len(predicted(done)) == 2
    said = [line for line in done.stderr.splitlines() if "no image" in line]
    assert len(said) == 2 and "broken.png" in said[0] and "none.png" in said[1]


@SWEPT
def test_a_blank_picture_is_one_line_and_no_digit(
    swept: Path, champion: str, fast: Fast, tmp_path: Path, test_images: Pixels
) -> None:
    folder = write(tmp_path / "some", test_images[:1])
    Image.new("L", (28, 28), 255).save(folder / "empty.png")
    Image.new("L", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (80, 120), "white").save(folder / "paper.jpg")
    pixels = np.stack([test_images[1], np.zeros_like(test_images[1]), test_images[2]])
    idx = folder / "three-idx3-ubyte"
    idx.write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
    done = fast("predict", "model=mnist@champion", str(folder), cwd=swept)
    names = [row["image"] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert names == [str(folder / "0000.png"), f"{idx}#0", f"{idx}#2"]
    blank = (folder / "empty.png", folder / "one.png", folder / "paper.jpg", f"{idx}#1")
    assert done.stderr.splitlines() == [f"{name}: no digit (it is blank)" for name in blank]
    assert done.returncode == 1


@SWEPT
def test_of_blank_pictures_alone_each_is_one_line_and_the_exit_code_1(
    swept: Path, champion: str, fast: Fast, tmp_path: Path
) -> None:
    blank = tmp_path / "blank.png"
    Image.new("L", (28, 28), 255).save(blank)
    done = fast("predict", "model=mnist@champion", str(blank), cwd=swept)
    said = f"{blank}: no digit (it is blank)\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_model_of_a_server_leaves_no_copy_in_the_temporary_folder(
    fast: Fast, mnist: Path, tmp_path: Path, test_images: Pixels
) -> None:
    folder, temporary = write(tmp_path / "images", test_images[:1]), tmp_path / "temporary"
    temporary.mkdir()
    with mlflow_server(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as address:
        place = f"tracking.uri={address}"
        words = [place, "epochs=1", "data.limit=1000", f"data.root={mnist}", "model=model1"]
        done = fast("train", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        [run] = MlflowClient(address).search_runs(["1"])
        words = [f"model={run.info.run_id}", place, str(folder)]
        done = call("predict", *words, cwd=tmp_path, TMPDIR=str(temporary))
    assert done.returncode == 0 and len(predicted(done)) == 1, done.stderr
    assert list(temporary.rglob("MLmodel")) == []


@SWEPT
def test_ctrl_c_ends_a_command_with_no_word_and_the_code_of_that(
    swept: Path, champion: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "digit.png")
    words = ["-m", "mnist_hydra.predict", "model=mnist@champion", f"{tmp_path}/digit.png"]
    command = subprocess.Popen(
        [sys.executable, *words], cwd=swept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with open(until_it_reads(tmp_path / "digit.png", command), "wb"):
        time.sleep(1)  # a signal between two instructions would find it about to wait for ever
        command.send_signal(signal.SIGINT)
        said, _ = command.communicate(timeout=180)
    assert (command.returncode, said) == (130, b"")


def until_it_reads(fifo: Path, command: subprocess.Popen[bytes]) -> int:
    """Wait until a command reads a named pipe; the descriptor of the other end."""
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads it
            assert command.poll() is None, command.communicate()
            time.sleep(0.05)


@pytest.mark.parametrize("size", [0, 16, 16 + 784])
@SWEPT
def test_an_idx_file_of_no_whole_image_is_one_line(
    swept: Path, champion: str, fast: Fast, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "cut-idx3-ubyte"
    count = 0 if size == 16 else 2
    file.write_bytes((struct.pack(">4I", 0x803, count, 28, 28) + bytes(2 * 784))[:size])
    done = fast("predict", "model=mnist@champion", str(file), cwd=swept)
    assert done.returncode == 2 and done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [str(file), "error"]


def test_what_an_idx_file_holds_in_a_models_size_is_taken_as_it_is(tmp_path: Path) -> None:
    bag = np.full((28, 28), 180, np.uint8)  # its border is ink
    bag[:4, :6] = 0
    file = tmp_path / "bag-idx3-ubyte"
    file.write_bytes(struct.pack(">4I", 0x803, 1, 28, 28) + bag.tobytes())
    [(name, taken)] = predict.read_pictures(file, 28)
    assert name == f"{file}#0" and (taken == bag).all()


@SWEPT
def test_long_work_shows_a_bar_on_a_terminal_and_never_in_the_csv(
    swept: Path, champion: str, own: list[int], tmp_path: Path, mnist: Path
) -> None:
    raw = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    (tmp_path / "few-idx3-ubyte").write_bytes(
        struct.pack(">4I", 0x803, 300, 28, 28) + raw.read_bytes()[16 : 16 + 300 * 784]
    )
    (tmp_path / "broken.png").write_text("no picture")
    words = ["-m", "mnist_hydra.predict", "model=mnist@champion", str(tmp_path)]
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=swept,
        env=os.environ | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    seen = bytearray()
    reader = threading.Thread(target=read_terminal, args=(ours, seen))
    reader.start()
    printed, _ = process.communicate(timeout=300)
    reader.join(30)
    assert process.returncode == 1
    rows = list(csv.DictReader(io.StringIO(printed.decode())))
    assert [int(row["digit"]) for row in rows] == own[:300]
    shares = {int(share) for share in re.findall(rb"(\d+)%", seen)}
    assert {0, 100} < shares, "it moves within a file of many images"
    assert seen.count(b"broken.png: no image") == 1


def read_terminal(descriptor: int, seen: bytearray) -> None:
    """What is written to a terminal, until it is closed at the other end."""
    with contextlib.suppress(OSError):
        while content := os.read(descriptor, 65_536):
            seen += content


@SWEPT
def test_an_evaluation_tells_what_the_run_measured_with_its_interval(
    swept: Path, champion: str, mnist: Path, fast: Fast
) -> None:
    run = champion.split("run ")[1].split(",")[0]
    for model, start in ((run, call), ("mnist@champion", fast)):
        done = start("evaluate", f"model={model}", f"data.root={mnist}", cwd=swept)
        assert done.returncode == 0, done.stderr
        line = done.stdout.splitlines()[1]
        assert line.startswith("accuracy ") and line.endswith("(95 %, Wilson)")
    value, low, high = (float(w.rstrip(",")) for w in line.split() if w[0].isdigit() and w != "95")
    assert low < value < high and high - low < 3
    assert "calibration error" in done.stdout


@SWEPT
def test_the_hold_out_is_measured_as_the_run_itself_did(
    swept: Path, champion: str, mnist: Path, fast: Fast
) -> None:
    words = ["evaluate", "model=mnist@champion", "split=val", f"data.root={mnist}"]
    done = fast(*words, "data.val_size=1000", cwd=swept)
    assert done.returncode == 0, done.stderr
    for other in (["data.val_size=999"], ["data.val_size=1000", "data.split_seed=1"]):
        refused = fast(*words, *other, cwd=swept)
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not refused.stdout
        assert "right: data.val_size=1000 data.split_seed=0" in refused.stderr
    run = champion.split("run ")[1].split(",")[0]
    client = MlflowClient(f"sqlite:///{swept}/outputs/mlflow.db")
    accuracy = client.get_run(run).data.metrics["val/acc"]
    assert f"on 1000 val images of mnist\naccuracy {100 * accuracy:.2f} %," in done.stdout


@SWEPT
def test_a_model_measured_on_other_data_than_it_was_trained_on_says_so(
    swept: Path, champion: str, fast: Fast, mnist: Path, tmp_path: Path
) -> None:
    mini(tmp_path / "FashionMNIST" / "raw")
    on_mnist, on_other = (
        fast("evaluate", "model=mnist@champion", f"data.root={root}", f"data={name}", cwd=swept)
        for name, root in (("mnist", mnist), ("fashion_mnist", tmp_path))
    )
    assert on_mnist.returncode == on_other.returncode == 0, on_other.stderr
    assert "other data" not in on_mnist.stderr
    said = "model=mnist@champion was trained on other data than data=fashion_mnist\n"
    assert on_other.stderr == said and "on 20 test images of fashion_mnist" in on_other.stdout


@SWEPT
def test_a_model_of_ones_own_that_returns_bfloat16_is_used_as_any_other(
    tmp_path: Path, mnist: Path, fast: Fast, test_images: Pixels
) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "half.py").write_text(
        "import torch\n"
        "class Half(torch.nn.Linear):\n"
        "    def __init__(self):\n"
        "        super().__init__(784, 10)\n"
        "    def forward(self, images):\n"
        "        return super().forward(images.flatten(1)).log_softmax(1).bfloat16()\n"
    )
    (tmp_path / "mine" / "model" / "half.yaml").write_text("_target_: half.Half\n")
    words = ["--config-dir", "mine", "model=half", "epochs=1", "batch_size=128", "data.limit=500"]
    trained = fast("train", *words, f"data.root={mnist}", cwd=tmp_path)
    run = trained.stdout.split("run ")[1].split()[0]
    images = write(tmp_path / "images", test_images[:3])
    done = fast("predict", f"model={run}", str(images), cwd=tmp_path)
    assert done.returncode == 0 and len(predicted(done)) == 3, done.stderr


@SWEPT
def test_no_image_is_a_hold_out_for_a_model_that_was_trained_on_all(
    tmp_path: Path, mnist: Path, fast: Fast
) -> None:
    words = ["epochs=1", "batch_size=128", "data.limit=500", f"data.root={mnist}"]
    trained = fast("train", *words, cwd=tmp_path)
    run = trained.stdout.split("run ")[1].split()[0]
    others = [f"model={run}", "split=val", "data.val_size=1000", f"data.root={mnist}"]
    done = fast("evaluate", *others, cwd=tmp_path)
    assert done.returncode == 2 and "right: split=test" in done.stderr, done.stderr


@SWEPT
def test_a_model_as_onnx_answers_in_onnxruntime_as_torch_does(
    swept: Path, own: list[int], test_images: Pixels, mnist: Path
) -> None:
    import onnxruntime

    words = ["model=mnist@champion", "file=digits.onnx", f"data.root={mnist}"]
    before = set(swept.iterdir())
    done = call("to_onnx", *words, cwd=swept)
    assert done.returncode == 0, done.stderr
    assert "digits.onnx takes images, uint8 [N, 1, 28, 28]" in done.stdout
    assert set(swept.iterdir()) - before == {swept / "digits.onnx"}
    session = onnxruntime.InferenceSession(swept / "digits.onnx")
    for count in (1, 7, 500):
        (answer,) = session.run(None, {"images": test_images[:count, None]})
        assert np.allclose(np.exp(answer).sum(1), 1, atol=1e-5)
        assert answer.argmax(1).tolist() == own[:count]


@SWEPT
def test_what_answers_otherwise_than_torch_is_not_written(
    swept: Path, champion: str, test_images: Pixels, tmp_path: Path
) -> None:
    place = Place(str(swept / "outputs"), TrackingConfig("local", None, "mnist_hydra"))
    client = Tracker(place, make=False).client
    trials = client.search_runs(["1"], "tags.`mlflow.parentRunId` != ''")
    one, other, *_ = (exported.find_model(run.info.run_id, place) for run in trials)
    images = test_images[:100]
    with pytest.raises(UserError, match="onnxruntime's probabilities differ by .* at most 0.0001"):
        write_checked(one, images, other(images), tmp_path / "wrong.onnx")
    assert list(tmp_path.iterdir()) == []


@SWEPT
def test_without_its_packages_onnx_is_one_line_that_names_the_extra(
    swept: Path, champion: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnxscript'] = None")
    words = ["model=mnist@champion", "file=digits.onnx"]
    done = call("to_onnx", *words, cwd=swept, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "onnxscript" in done.stderr and "pip install 'mnist_hydra[onnx]'" in done.stderr


class Linear(torch.nn.Module):
    """What a model of somebody else may be."""

    def __init__(self, shape: Sequence[int], classes: int, returns: str = "") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(math.prod(shape), classes)
        self.returns = returns

    def forward(self, images: torch.Tensor) -> Any:
        found = self.layer(images.float().flatten(1) / 255)
        if self.returns == "logits":
            return 9 + found
        if self.returns == "half":
            return found.log_softmax(1)[:, : found.shape[1] // 2]
        return (found.log_softmax(1),) if self.returns == "tuple" else found.log_softmax(1)


def exported_model(
    folder: Path,
    shape: Sequence[int],
    classes: int = 10,
    returns: str = "",
    says: str = "",
    requires: str = "torch",
) -> Path:
    """A model of torch's in MLflow's form.

    Args:
        shape: of an image.
        says: in place of the right dtype and shape, what its signature says of them.
        requires: its requirement, as pip takes it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    kind, _, side = says.partition(" ")
    told = (-1, *([1, int(side), int(side)] if side else shape))
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, classes))])
    inputs = Schema([TensorSpec(np.dtype(kind or "uint8"), told)])
    with warnings.catch_warnings(), exported.lean_models():
        import mlflow.pytorch

        warnings.simplefilter("ignore")
        mlflow.pytorch.save_model(
            Linear(shape, classes, returns).eval(),
            folder,
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=np.zeros((2, *shape), np.uint8),
            serialization_format="pt2",
            pip_requirements=[requires],
        )
    return folder


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"shape": (3, 28, 28)}, r"takes uint8 \[-1, 3, 28, 28\]; right: .* \[N, 1, side, side\]"),
        ({"shape": (1, 28, 20)}, r"takes uint8 \[-1, 1, 28, 20\]"),
        ({"shape": (784,)}, r"takes uint8 \[-1, 784\]"),
        ({"shape": (1, 28, 28), "says": "float32"}, r"takes float32 \[-1, 1, 28, 28\]"),
        ({"shape": (1, 32, 32), "says": "uint8 28"}, r"fails on images uint8 \[3, 1, 28, 28\] \("),
        ({"shape": (1, 28, 28), "returns": "tuple"}, "fails on images .* single output tensor"),
        ({"shape": (1, 28, 28), "returns": "logits"}, "returns .* are no log-probabilities"),
        ({"shape": (1, 28, 28), "classes": 1}, r"returns \[3, 1\]"),
    ],
)
def test_a_model_that_is_no_classifier_of_such_images_is_one_line(
    made: dict[str, Any], said: str, tmp_path: Path, test_images: Pixels
) -> None:
    folder = exported_model(tmp_path / "odd", **made)
    with pytest.raises(UserError, match=f"^model=odd {said}") as refused:
        exported.Exported(folder, "odd")(test_images[:3])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("said", ["mine", 5000, None, ["mine"]])
def test_a_model_that_says_of_its_hold_out_what_cannot_be_is_one_line(
    said: object, tmp_path: Path
) -> None:
    about = exported_model(tmp_path / "odd", (1, 28, 28)) / "MLmodel"
    told = OmegaConf.to_container(OmegaConf.load(about))
    assert isinstance(told, dict)
    OmegaConf.save(OmegaConf.create(told | {"metadata": {exported.HOLD_OUT: said}}), about)
    nowhere = Place(str(tmp_path / "no"), TrackingConfig("local", None, "mnist_hydra"))
    with pytest.raises(UserError, match="^model=.*odd cannot be read") as refused:
        exported.find_model(str(about.parent), nowhere)
    assert "\n" not in str(refused.value)


def test_a_model_may_leave_a_part_of_the_probability_to_other_classes(
    tmp_path: Path, test_images: Pixels
) -> None:
    folder = exported_model(tmp_path / "half", (1, 28, 28), classes=20, returns="half")
    found = exported.Exported(folder, "half")(test_images[:3])
    assert found.shape == (3, 10) and 0.1 < found.sum(1).min() and found.sum(1).max() < 0.9


def test_the_file_lists_of_the_installed_packages_are_read_for_no_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    test_images: Pixels,
) -> None:
    import importlib_metadata

    def read() -> None:
        raise AssertionError("it takes a second")

    monkeypatch.setattr(importlib_metadata, "packages_distributions", read)
    folder = exported_model(tmp_path / "mine", (1, 28, 28), requires="torch==1.0")
    assert exported.Exported(folder, "mine")(test_images[:3]).shape == (3, 10)
    assert "required: torch==1.0)" in capfd.readouterr().err, "the check itself is made"


@SWEPT
def test_a_model_of_another_size_sees_any_picture_and_is_not_measured_on_mnist(
    mnist: Path, tmp_path: Path, test_images: Pixels, fast: Fast
) -> None:
    exported_model(tmp_path / "larger", (1, 32, 32))
    exported_model(tmp_path / "five", (1, 28, 28), classes=5)
    write(tmp_path / "pictures", test_images[:2])
    done = fast("predict", "model=larger", "pictures", cwd=tmp_path)
    assert (done.returncode, len(predicted(done))) == (0, 2), done.stderr
    for name, words, said in (
        ("evaluate", ["model=larger"], "takes 32 pixels a side, data=mnist has 28"),
        ("to_onnx", ["model=larger", "file=x.onnx"], "takes 32 pixels a side"),
        ("evaluate", ["model=five"], "model=five tells 5 classes apart, data=mnist has 10"),
    ):
        done = fast(name, *words, f"data.root={mnist}", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
        assert done.stderr.startswith("error: ") and said in done.stderr


SERVES_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mnist_hydra":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


@SWEPT
def test_a_model_is_served_over_http_by_an_environment_without_this_project(
    swept: Path, own: list[int], tmp_path: Path, test_images: Pixels
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SERVES_WITHOUT)
    port = free_port()
    environment = os.environ | WHERE_A_GPU_IS | {
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{swept / 'outputs' / 'mlflow.db'}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["-m", "models:/mnist@champion", "-p", str(port), "-h", "127.0.0.1"]
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (
                    tmp_path / "log"
                ).read_text()
                time.sleep(0.5)
        content = json.dumps({"inputs": test_images[:100, None].tolist()}).encode()
        asked = urllib.request.Request(
            f"{address}/invocations", content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            got = np.array(json.load(answer)["predictions"])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()
    assert got.shape == (100, 10) and got.argmax(1).tolist() == own[:100]


def test_a_digit_is_put_where_its_mass_is_in_the_middle_in_a_box_of_20() -> None:
    paper = np.full((200, 300), 250, np.uint8)
    paper[30:150, 200:215] = 10  # a 1, far from the middle
    seen = predict.fit(paper, 28)
    rows, columns = (np.flatnonzero((seen > 0).any(axis=axis)) for axis in (1, 0))
    assert seen.max() == 255 and len(rows) == 20 and len(columns) <= 4
    assert abs(rows.mean() - 13.5) <= 1 and abs(columns.mean() - 13.5) <= 1
    assert not predict.fit(np.full((50, 50), 255, np.uint8), 28).any(), "blank paper"
    dark = np.full((50, 50), 110, np.uint8)
    dark[10:40, 20:25] = 20
    assert predict.fit(dark, 28).max() == 255, "dark ink on darker paper"


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (220, 30), (160, 60), (40, 200), (0, 255)])
def test_a_digit_of_the_right_size_is_read_on_grey_paper_too(
    paper: int, ink: int, test_images: Pixels
) -> None:
    digit = test_images[0]
    grey = np.rint(paper + (ink - paper) * (digit / 255)).astype(np.uint8)
    assert np.abs(predict.fit(grey, 28).astype(int) - digit).max() <= 255 / abs(ink - paper)


def test_a_page_without_ink_is_blank_at_any_size_and_depth(tmp_path: Path) -> None:
    for side in (28, 200):
        page = np.full((side, side), 250, np.uint8)
        page[3:9, 3:9] = 245  # a fold
        assert not predict.fit(page, 28).any()
        for deep in (page.astype(np.uint16) * 257, page.astype(np.float32) / 255):
            path = tmp_path / f"{side}{deep.dtype}.tif"
            Image.fromarray(deep).save(path)
            [(_, seen)] = predict.read_pictures(path, 28)
            assert not seen.any(), path


GREY_PAPER = 0.4
"""The share of the range from black to white that is left between ink and grey paper."""


def as_paper(pixels: Pixels) -> Pixels:
    """A digit of 28 by 28 pixels in dark ink on white paper, five times as large."""
    larger = Image.fromarray(255 - pixels).resize((140, 140), Image.Resampling.BICUBIC)
    return np.asarray(larger)


@pytest.mark.parametrize(
    "kind",
    ["16 bits", "16 bits, one of them clear", "32 bits", "turned.jpg", "grey paper", "palette"]
    + ["black on nothing", "white on nothing"],
)
def test_a_picture_is_seen_as_a_viewer_shows_it(
    kind: str, tmp_path: Path, test_images: Pixels
) -> None:
    paper = as_paper(test_images[0])
    path, picture, more = tmp_path / f"{kind}.tif", Image.fromarray(paper), {}
    if kind == "16 bits":
        picture = Image.fromarray(paper.astype(np.uint16) * 257)
    elif kind == "16 bits, one of them clear":
        path, picture = path.with_suffix(".png"), Image.fromarray(paper.astype(np.uint16) * 257)
        picture.save(path, transparency=1)
        assert "transparency" in Image.open(path).info
        more = {"transparency": 1}
    elif kind == "32 bits":
        picture = Image.fromarray(paper.astype(np.float32) / 255)
    elif kind == "palette":
        picture = picture.convert("P")
    elif kind.endswith("on nothing"):  # drawn on a canvas that shows what is behind it
        ink = Image.fromarray(255 - paper)
        picture = Image.merge("LA", [Image.new("L", ink.size, kind.split()[0]), ink])
    elif kind == "grey paper":
        picture = Image.fromarray((60 + GREY_PAPER * paper).astype(np.uint8))
    else:  # a telephone writes the pixels as its sensor lay, and which side is up
        path, picture = tmp_path / kind, picture.rotate(90)
        more = {"exif": Image.Exif(), "quality": 95}
        more["exif"][0x0112] = 6
    picture.save(path, **more)
    [(_, seen)] = predict.read_pictures(path, 28)
    expected = predict.fit(paper, 28)
    assert expected.any() and np.abs(seen.astype(int) - expected).mean() < 1


def test_a_damaged_picture_is_unreadable_or_read_but_never_anything_else(
    tmp_path: Path, test_images: Pixels
) -> None:
    whole = Image.fromarray(as_paper(test_images[0]))
    draw, unreadable = random.Random(0), 0
    kinds = {kind: io.BytesIO() for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp")}
    for kind, file in kinds.items():
        whole.save(file, kind)
    huge = bytearray(kinds["png"].getvalue())
    huge[16:24] = struct.pack(">2I", 40_000, 40_000)
    huge[29:33] = struct.pack(">I", zlib.crc32(huge[12:29]))
    damaged = [("png", bytes(huge))]
    for kind, file in 60 * list(kinds.items()):
        content = bytearray(file.getvalue())
        for _ in range(draw.randint(1, 3)):
            content[int(len(content) * draw.random() ** 4)] = draw.randrange(256)
        damaged.append((kind, bytes(content[: draw.choice([None, draw.randrange(len(content))])])))
    for kind, content in damaged:
        path = tmp_path / f"damaged.{kind}"
        path.write_bytes(content)
        try:
            [(_, seen)] = predict.read_pictures(path, 28)
            assert seen.shape == (28, 28) and seen.dtype == np.uint8
        except predict.Unreadable as problem:
            unreadable += 1
            assert "\n" not in str(problem)
    assert unreadable > 50


def test_what_cannot_be_read_of_a_folder_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/secret/b.png", "a/c.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28)).save(tmp_path / name, "PNG")
    (tmp_path / "a/gone.png").symlink_to("nowhere")
    (tmp_path / "a/around").symlink_to("..")
    listed = os.scandir

    def refuse(folder: str) -> Any:  # who runs the tests may be one whom nothing is refused
        if folder.endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", folder)
        return listed(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = list(predict.files_in([str(tmp_path)]))
    assert found == [tmp_path / "a" / name for name in ("c.png", "gone.png", "secret")]
    for path, read in zip(found, (True, False, False), strict=True):
        refused = pytest.raises(predict.Unreadable, match=path.name)
        with contextlib.nullcontext() if read else refused:
            assert len(list(predict.read_pictures(path, 28))) == 1


def test_two_specks_far_apart_are_no_digit() -> None:
    paper = np.full((4000, 4000), 255, np.uint8)
    paper[5, 5] = paper[3990, 3990] = 0
    assert predict.fit(paper, 28).shape == (28, 28)


def test_words_are_files_and_the_rest_is_hydras(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a=b.png", "~odd.png"):
        Path(name).touch()
    line = ["model=x", "a.png", "--config-dir", "mine", "~data", "-h", "a=b.png", "~odd.png", "-"]
    assert take_words([*line, "+k=v"]) == (
        ["a.png", "a=b.png", "~odd.png", "-"],
        ["model=x", "--config-dir", "mine", "~data", "-h", "+k=v"],
    )


def test_wilsons_interval_and_the_calibration_error_are_those_of_the_books() -> None:
    def told(right: int) -> str:
        labels = np.repeat([0, 1], [right, 10 - right])
        return evaluate._told(evaluate.accuracy(np.array([[0.9, 0.1]] * 10, np.float32), labels))

    assert told(8) == "80.00 %, 49.02 to 94.33"  # Newcombe 1998, Table I's method
    assert told(10) == "100.00 %, 72.25 to 100.00"
    assert told(0) == "0.00 %, 0.00 to 27.75"
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], np.float32)
    error, bins = evaluate.calibration(probabilities, np.array([0, 1, 1, 1]))
    assert [count for count, _, _ in bins] == [2, 2]
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


@pytest.mark.parametrize("name", ["mine", "it's mine", "'mine'", 'the "best"'])
def test_the_pages_open_on_a_run_by_its_name_whatever_quotation_marks_it_has(
    name: str, tmp_path: Path
) -> None:
    tracker = Tracker(Place(str(tmp_path), TrackingConfig("local", None, "mnist_hydra")))
    run = tracker.client.create_run(tracker.experiment_id, run_name=name)
    assert f"/runs/{run.info.run_id}?" in ui.page_of(tracker, name)


def test_a_name_with_both_quotation_marks_is_one_line(tmp_path: Path) -> None:
    tracker = Tracker(Place(str(tmp_path), TrackingConfig("local", None, "mnist_hydra")))
    tracker.client.create_run(tracker.experiment_id, run_name="it's mine")
    assert ui.page_of(tracker, "it's mine")
    with pytest.raises(UserError, match="no such run"):
        ui.page_of(tracker, "it's \"mine\"")
