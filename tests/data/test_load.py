"""Data that is found, mapped and split into train, val and test."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mnist_hydra.config import DataConfig
from mnist_hydra.data import idx
from mnist_hydra.data.load import load_dataset, split_rows
from mnist_hydra.errors import UserError
from tests.data.small import (
    FASHION,
    TEST_IMAGES,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    group_entry,
    mini,
    tree,
    zip_up,
)
from tests.imports import imported_by

# What is loaded


def test_the_published_data_is_60000_and_10000_images(mnist: Path, tmp_path: Path) -> None:
    config = group_entry("mnist", f"data.root={mnist}")
    dataset = load_dataset(config, tmp_path / "cache")
    assert (len(dataset.train), len(dataset.test), dataset.val) == (60_000, 10_000, None)
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert dataset.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert dataset.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    pixels = np.asarray(dataset.train.images) / np.float32(255)
    assert pixels.mean() == pytest.approx(config.mean, abs=5e-5)
    assert pixels.std() == pytest.approx(config.std, abs=5e-5)


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
    assert held > 0.9 * train.images.nbytes  # where memory is short the system takes some back
    train.release()
    assert resident() < held / 10  # a page or so may be mapped again at once
    assert int(train.images.sum(dtype=np.int64)) == before


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist"])
def test_every_entry_of_the_group_loads_from_its_own_folder(name: str, tmp_path: Path) -> None:
    config = group_entry(name, f"data.root={tmp_path}", "data.sha256=null")
    mini(tmp_path / config.dataset / "raw")
    dataset = load_dataset(config, tmp_path / "cache")
    assert config.name == name
    assert len(dataset.train) == 60


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
    assert not {"torch", "torchvision"} & imported_by("import mnist_hydra.data.load")


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


def test_the_file_that_is_missing_is_the_one_that_is_named(tmp_path: Path) -> None:
    mini(tmp_path / "mine" / "FashionMNIST" / "raw")
    missing = tmp_path / "mine" / "FashionMNIST" / "raw" / TEST_IMAGES
    missing.unlink()
    config = replace(FASHION, offline=True, root=str(tmp_path / "mine"))
    there = tmp_path / "cache" / "FashionMNIST" / "raw" / TRAIN_IMAGES
    with pytest.raises(UserError, match=f"there is no {missing}, and no {there}: name a folder"):
        load_dataset(config, tmp_path / "cache")


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
