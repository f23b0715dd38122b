"""Writes data sets in MNIST's format: a small one that a network can learn, for runs of a few
seconds, and ones of any size that repeat another's images."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np


def write(root: Path, train: int, test: int, seed: int = 0) -> None:
    """Write `root/MNIST/raw/*-ubyte`: ten blurred patterns, each image one of them plus noise.

    Args:
        train, test: how many images each half gets.
    """
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    patterns = np.kron(random.integers(0, 2, (10, 7, 7)), np.ones((4, 4))) * 160
    for name, count in (("train", train), ("t10k", test)):
        labels = random.integers(0, 10, count).astype(np.uint8)
        images = (patterns[labels] + random.integers(0, 96, (count, 28, 28))).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 2049, count)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def repeat(source: Path, root: Path, train: int) -> None:
    """Write `root/MNIST/raw/*-ubyte` with `train` training images: those of `source`, again and
    again; the test half is a copy.
    """
    raw, made = source / "MNIST" / "raw", root / "MNIST" / "raw"
    made.mkdir(parents=True, exist_ok=True)
    for name, offset, size in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
        content = (raw / f"train-{name}-ubyte").read_bytes()
        rows = memoryview(content)[offset:]
        with (made / f"train-{name}-ubyte").open("wb") as file:
            file.write(content[:4] + struct.pack(">I", train) + content[8:offset])
            for start in range(0, train * size, len(rows)):
                file.write(rows[: train * size - start])
        shutil.copyfile(raw / f"t10k-{name}-ubyte", made / f"t10k-{name}-ubyte")
