"""The test images that most models get wrong."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from mnist_hydra.cli import entry
from mnist_hydra.config import DataConfig
from mnist_hydra.data.load import Split, load_dataset
from mnist_hydra.metrics import OF_CLASS
from mnist_hydra.report import read
from mnist_hydra.report.results import TrialRecord
from mnist_hydra.report.statistics import means_by_name
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.tracker import Tracker

MOST = 24


@dataclass(frozen=True)
class HardImage:
    """A test image and how the models took it."""

    index: int
    pixels: NDArray[np.uint8]
    """uint8 [H, W], light on dark."""
    label: int
    taken_for: int
    """The class that most of them took it for."""
    wrong: int
    """How many models got it wrong."""
    asked: int
    """How many models there are."""

    @property
    def uri(self) -> str:
        """Its pixels, dark on white, as text for a page."""
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(255 - self.pixels).save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def on_one_data_set(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those of records that were measured on the data of the first one.

    Other data has other images under the same numbers, and other classes under the same names.
    """
    return [one for one in records if one.tags.get(tag.DATA) == records[0].tags.get(tag.DATA)]


def hard_images(
    tracker: Tracker, records: Sequence[TrialRecord], cache_dir: Path
) -> list[HardImage]:
    """The images that the most trials get wrong; none where the test set is not on this machine.

    Args:
        records: of trials on one data set that finished, the best first.
        cache_dir: where test images are looked for.
    """
    by_run = {record.run_id: record for record in records[: read.MAX_MISTAKES]}
    mistakes = read.mistakes(tracker, by_run)
    counts = hardest(mistakes)
    test = test_set(tracker, by_run[next(iter(mistakes))], cache_dir) if counts else None
    if test is None:
        return []
    return [
        HardImage(
            index,
            np.asarray(test.images[index, 0]),
            int(test.labels[index]),
            taken_for.most_common(1)[0][0],
            taken_for.total(),
            len(mistakes),
        )
        for index, taken_for in counts.items()
    ]


def hardest(mistakes: Mapping[str, Mapping[int, int]]) -> dict[int, Counter[int]]:
    """What the images that most models get wrong are taken for; the hardest first.

    They are at most 24, each mistaken by more than one model where there are several.

    Args:
        mistakes: of each run the indices of misclassified images and their predicted classes.
    """
    by_image: dict[int, Counter[int]] = {}
    for wrong in mistakes.values():
        for index, taken_for in wrong.items():
            by_image.setdefault(index, Counter())[taken_for] += 1
    least = min(2, len(mistakes))
    found = [(index, counts) for index, counts in by_image.items() if counts.total() >= least]
    return dict(sorted(found, key=lambda image: (-image[1].total(), image[0]))[:MOST])


def hardest_classes(records: Sequence[TrialRecord]) -> str:
    """Which three classes trials on one data set miss most, in a sentence; empty where nothing is
    known.
    """
    every = [metric for record in records for metric in record.metrics.items()]
    missed = means_by_name(
        (key.removeprefix(OF_CLASS), 1 - share) for key, share in every if key.startswith(OF_CLASS)
    )
    worst = sorted(missed, key=lambda name: -missed[name])[:3]
    told = [f"{name} ({100 * missed[name]:.2f} % of its test images)" for name in worst]
    if not told:
        return ""
    return f"The classes that are missed most, as the mean over the trials: {', '.join(told)}."


def test_set(tracker: Tracker, record: TrialRecord, cache_dir: Path) -> Split | None:
    """The test set that a trial was measured on.

    `None` where it is not on this machine, or is not the same; nothing is fetched.

    Args:
        cache_dir: where it is looked for, after the folder that the trial had it from.
    """
    try:
        config: Any = OmegaConf.create(tracker.read_text(record.run_id, "config.yaml"))
        data = replace(entry.group_of(config, "data", DataConfig), offline=True)
        found = load_dataset(data, cache_dir)
    except Exception:  # whatever a store raises, and a file that is none of ours
        return None
    return found.test if found.sha256 == record.tags.get(tag.DATA, found.sha256) else None
