"""A file that is not what it should be is never read: its name and what to do are said."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mnist_hydra.config import DataConfig
from mnist_hydra.data import idx
from mnist_hydra.data.load import load_dataset
from mnist_hydra.errors import UserError
from tests.data.small import (
    FASHION,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    cut,
    flip,
    mini,
    zip_up,
)


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
    right = "leave data.root= out, or data.sha256=null for files of your own"
    assert str(error.value).endswith(right)


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
