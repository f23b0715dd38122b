"""The command `python -m mnist_hydra.evaluate`: how good a model is, with its intervals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.config import DataConfig, resolved
from mnist_hydra.errors import UserError, wrong_value
from mnist_hydra.inference import quality
from mnist_hydra.typed import read_settings


def evaluate(cfg: DictConfig, name: str | None) -> int:
    """Print accuracy, accuracy on each class, and calibration on a split; returns 0.

    Raises:
        UserError: no such model or split, or data of another size.
    """
    if cfg.split not in ("test", "val"):
        raise wrong_value("split", cfg.split, "test or val")
    place = entry.place_of(cfg)
    raw = resolved(cfg).get("data")
    if not isinstance(raw, dict):
        raise wrong_value("data", raw, "an entry of the group conf/data")
    data = read_settings(DataConfig, raw, "data.")
    if cfg.split == "val" and data.val_size == 0:
        raise UserError("split=val, and data.val_size=0; right: data.val_size as the run had it")
    from mnist_hydra.data.load import load_dataset
    from mnist_hydra.inference.exported import load_model

    model = load_model(name, place)
    dataset = load_dataset(data, Path(place.output_dir).absolute() / "data")
    split = dataset.test if cfg.split == "test" else dataset.val
    assert split is not None
    images, labels = split.images[split.index, 0], split.labels[split.index].astype(np.int64)
    if images.shape[1] != model.side:
        raise UserError(
            f"model={name} takes {model.side} pixels a side, data={data.name} has "
            f"{images.shape[1]}; right: the data that it was trained on"
        )
    probabilities = model(images)
    total = quality.accuracy(probabilities, labels)
    print(f"{name} on {total.of} {cfg.split} images of {data.name}")
    print(f"accuracy {_told(total)} (95 %, Wilson)")
    print(f"loss {quality.loss(probabilities, labels):.4f}\n\nclass      n  accuracy")
    for number, share in quality.by_class(probabilities, labels).items():
        print(f"{number:5} {share.of:6}  {_told(share)}")
    error, bins = quality.calibration(probabilities, labels)
    print(f"\ncalibration error {error:.4f} (ECE, {quality.BINS} bins of confidence)")
    print("     n  confidence  accuracy")
    for found in bins:
        print(f"{found.count:6}  {found.confidence:10.3f}  {found.accuracy:8.3f}")
    return 0


def _told(share: quality.Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.2f} %, {100 * low:.2f} to {100 * high:.2f}"


if __name__ == "__main__":
    name, sys.argv[1:] = entry.take_value(sys.argv[1:], "model")
    entry.start("evaluate", lambda cfg: evaluate(cfg, name))
