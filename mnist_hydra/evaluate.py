"""The command `python -m mnist_hydra.evaluate`: how good a model is, with its intervals."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.config import DataConfig
from mnist_hydra.errors import UserError, wrong_value
from mnist_hydra.inference import exported, quality


def evaluate(cfg: DictConfig, name: str | None) -> int:
    """Print accuracy, accuracy on each class, and calibration on a split; returns 0.

    Args:
        name: what the user calls the model.

    Raises:
        UserError: no such model or split, or data of another size or of more classes, or whose
            hold-out is not the model's.
    """
    if cfg.split not in ("test", "val"):
        raise wrong_value("split", cfg.split, "test or val")
    data = entry.group_of(cfg, "data", DataConfig)
    if cfg.split == "val" and data.val_size == 0:
        raise UserError("split=val, and data.val_size=0; right: data.val_size as the run had it")
    place = entry.place_of(cfg)
    model = exported.find_model(name, place)
    images, labels = exported.images_of(data, cfg.split, model, place.cache_dir)
    probabilities = model(images)
    classes = probabilities.shape[1]
    if labels.max() >= classes:
        raise UserError(
            f"model={name} tells {classes} classes apart, data={data.name} has {labels.max() + 1}; "
            "right: the data that it was trained on"
        )
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
