"""The three published experiments, and which of a sweep's trials follow one of their recipes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from mnist_hydra.report.read import Findings
from mnist_hydra.report.statistics import Summary, number, summary

COMMON = {
    "data.name": "mnist",
    "optimizer.name": "sgd",
    "batch_size": "512",
    "epochs": "15",
    "momentum": "0.95",
    "weight_decay": "0.0005",
    "data.val_size": "0",
    "data.limit": "null",
}
ONECYCLE = {
    "scheduler.name": "onecycle",
    "scheduler.pct_start": "0.3",
    "scheduler.div_factor": "25",
    "scheduler.final_div_factor": "175",
    "lr": "0.15",
}
RECIPES: dict[str, dict[str, str]] = {
    "exp1": {
        **COMMON,
        "model.name": "model1",
        "dropout": "0",
        "aug.name": "none",
        "scheduler.name": "constant",
        "lr": "0.01",
    },
    "exp2": {**COMMON, **ONECYCLE, "model.name": "model2", "dropout": "0", "aug.name": "none"},
    "exp3": {**COMMON, **ONECYCLE, "model.name": "model3", "dropout": "0.04", "aug.name": "ssr"},
}


@dataclass(frozen=True)
class Beside:
    """A published result beside ours, accuracies on the test set (shares, 0 to 1)."""

    recipe: str
    published_last: float
    published_best: float
    last: Summary
    """Of our trials' last epochs."""
    best: Summary | None
    """Of their best epochs, selected on the test set, as published."""


def recipe_of(params: Mapping[str, str]) -> str | None:
    """The published recipe that a run's parameters are, but for the seed; `None` for none."""
    for name, recipe in RECIPES.items():
        if all(_same(params.get(key, ""), value) for key, value in recipe.items()):
            return name
    return None


def beside(findings: Findings) -> list[Beside]:
    """Each published result of which there is a finished trial, with ours."""
    ours: dict[str, list[Mapping[str, float]]] = {}
    for entry in findings.entries:
        recipe = recipe_of(entry.params)
        if recipe is not None and entry.record.counts and "test/acc_last" in entry.metrics:
            ours.setdefault(recipe, []).append(entry.metrics)
    curves = _curves() if ours else {}
    found = []
    for recipe in sorted(ours):
        best = [metrics["test/acc_best"] for metrics in ours[recipe] if "test/acc_best" in metrics]
        found.append(
            Beside(
                recipe,
                curves[recipe][-1],
                max(curves[recipe]),
                summary([metrics["test/acc_last"] for metrics in ours[recipe]]),
                summary(best) if best else None,
            )
        )
    return found


def _curves() -> dict[str, list[float]]:
    """Test accuracy (share) of each published experiment by epoch."""
    text = (files("mnist_hydra.report") / "published.csv").read_text()
    curves: dict[str, list[float]] = {}
    for row in csv.DictReader(text.splitlines()):
        correct = int(row["test_correct_of_10000"])
        curves.setdefault(row["experiment"], []).append(correct / 10_000)
    return curves


def _same(one: str, other: str) -> bool:
    return one == other or (number(one) is not None and number(one) == number(other))
