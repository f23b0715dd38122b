"""The three published experiments, and which of a sweep's trials follow one of their recipes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from mnist_hydra.report.page import Table
from mnist_hydra.report.read import Findings
from mnist_hydra.report.statistics import number, summary
from mnist_hydra.report.wording import mean_with_interval, value


def recipe_of(params: Mapping[str, str]) -> str | None:
    """The published recipe that a run's parameters are, but for the seed; `None` for none."""
    for name, experiment in _experiments().items():
        if all(_same(params.get(key, ""), text) for key, text in experiment["recipe"].items()):
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
    rows = []
    for recipe, metrics in sorted(ours.items()):
        row = [recipe]
        for epoch in ("last", "best"):
            here = [one[f"test/acc_{epoch}"] for one in metrics if f"test/acc_{epoch}" in one]
            reached = mean_with_interval("test/acc", summary(here)) if here else "-"
            row += [value("test/acc", _experiments()[recipe][epoch]), reached]
        rows.append([*row, str(len(metrics))])
    header = ["recipe", "last epoch, published", "last epoch, here", "best epoch, published"]
    return Table([*header, "best epoch, here (selected on the test set)", "seeds"], rows)


@cache
def _experiments() -> Mapping[str, Any]:
    """Of each published experiment `recipe`, and accuracies (share) in the `last`, `best` epoch."""
    content: Any = yaml.safe_load((files("mnist_hydra.report") / "published.yaml").read_text())
    return cast(Mapping[str, Any], content)


def _same(one: str, other: str) -> bool:
    return one == other or (number(one) is not None and number(one) == number(other))
