"""A trained model is found by its names, and sees in any picture what it sees in MNIST's own."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from packaging.version import Version
from PIL import Image

from mnist_hydra.cli.entry import take_words
from mnist_hydra.config import Place, TrackingConfig
from mnist_hydra.errors import UserError
from mnist_hydra.inference import digit_image, exported, quality
from mnist_hydra.to_onnx import write_checked
from mnist_hydra.tracking.tracker import Tracker

ROOT = Path(__file__).parents[1]
Pixels = npt.NDArray[np.uint8]
WRITES_ONNX = pytest.mark.skipif(
    Version(version("torch")) < Version("2.7"), reason="torch 2.6 fails with today's onnxscript"
)


@pytest.fixture(scope="module")
def test_images(mnist: Path) -> Pixels:
    raw = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    return np.fromfile(raw, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def labels(mnist: Path) -> Pixels:
    return np.fromfile(mnist / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", np.uint8, offset=8)


def call(name: str, *words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"mnist_hydra.{name}", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=300, env=os.environ | env
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, mnist: Path) -> Path:
    """A folder with a sweep of two seeds, chosen between on a hold-out."""
    folder = tmp_path_factory.mktemp("swept")
    words = ["seed=1,2", "epochs=2", "batch_size=128", "data.limit=6000", "data.val_size=1000"]
    words += [f"data.root={mnist}", "sweep.name=two", "sweep.report=false"]
    done = call("train", "--multirun", *words, cwd=folder)
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


def test_a_champion_is_chosen_on_the_hold_out_and_stays_until_it_is_beaten(
    swept: Path, champion: str
) -> None:
    assert champion.startswith("mnist@champion is version 1: run ") and "val/acc" in champion
    again = call("register", "sweep=two", cwd=swept)
    assert again.returncode == 1 and "stays version 1" in again.stdout


def test_a_champion_is_not_compared_with_a_model_chosen_on_another_hold_out(
    swept: Path, champion: str, mnist: Path
) -> None:
    words = ["seed=1", "epochs=1", "batch_size=128", "data.limit=1000", "data.val_size=500"]
    words += [f"data.root={mnist}", "sweep.name=other", "sweep.report=false"]
    done = call("train", "--multirun", *words, cwd=swept)
    assert done.returncode == 0, done.stderr
    refused = call("register", "sweep=other", cwd=swept)
    assert refused.returncode == 2 and "data.val_size=500" in refused.stderr, refused.stderr


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("register", ["sweep=tow"], "two"),
        ("register", ["sweep=null"], "names no sweep"),
        ("predict", ["model=nobody@champion", "x.png"], "mnist@champion"),
        ("predict", ["model=0123456789abcdef", "x.png"], "no such run"),
        ("predict", ["model=null", "x.png"], "names no model"),
        ("predict", ["model=mnist@champion"], "images: none"),
        ("predict", ["model=mnist@champion", "no.png", "empty.png"], "no image could be read"),
        ("predict", ["model=empty.png", "x.png"], "cannot be read"),
        ("evaluate", ["model=mnist@champion", "split=train"], "test or val"),
        ("evaluate", ["model=mnist@champion", "split=val"], "data.val_size"),
        ("to_onnx", ["model=mnist@champion"], "file=null"),
        ("to_onnx", ["model=mnist@champion", "file=nowhere/digits.onnx"], "a file in a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    swept: Path, champion: str, name: str, words: list[str], said: str
) -> None:
    (swept / "empty.png").touch()
    done = call(name, *words, cwd=swept)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: ") and said in last, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("predict", ["empty.png"], "no image could be read"),
        ("evaluate", ["data=kmnist", "data.offline=true"], "data.offline"),
    ],
)
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


def test_pictures_of_any_kind_are_read_as_the_test_images_themselves(
    swept: Path, own: list[int], tmp_path: Path, test_images: Pixels, labels: Pixels
) -> None:
    count = 200
    images, truth = test_images[:count], labels[:count]
    assert len(own) == 10_000
    right = np.mean(np.array(own[:count]) == truth)
    assert right > 0.85

    def of(folder: Path) -> list[int]:
        done = call("predict", "model=mnist@champion", str(folder), cwd=swept)
        assert done.returncode == 0, done.stderr
        return predicted(done)

    assert of(write(tmp_path / "png", images)) == own[:count]
    assert of(write(tmp_path / "dark on light", 255 - images)) == own[:count]
    larger = np.mean(np.array(of(write(tmp_path / "jpeg", 255 - images, ".jpg", 5))) == truth)
    assert larger > right - 0.05


def test_an_unreadable_file_is_one_line_while_the_others_go_on(
    swept: Path, champion: str, tmp_path: Path, test_images: Pixels
) -> None:
    folder = write(tmp_path / "mixed", test_images[:2])
    (folder / "broken.png").write_text("no picture")
    done = call("predict", "model=mnist@champion", str(folder), str(folder / "none.png"), cwd=swept)
    assert done.returncode == 1 and len(predicted(done)) == 2
    said = [line for line in done.stderr.splitlines() if "no image" in line]
    assert len(said) == 2 and "broken.png" in said[0] and "none.png" in said[1]


def test_an_evaluation_tells_what_the_run_measured_with_its_interval(
    swept: Path, champion: str, mnist: Path
) -> None:
    run = champion.split("run ")[1].split(",")[0]
    for model in (run, "mnist@champion"):
        done = call("evaluate", f"model={model}", f"data.root={mnist}", cwd=swept)
        assert done.returncode == 0, done.stderr
        line = done.stdout.splitlines()[1]
        assert line.startswith("accuracy ") and line.endswith("(95 %, Wilson)")
    value, low, high = (float(w.rstrip(",")) for w in line.split() if w[0].isdigit() and w != "95")
    assert low < value < high and high - low < 3
    assert "calibration error" in done.stdout


@WRITES_ONNX
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


@WRITES_ONNX
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


def test_without_its_packages_onnx_is_one_line_that_names_the_extra(
    swept: Path, champion: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['onnxscript'] = None")
    words = ["model=mnist@champion", "file=digits.onnx"]
    done = call("to_onnx", *words, cwd=swept, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "onnxscript" in done.stderr and "pip install 'mnist_hydra[onnx]'" in done.stderr


SERVES_WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mnist_hydra":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
"""


