"""What a report asks of a sweep's trials: which setting wins, and by how much; pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import SEED, Row
from mnist_hydra.report.statistics import (
    MAX_VALUES,
    Difference,
    Scores,
    Summary,
    correct,
    difference,
    effect,
    in_order,
    level_means,
    number,
)

MAX_PANELS = 6


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
class Lead:
    """The first configuration against another one."""

    row: Row
    """The other one."""
    difference: Difference
    """What the first gains."""


def layout(axes: Sequence[str], scores: Scores, importance: Mapping[str, float]) -> Layout:
    """Choose what is shown against what: the two axes that matter most, another one as panels.

    Panels are of an axis of names (as `model`) where there is one, with at most six values.

    Args:
        axes: of the configurations.
        importance: share of each axis, where it is known.
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
    return Layout(varied, values, pair[0], pair[1], panels, averaged)


def means(findings: Findings, axis: str) -> dict[str, Summary]:
    """The objective at each value of an axis, see `level_means`."""
    place = findings.axes.index(axis)
    scores = findings.scores()
    return level_means(scores, place, in_order([point[place] for point in scores]))


def contrasts(findings: Findings, chosen: Layout) -> dict[str, list[Contrast]]:
    """For each axis the comparisons of its values, overall and within each panel.

    All pairs of one axis's values are one family for Holm's correction, and all those within the
    panels another one; given are the pairs of the best value with each other one, the nearest
    first.
    """
    scores = findings.scores()
    sign = -1.0 if findings.minimize else 1.0
    found: dict[str, list[Contrast]] = {}
    for axis in chosen.varied:
        values = chosen.values[axis]
        if len(values) > MAX_VALUES:
            continue
        place = findings.axes.index(axis)
        parts: list[tuple[str | None, dict[int, str]]] = [(None, {})]
        if chosen.panels is not None and axis != chosen.panels:
            at = findings.axes.index(chosen.panels)
            parts += [(value, {at: value}) for value in chosen.values[chosen.panels]]
        tried = [
            (within, one, other, effect(scores, place, one, other, where))
            for within, where in parts
            for one, other in itertools.combinations(values, 2)
        ]
        overall = sum(within is None for within, *_ in tried)
        family = correct([entry[-1] for entry in tried[:overall]])
        family += correct([entry[-1] for entry in tried[overall:]])
        both_ways = {}
        for (within, one, other, _), gain in zip(tried, family, strict=True):
            both_ways[within, one, other] = _times(gain, sign)
            both_ways[within, other, one] = _times(gain, -sign)
        found[axis] = []
        for within, _ in parts:
            best = max(
                values,
                key=lambda value: sum(
                    both_ways[within, value, other].mean > 0 for other in values if other != value
                ),
            )
            against = [
                Contrast(axis, within, best, other, both_ways[within, best, other])
                for other in values
                if other != best and both_ways[within, best, other].n
            ]
            found[axis] += sorted(against, key=lambda contrast: contrast.difference.mean)
    return found


def leads(findings: Findings) -> list[Lead]:
    """The first configuration against each other one: one family for Holm's correction."""
    scores = findings.scores()
    first, *others = findings.results.rows
    sign = -1.0 if findings.minimize else 1.0
    gains = [difference(scores[first.values], scores[row.values]) for row in others]
    return [
        Lead(row, _times(gain, sign)) for row, gain in zip(others, correct(gains), strict=True)
    ]


def points_of(findings: Findings) -> tuple[list[str], list[tuple[str, ...]], list[float]]:
    """Names of the axes, the seed among them where it was swept; each trial's values; objectives.

    Only of trials that count.
    """
    names = [*findings.axes, *([SEED] if findings.results.over_seed else [])]
    seeds = findings.seed_of()
    points, objectives = [], []
    for row in findings.results.rows:
        for record in row.finished:
            more = (seeds[record.run_id],) if findings.results.over_seed else ()
            points.append((*row.values, *more))
            objectives.append(float(record.objective or 0.0))
    return names, points, objectives


def _times(gain: Difference, sign: float) -> Difference:
    return Difference(gain.n, sign * gain.mean, gain.half_width, gain.p, gain.corrected)
