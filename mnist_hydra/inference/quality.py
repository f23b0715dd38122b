"""How good predictions are, with what chance leaves open; pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 15


@dataclass(frozen=True)
class Share:
    """How many of how many were right."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """0 to 1."""
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval by Wilson's score (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
        from scipy.stats import binomtest  # type: ignore[import-untyped]

        low, high = binomtest(self.right, self.of).proportion_ci(0.95, method="wilson")
        return float(low), float(high)


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence."""

    count: int
    confidence: float
    accuracy: float


def accuracy(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Share:
    """Of probabilities [N, classes] and labels [N], N at least 1."""
    return Share(int((probabilities.argmax(1) == labels).sum()), len(labels))


def by_class(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> dict[int, Share]:
    """The accuracy on the images of each class that there is."""
    return {
        int(c): accuracy(probabilities[labels == c], labels[labels == c]) for c in np.unique(labels)
    }


def calibration(
    probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]
) -> tuple[float, list[Bin]]:
    """The expected calibration error, and the bins that it is of: those that are not empty.

    It is the mean over predictions of |accuracy - confidence| in 15 bins of equal width (Guo et
    al., ICML 2017).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = [
        Bin(int(at.sum()), float(confidence[at].mean()), float(right[at].mean()))
        for number in range(BINS)
        if (at := numbers == number).any()
    ]
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(labels)
    return error, bins


def loss(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Mean negative log-likelihood."""
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, 1e-30)).mean())
