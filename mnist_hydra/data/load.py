"""Loads MNIST-format data as memory-mapped arrays and splits it into train, val and test.

Every file is checked before it is used, images are never copied, and no test image is ever in the
training or validation split.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnist_hydra.config import DataConfig
from mnist_hydra.data import idx
from mnist_hydra.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Some rows of images and labels, which all processes of a machine share."""

    images: npt.NDArray[np.uint8]
    """uint8 [M, 1, 28, 28], 0 to 255; read-only, mapped from the file."""
    labels: npt.NDArray[np.uint8]
    """uint8 [M], 0 to 9; read-only, mapped from the file."""
    index: npt.NDArray[np.int64]
    """int64 [n]: the rows of `images` and `labels` that belong to this split, in order."""

    def __len__(self) -> int:
        return len(self.index)

    def release(self) -> None:
        """Free the memory of the mapped images; they are read again on use."""
        mapped: Any = self.images
        while isinstance(mapped, np.ndarray):
            mapped = mapped.base
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and what a run records about them."""

    train: Split
    val: Split | None
    test: Split
    sha256: str
    """One hash (hex) of the four files' hashes."""
    source: str
    """Where the files were found, for people."""


def inputs(config: DataConfig, dataset: Dataset) -> list[dict[str, str]]:
    """The splits as a run records them: `name`, `digest`, `source`, `profile`, `context`.

    A digest follows from the files and, except for the test set, from how they were split: where
    two are equal, so are the images.
    """
    how = f"{config.val_size}, {config.split_seed}, {config.limit}"
    source = json.dumps({"uri": dataset.source, "sha256": dataset.sha256})
    told = []
    for name, context, split, chosen in (
        ("train", "training", dataset.train, how),
        ("val", "validation", dataset.val, how),
        ("test", "testing", dataset.test, ""),
    ):
        if split is not None:
            digest = hashlib.sha256(f"{dataset.sha256} {name} {chosen}".encode()).hexdigest()[:16]
            about = {"name": f"{config.dataset} {name}, {len(split):,} images", "digest": digest}
            profile = json.dumps({"num_rows": len(split)})
            told.append(about | {"source": source, "profile": profile, "context": context})
    return told


def load_dataset(config: DataConfig, cache_dir: Path) -> Dataset:
    """Load the data that `config` names: from `data.root`, else the cache, filled if it is empty.

    The cache is `cache_dir/<dataset>/raw`, torchvision's layout. Nothing is written where
    `data.root` or the cache holds the files unpacked.

    Args:
        config: the `data` group; `val_size` images are held out of the training set, and of the
            rest the first `limit` are kept.
        cache_dir: where the cache is, or is made.

    Raises:
        UserError: data missing or damaged, nothing can be fetched or `data.offline` forbids it,
            `val_size` or `limit` out of range.
    """
    cache = cache_dir.expanduser().absolute() / config.dataset / "raw"
    try:
        raw, source = _find(config, cache)
        try:
            paths, digests = _verify(raw, config, cache)
        except UserError as error:
            mend = "put a good copy there, or leave data.root= out"
            if config.sha256 is not None:
                mend += ", or data.sha256=null for files of your own"
            if raw == cache:
                mend = f"delete {cache}, and it is fetched anew"
            raise UserError(f"{error}; {mend}") from error
    except OSError as error:
        raise UserError(
            f"the data cache {cache} cannot be used ({error}): name "
            "another folder with output_dir=, or make it writable"
        ) from error
    images, labels = _map_pair(*paths[:2])
    train, val = split_rows(labels, config.val_size, config.split_seed, config.limit)
    test_images, test_labels = _map_pair(*paths[2:])
    return Dataset(
        train=Split(images, labels, train),
        val=Split(images, labels, val) if len(val) else None,
        test=Split(test_images, test_labels, np.arange(len(test_labels))),
        sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
        source=source,
    )


