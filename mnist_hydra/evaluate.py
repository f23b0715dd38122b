"""The command `python -m mnist_hydra.evaluate`: how good a model is, with its intervals."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from mnist_hydra import exported
from mnist_hydra.cli import entry
from mnist_hydra.config import DataConfig
from mnist_hydra.errors import UserError
from mnist_hydra.typed import Pattern, check_setting

BINS = 15
SplitName = Annotated[str, Pattern("test|val", "test or val")]


def evaluate(cfg: DictConfig, name: str | None) -> int:
    """Print accuracy, accuracy on each class, and calibration on a split; returns 0.

    Args:
        name: what the user calls the model.

    Raises:
        UserError: no such model or split, or data of another size or of more classes, or whose
            hold-out is not the model's.
    """
    split = check_setting("split", cfg.split, SplitName)
    data = entry.group_of(cfg, "data", DataConfig)
    if split == "val" and data.val_size == 0:
        raise UserError("split=val, and data.val_size=0; right: data.val_size as the run had it")
    place = entry.place_of(cfg)
    model = exported.find_model(name, place)
    images, labels = exported.images_of(data, split, model, place.cache_dir)
    probabilities = model(images)
    classes = probabilities.shape[1]
    if labels.max() >= classes:
        raise UserError(
            f"model={name} tells {classes} classes apart, data={data.name} has {labels.max() + 1}; "
            "right: the data that it was trained on"
        )
    total = accuracy(probabilities, labels)
    print(f"{name} on {total.n} {split} images of {data.name}")
    print(f"accuracy {_told(total)} (95 %, Wilson)")
    print(f"loss {loss(probabilities, labels):.4f}\n\nclass      n  accuracy")
    for number, share in by_class(probabilities, labels).items():
        print(f"{number:5} {share.n:6}  {_told(share)}")
    error, bins = calibration(probabilities, labels)
    print(f"\ncalibration error {error:.4f} (ECE, {BINS} bins of confidence)")
    print("     n  confidence  accuracy")
    for count, confidence, right in bins:
        print(f"{count:6}  {confidence:10.3f}  {right:8.3f}")
    return 0


def _told(share: Any) -> str:
    """A share and its interval by Wilson's score (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    low, high = share.proportion_ci(0.95, method="wilson")
    return f"{100 * share.statistic:.2f} %, {100 * low:.2f} to {100 * high:.2f}"


def accuracy(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Any:
    """Of probabilities [N, classes] and labels [N], N at least 1: SciPy's `BinomTestResult`."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]

    return binomtest(int((probabilities.argmax(1) == labels).sum()), len(labels))


def by_class(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> dict[int, Any]:
    """The accuracy on the images of each class that there is, as `accuracy` has it."""
    return {
        int(c): accuracy(probabilities[labels == c], labels[labels == c]) for c in np.unique(labels)
    }


def calibration(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[float, list[tuple[int, float, float]]]:
    """The expected calibration error, and the bins that it is of: those that are not empty.

    It is the mean over predictions of |accuracy - confidence| in 15 bins of equal width (Guo et
    al., ICML 2017).

    Returns:
        The error, and of each bin how many predictions it has, their mean confidence and their
        accuracy.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums = (np.bincount(numbers, of, BINS).tolist() for of in (None, confidence, right))
    bins = [(int(n), sure / n, correct / n) for n, sure, correct in zip(*sums) if n]
    return sum(n * abs(correct - sure) for n, sure, correct in bins) / len(labels), bins


def loss(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Mean negative log-likelihood."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, 1e-30)).mean())


if __name__ == "__main__":
    name, sys.argv[1:] = entry.take_value(sys.argv[1:], "model")
    entry.start("evaluate", lambda cfg: evaluate(cfg, name))
