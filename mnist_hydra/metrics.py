"""The metrics that a run records, by name: what measures them and what checks a choice agree."""

from __future__ import annotations

from collections.abc import Mapping

OF_CLASS = "test/acc_class/"
"""With a class's number behind it: the accuracy on its test images, recorded after the last epoch.
"""


def of_epoch(split: str) -> tuple[str, ...]:
    """What is recorded after each epoch.

    Args:
        split: the one that is measured each epoch, `val` or `test`.
    """
    # That accuracy first: MLflow's Compare opens on the first metric.
    measured = (f"{split}/acc", f"{split}/loss")
    return (*measured, "train/acc", "train/loss", "lr", "images_per_s", "epoch_s")


def at_end(split: str) -> tuple[str, ...]:
    """What is recorded once, after the last epoch, beside the accuracy on each class.

    Args:
        split: the one that is measured each epoch, `val` or `test`.
    """
    once = () if split == "test" else ("test/acc", "test/loss")
    return ("test/acc_last", "test/loss_last", *once, f"{split}/acc_best")


def is_minimized(metric: str) -> bool:
    """Whether less of a metric is better: of losses and of times."""
    name = metric.rpartition("/")[2]
    return "loss" in name or name == "epoch_s"


def is_finite(value: float) -> bool:
    """Whether a stored metric is finite; MLflow's SQL stores keep infinity as 1.797e308."""
    return abs(value) < 1e300


def objective_value(history: Mapping[int, float], at: str, minimize: bool) -> float | None:
    """A trial's objective from its metric by epoch; `None` if it has none or it is not finite.

    Args:
        at: `last` or `best` epoch.
    """
    finite = [value for value in history.values() if is_finite(value)]
    if not finite:
        return None
    if at == "best":
        return min(finite) if minimize else max(finite)
    last = history[max(history)]
    return last if is_finite(last) else None
