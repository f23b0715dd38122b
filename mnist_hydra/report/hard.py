"""The test images that most models get wrong."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import load_dataset
from mnist_hydra.errors import UserError
from mnist_hydra.report.read import Entry
from mnist_hydra.tracking.provenance import DATA_TAG

MOST = 24


@dataclass(frozen=True)
class HardImage:
    """A test image and how the models took it."""

    index: int
    wrong: int
    """How many models got it wrong."""
    taken_for: int
    """The class that most of them took it for."""


def hardest(mistakes: Mapping[str, Mapping[int, int]]) -> list[HardImage]:
    """The images that the most models get wrong, at most 24 and each by more than one model.

    Args:
        mistakes: of each run the indices of misclassified images and their predicted classes.
    """
    by_image: dict[int, Counter[int]] = {}
    for wrong in mistakes.values():
        for index, taken_for in wrong.items():
            by_image.setdefault(index, Counter())[taken_for] += 1
    found = [
        HardImage(index, counts.total(), counts.most_common(1)[0][0])
        for index, counts in by_image.items()
        if counts.total() > 1 or len(mistakes) == 1
    ]
    return sorted(found, key=lambda image: (-image.wrong, image.index))[:MOST]


def class_errors(entries: Sequence[Entry]) -> dict[str, float]:
    """The mean share of each class's test images that the trials get wrong, the worst first."""
    prefix = "test/acc_class/"
    by_class: dict[str, list[float]] = {}
    for entry in entries:
        for key, value in entry.metrics.items():
            if entry.record.counts and key.startswith(prefix):
                by_class.setdefault(key.removeprefix(prefix), []).append(1 - value)
    means = {name: sum(values) / len(values) for name, values in by_class.items()}
    return dict(sorted(means.items(), key=lambda pair: -pair[1]))


def test_images(
    entry: Entry, cache_dir: Path, root: str | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]] | None:
    """The test set that a trial was measured on: uint8 [N, H, W] and labels [N].

    `None` where it is not on this machine, or is not the same; nothing is fetched.

    Args:
        cache_dir: where it is looked for.
        root: the folder of the user's own where it is looked for first, as the trial did.
    """
    params = entry.params
    try:
        name: Any = params["data.dataset"]  # it is checked when it is looked for
        config = DataConfig(
            params["data.name"],
            name,
            float(params["data.mean"]),
            float(params["data.std"]),
            root=root,
            offline=True,
        )
        found = load_dataset(config, cache_dir)
    except (UserError, KeyError, ValueError):
        return None
    if found.sha256 != entry.tags.get(DATA_TAG, found.sha256):
        return None
    return np.asarray(found.test.images[:, 0]), np.asarray(found.test.labels)


def png_uri(image: NDArray[np.uint8]) -> str:
    """An image (uint8 [H, W]), dark on white, as text for a page."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(255 - np.asarray(image)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