def split_rows(
    labels: npt.NDArray[np.uint8], val_size: int, split_seed: int, limit: int | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Choose the rows to train on and the rows to hold out, each in ascending order.

    The hold-out has the classes' proportions, to within one image a class. It depends on `labels`,
    `val_size` and `split_seed` alone: NumPy promises never to change `RandomState`'s numbers.

    Args:
        labels: uint8 [N], 0 to 9.
        val_size: how many images are held out, 0 to N - 1.
        split_seed: which ones, 0 or more.
        limit: how many of the others are kept, the first ones; `None` for all.

    Raises:
        UserError: `val_size` or `limit` out of range.
    """
    count = len(labels)
    if not 0 <= val_size < count:
        raise UserError(
            f"data.val_size={val_size} does not leave a training image: there are {count:,}, so "
            f"give data.val_size= from 0 to {count - 1}"
        )
    if limit is not None and not 1 <= limit <= count - val_size:
        raise UserError(
            f"data.limit={limit} is out of range: there are {count - val_size:,} training images, "
            f"so give data.limit= from 1 to {count - val_size}, or null for all"
        )
    shares = np.bincount(labels, minlength=10) * val_size
    quota = shares // count
    # The images left over by rounding down go to the classes that lost most by it.
    quota[np.argsort(-(shares % count), kind="stable")[: val_size - quota.sum()]] += 1
    generator = np.random.MT19937(np.random.SeedSequence(split_seed))
    shuffled = np.random.RandomState(generator).permutation(count)
    held_out = np.zeros(count, dtype=bool)
    for label, size in enumerate(quota):
        held_out[shuffled[labels[shuffled] == label][:size]] = True
    return np.flatnonzero(~held_out)[:limit], np.flatnonzero(held_out)


def _find(config: DataConfig, cache: Path) -> tuple[Path, str]:
    """The folder of the four files, and how it was found."""
    places = {"cache": cache}
    if config.root is not None:
        given = Path(config.root).expanduser().absolute() / config.dataset / "raw"
        places = {"data.root": given} | places
    gone: list[str] = []
    for kind, folder in places.items():
        missing = idx.first_missing(folder)
        if not missing:
            return folder, f"{kind}: {folder}"
        gone.append(str(folder / missing))
        if folder is not cache:
            log.warning("data.root=%s: there is no %s; looking elsewhere", config.root, gone[-1])
    if config.offline:
        raise UserError(
            f"data.offline=true, and there is no {', and no '.join(gone)}: name a folder that "
            f"holds {config.dataset}/raw/*-ubyte with data.root=, or run once with "
            "data.offline=false"
        )
    from mnist_hydra.data.fetch import fetch_once

    return cache, fetch_once(config, cache) or f"cache: {cache}"


def _verify(raw: Path, config: DataConfig, cache: Path) -> tuple[list[Path], list[str]]:
    """Check the four files in `raw`; what is gzipped there is unpacked beside the cache.

    Returns:
        The paths of the uncompressed files and their SHA-256 (hex), in the order of `idx.FILES`.
    """
    known = config.sha256 or idx.read_sums(raw)
    paths, digests = [], []
    for name in idx.FILES:
        path = raw / name
        if not path.is_file():
            packed = raw / f"{name}.gz"
            digest = idx.check_hash(packed, known.get(name))
            path = cache.parent / "unpacked" / digest[:16] / name
            if not path.is_file() or idx.sha256(path) != digest:
                idx.unpack(packed, path)
        digests.append(idx.check_hash(path, known.get(name)))
        idx.check_structure(path)
        paths.append(path)
    return paths, digests


def _map_pair(
    image_file: Path, label_file: Path
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Map images, uint8 [N, 1, 28, 28], and their labels, uint8 [N]."""
    images = np.memmap(image_file, np.uint8, mode="r", offset=idx.IMAGES_OFFSET)
    labels = np.memmap(label_file, np.uint8, mode="r", offset=idx.LABELS_OFFSET)
    if len(images) != len(labels) * 784:
        raise UserError(
            f"{image_file} holds {len(images) // 784:,} images, but {label_file} {len(labels):,} "
            "labels: they are not of the same data set; name another folder with data.root="
        )
    return images.reshape(-1, 1, 28, 28), labels
