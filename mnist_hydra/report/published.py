"""The three published experiments, and which of a sweep's trials follow one of their recipes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml  # type: ignore[import-untyped]

from mnist_hydra.report.page import Table
from mnist_hydra.report.read import Findings
from mnist_hydra.report.statistics import number, summary
from mnist_hydra.report.wording import mean_with_interval, value


def recipe_of(params: Mapping[str, str]) -> str | None:
    """The published recipe that a run's parameters are, but for the seed; `None` for none."""
    for name, recipe in _recipes().items():
        if all(_same(params.get(key, ""), value) for key, value in recipe.items()):
            return name
    return None


def beside(findings: Findings) -> Table | None:
    """Each published result of which there is a finished trial, with ours; `None` for none.

    Ours are the accuracies on the test set in the last epoch, and in the best, which is selected on
    the test set, as published.
    """
    ours: dict[str, list[Mapping[str, float]]] = {}
    for record in findings.records:
        recipe = recipe_of(record.params)
        if recipe is not None and record.counts and "test/acc_last" in record.metrics:
            ours.setdefault(recipe, []).append(record.metrics)
    if not ours:
        return None
    curves = _curves()
    rows = []
    for recipe, metrics in sorted(ours.items()):
        row = [recipe]
        for published, key in ((curves[recipe][-1], "last"), (max(curves[recipe]), "best")):
            here = [found[f"test/acc_{key}"] for found in metrics if f"test/acc_{key}" in found]
            reached = mean_with_interval("test/acc", summary(here)) if here else "-"
            row += [value("test/acc", published), reached]
        rows.append([*row, str(len(metrics))])
    header = ["recipe", "last epoch, published", "last epoch, here", "best epoch, published"]
    return Table([*header, "best epoch, here (selected on the test set)", "seeds"], rows)


@cache
def _recipes() -> dict[str, dict[str, str]]:
    """The settings of each published experiment, as a run's parameters."""
    text = (files("mnist_hydra.report") / "published.yaml").read_text()
    recipes: dict[str, dict[str, str]] = yaml.safe_load(text)
    return recipes


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
