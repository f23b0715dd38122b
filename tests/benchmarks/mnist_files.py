"""Writes a small data set in MNIST's format that a network can learn, for runs of a few seconds."""

from __future__ import annotations

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