def test_a_model_is_served_over_http_by_an_environment_without_this_project(
    swept: Path, own: list[int], tmp_path: Path, test_images: Pixels
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SERVES_WITHOUT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
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
    seen = digit_image.fit(paper, 28)
    rows, columns = (np.flatnonzero((seen > 0).any(axis=axis)) for axis in (1, 0))
    assert seen.max() == 255 and len(rows) == 20 and len(columns) <= 4
    assert abs(rows.mean() - 13.5) <= 1 and abs(columns.mean() - 13.5) <= 1
    assert not digit_image.fit(np.full((50, 50), 255, np.uint8), 28).any(), "blank paper"


def test_words_are_files_and_the_rest_is_hydras(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.png"
    odd.touch()
    line = ["model=x", "a.png", "--config-dir", "mine", "~data", "-h", str(odd), "+k=v"]
    assert take_words(line) == (
        ["a.png", str(odd)],
        ["model=x", "--config-dir", "mine", "~data", "-h", "+k=v"],
    )


def test_wilsons_interval_and_the_calibration_error_are_those_of_the_books() -> None:
    low, high = quality.Share(8, 10).interval
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)  # Newcombe 1998, Table I's method
    assert quality.Share(10, 10).interval[1] == pytest.approx(1)
    assert quality.Share(0, 10).interval[0] == pytest.approx(0)
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], np.float32)
    error, bins = quality.calibration(probabilities, np.array([0, 1, 1, 1]))
    assert [b.count for b in bins] == [2, 2]
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)
