"""What a report asks of a sweep's trials: which setting wins, and by how much; pure functions."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import Row
from mnist_hydra.report.statistics import (
    MAX_VALUES,
    Difference,
    Scores,
    correct,
    difference,
    effect,
    in_order,
    number,
)
from mnist_hydra.report.study import importances
from mnist_hydra.report.wording import short

MAX_PANELS = 6
MAX_CELLS = 12
"""Numbers that stand evenly beside each other; more of them lie by their size."""


@dataclass(frozen=True)
class Layout:
    """Which axes a picture of two dimensions shows."""

    varied: tuple[str, ...]
    """The axes with at least two values, as they were given."""
    values: Mapping[str, tuple[str, ...]]
    """Of each of them, in order."""
    rows: str | None
    """The vertical axis; `None` where fewer than two axes are varied."""
    columns: str | None
    panels: str | None
    """One panel for each of its values; `None` for a single panel."""
    averaged: tuple[str, ...]
    """What is averaged over."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """Of each axis of which values lie by their size, not evenly: `linear` or `log`."""


@dataclass(frozen=True)
class Contrast:
    """Two values of one axis, all else being equal."""

    axis: str
    within: str | None
    """The value of the panels' axis that it is confined to; `None` for all of them."""
    better: str
    worse: str
    difference: Difference
    """Never below 0, in the objective's own unit; for losses too it is what `better` gains."""


@dataclass(frozen=True)
class Answers:
    """What was asked of the trials, and what came of it."""

    importance: Mapping[str, float]
    """Of each axis its share of the differences between trials; empty where that is not known."""
    layout: Layout
    contrasts: Mapping[str, Sequence[Contrast]]
    """Of each axis its best value against the others."""
    leads: Sequence[Difference]
    """What the first configuration gains over each other one, in their order."""


def layout(
    axes: Sequence[str],
    scores: Scores,
    importance: Mapping[str, float],
    drawn: Mapping[str, bool],
) -> Layout:
    """Choose what is shown against what: the two axes that matter most, another one as panels.

    Panels are of an axis of names (as `model`) where there is one, with at most six values.

    Args:
        axes: of the configurations.
        importance: share of each axis, where it is known.
        drawn: the axes that a search took its numbers from, and whether by ratio.
    """
    values = {axis: tuple(in_order([p[place] for p in scores])) for place, axis in enumerate(axes)}
    varied = tuple(axis for axis in axes if len(values[axis]) > 1)
    by_weight = sorted(varied, key=lambda axis: -importance.get(axis, 0.0))
    panels = None
    if len(varied) > 2:
        few = [axis for axis in by_weight if len(values[axis]) <= MAX_PANELS]
        named = [axis for axis in few if any(number(value) is None for value in values[axis])]
        panels = next(iter(named), None) or next((a for a in few if a in by_weight[2:]), None)
    rest = [axis for axis in by_weight if axis != panels]
    pair = sorted(rest[:2], key=varied.index) if len(rest) > 1 else [None, None]
    averaged = tuple(rest[2:]) if len(rest) > 1 else ()
    scales = {}
    for axis in varied:
        numbers = [found for value in values[axis] if (found := number(value)) is not None]
        many = axis in drawn or len(numbers) > MAX_CELLS
        if many and len(numbers) == len(values[axis]):
            scales[axis] = "log" if drawn.get(axis) and numbers[0] > 0 else "linear"
    return Layout(varied, values, pair[0], pair[1], panels, averaged, scales)


def ask(findings: Findings) -> Answers:
    """All statistics of the report."""
    importance = importances(findings)
    chosen = layout(findings.axes, findings.scores(), importance, findings.drawn)
    return Answers(importance, chosen, contrasts(findings, chosen), leads(findings))


def contrasts(findings: Findings, chosen: Layout) -> dict[str, list[Contrast]]:
    """For each axis the comparisons of its values, overall and within each panel.

    All pairs of one axis's values are one family for Holm's correction, and all those within the
    panels another one; given are the pairs of the best value with each other one, the nearest
    first.
    """
    scores = gains(findings)
    panels: dict[str | None, Scores] = {}
    if chosen.panels is not None:
        at = findings.axes.index(chosen.panels)
        for value in chosen.values[chosen.panels]:
            panels[value] = {point: s for point, s in scores.items() if point[at] == value}
    found: dict[str, list[Contrast]] = {}
    for axis in chosen.varied:
        values, place = chosen.values[axis], findings.axes.index(axis)
        if axis not in chosen.scales and len(values) <= MAX_VALUES:
            found[axis] = _family(axis, values, place, {None: scores})
            if axis != chosen.panels:
                found[axis] += _family(axis, values, place, panels)
    return found


def _family(
    axis: str, values: Sequence[str], place: int, parts: Mapping[str | None, Scores]
) -> list[Contrast]:
    """Within each part the best value against each other one, corrected together.

    Args:
        place: of the axis in a configuration.
        parts: what is gained by each configuration, by what it is confined to.
    """
    pairs = [(part, *pair) for part in parts for pair in itertools.combinations(values, 2)]
    tested = correct([effect(parts[part], place, one, other) for part, one, other in pairs])
    both_ways: dict[tuple[str | None, str, str], Difference] = {}
    for (part, one, other), gap in zip(pairs, tested, strict=True):
        both_ways[part, one, other] = gap
        both_ways[part, other, one] = replace(gap, mean=-gap.mean)
    found = []
    for part in parts:
        beaten = {
            value: sum(both_ways[part, value, other].mean > 0 for other in values if other != value)
            for value in values
        }
        best = max(values, key=lambda value: beaten[value])
        against = [
            Contrast(axis, part, best, other, both_ways[part, best, other])
            for other in values
            if other != best and both_ways[part, best, other].n
        ]
        found += sorted(against, key=lambda contrast: contrast.difference.mean)
    return found


def leads(findings: Findings) -> list[Difference]:
    """The first configuration against each other one: one family for Holm's correction."""
    scores = gains(findings)
    first, *others = findings.results.rows
    return correct([difference(scores[first.values], scores[row.values]) for row in others])


def gains(findings: Findings) -> Scores:
    """The objective by seed of every configuration, losses negative: more is always better."""
    sign = -1.0 if findings.results.minimize else 1.0
    return {
        point: {seed: sign * score for seed, score in seeds.items()}
        for point, seeds in findings.scores().items()
    }


def costs(
    findings: Findings, chosen: Layout, group: str | None
) -> dict[str, list[tuple[float, float, str]]]:
    """What the configurations cost: each kind of cost that differs to (cost, objective, group).

    Args:
        group: the axis whose values are the groups, in its order; `None` for one group.
    """
    rows: Sequence[Row] = findings.results.rows
    groups = {row.values: "" for row in rows}
    if group is not None:
        place, order = findings.axes.index(group), chosen.values[group]
        rows = sorted(rows, key=lambda row: order.index(row.values[place]))
        groups = {row.values: f"{group}={short(row.values[place])}" for row in rows}
    found: dict[str, list[tuple[float, float, str]]] = {"parameters": [], "seconds of training": []}
    for row in rows:
        sizes = [record.parameters for record in row.finished if record.parameters is not None]
        times = [record.seconds for record in row.finished if record.seconds is not None]
        for kind, numbers in (("parameters", sizes), ("seconds of training", times)):
            if numbers:
                point = (statistics.fmean(numbers), row.score.mean, groups[row.values])
                found[kind].append(point)
    differ = {kind: len({cost for cost, _, _ in points}) > 1 for kind, points in found.items()}
    return {kind: points for kind, points in found.items() if differ[kind]}
