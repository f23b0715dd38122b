"""Small data sets in MNIST's format, and how a file of one is packed or damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mnist_hydra.config import DataConfig
from mnist_hydra.data import idx

CONF = Path(__file__).parents[2] / "conf"
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES
FASHION = DataConfig("fashion_mnist", "FashionMNIST", mean=0.286, std=0.353)


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


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])
