"""What a report asks of a sweep's trials: which setting wins, and by how much; pure functions."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import Row
from mnist_hydra.report.statistics import (
    MAX_VALUES,
    Difference,
    Scores,
    Verdict,
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

    values: Mapping[str, tuple[str, ...]]
    """Of each axis with at least two, in order; the axes as they were given."""
    rows: str | None
    """The vertical axis; `None` where there are fewer than two axes."""
    columns: str | None
    panels: str | None
    """One panel for each of its values; `None` for a single panel."""
    averaged: tuple[str, ...]
    """What is averaged over."""
    scales: Mapping[str, str] = field(default_factory=dict)
    """Of each axis of which values lie by their size, not evenly: `linear` or `log`."""

    @property
    def group(self) -> str | None:
        """The axis of which each value has a colour of its own, if there is one."""
        few = (axis for axis, values in self.values.items() if len(values) <= MAX_PANELS)
        return self.panels or next(few, None)


@dataclass(frozen=True)
class Contrast:
    """Two values of one axis, all else being equal."""

    better: str
    worse: str
    difference: Difference
    """In the objective's own unit; for losses too it is what `better` gains."""

    @property
    def verdict(self) -> Verdict:
        """What it comes to. Where trials are missing the best value may be behind one of others."""
        mean, verdict = self.difference.mean, self.difference.verdict
        if mean < 0:
            return Verdict.BEHIND
        return Verdict.EVEN if mean == 0 and verdict != Verdict.IDENTICAL else verdict


Contrasts = Mapping[str, Mapping[str | None, Sequence[Contrast]]]
"""By axis, and by the value of the panels' axis that they are confined to; `None` for all."""


@dataclass(frozen=True)
class Answers:
    """What was asked of the trials, and what came of it."""

    importance: Mapping[str, float]
    """Of each axis its share of the differences between trials; empty where that is not known."""
    layout: Layout
    contrasts: Contrasts
    """Of each axis its best value against the others, the nearest first."""
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
    every = {axis: tuple(in_order([p[place] for p in scores])) for place, axis in enumerate(axes)}
    values = {axis: of_axis for axis, of_axis in every.items() if len(of_axis) > 1}
    by_weight = sorted(values, key=lambda axis: -importance.get(axis, 0.0))
    few = [axis for axis in by_weight if len(values[axis]) <= MAX_PANELS]
    named = [axis for axis in few if None in map(number, values[axis])]
    for_panels = [*named, *(axis for axis in few if axis in by_weight[2:])]
    panels = for_panels[0] if for_panels and len(values) > 2 else None
    rest = [axis for axis in by_weight if axis != panels]
    pair = sorted(rest[:2], key=axes.index) if len(rest) > 1 else [None, None]
    scales = {}
    for axis, of_axis in values.items():
        many = axis in drawn or len(of_axis) > MAX_CELLS
        if many and None not in map(number, of_axis):
            scales[axis] = "log" if drawn.get(axis) and float(of_axis[0]) > 0 else "linear"
    return Layout(values, pair[0], pair[1], panels, tuple(rest[2:]), scales)


def ask(findings: Findings) -> Answers:
    """All statistics of the report."""
    importance = importances(findings)
    chosen = layout(findings.results.axes, findings.scores(), importance, findings.drawn)
    return Answers(importance, chosen, contrasts(findings, chosen), leads(findings))


def contrasts(findings: Findings, chosen: Layout) -> Contrasts:
    """As `Answers.contrasts`.

    All pairs of one axis's values are one family for Holm's correction, and all those within the
    panels another one.
    """
    scores = gains(findings)
    panels: dict[str | None, Scores] = {}
    if chosen.panels is not None:
        at = findings.results.axes.index(chosen.panels)
        for value in chosen.values[chosen.panels]:
            panels[value] = {point: s for point, s in scores.items() if point[at] == value}
    found = {}
    for axis, values in chosen.values.items():
        place = findings.results.axes.index(axis)
        if axis not in chosen.scales and len(values) <= MAX_VALUES:
            found[axis] = _family(values, place, {None: scores})
            if axis != chosen.panels:
                found[axis] |= _family(values, place, panels)
    return found


def _family(
    values: Sequence[str], place: int, parts: Mapping[str | None, Scores]
) -> dict[str | None, list[Contrast]]:
    """Within each part the best value against each other one, corrected together.

    Args:
        values: of an axis.
        place: of the axis in a configuration.
        parts: what is gained by each configuration, by what it is confined to.
    """
    pairs = [(part, *pair) for part in parts for pair in itertools.combinations(values, 2)]
    tested = correct([effect(parts[part], place, one, other) for part, one, other in pairs])
    gaps = dict(zip(pairs, tested, strict=True))
    gaps |= {(part, b, a): gap.turned for (part, a, b), gap in gaps.items()}
    found: dict[str | None, list[Contrast]] = {}
    for part in parts:
        won = (pair for pair, gap in gaps.items() if pair[0] == part and gap.mean > 0)
        beaten = Counter(better for _, better, _ in won)
        best = max(values, key=lambda value: beaten[value])
        others = [(other, gaps[part, best, other]) for other in values if other != best]
        found[part] = [Contrast(best, other, gap) for other, gap in others if gap.n]
        found[part].sort(key=lambda contrast: contrast.difference.mean)
    return found


def leads(findings: Findings) -> list[Difference]:
    """The first configuration against each other one, corrected for all pairs that there are.

    The scores that are compared chose the first: had chance put another one there, its pairs would
    have been compared. So all pairs are one family for Holm's correction.
    """
    scores = gains(findings)
    first, *others = findings.results.rows
    found = [difference(scores[first.values], scores[row.values]) for row in others]
    return correct(found, tests=len(others) * (len(others) + 1) // 2)


def gains(findings: Findings) -> Scores:
    """The objective by seed of every configuration, losses negative: more is always better."""
    sign = -1.0 if findings.results.minimize else 1.0
    return {
        point: {seed: sign * score for seed, score in seeds.items()}
        for point, seeds in findings.scores().items()
    }


def costs(findings: Findings, chosen: Layout) -> dict[str, list[tuple[float, float, str]]]:
    """What the configurations cost: each kind of cost that differs to (cost, objective, group).

    A group is a value of the axis that has colours of its own, in its order.
    """
    found: dict[str, list[tuple[float, float, str]]] = {"parameters": [], "seconds of training": []}
    rows: Sequence[Row] = findings.results.rows
    groups = dict.fromkeys((row.values for row in rows), "")
    if chosen.group is not None:
        place, order = findings.results.axes.index(chosen.group), chosen.values[chosen.group]
        rows = sorted(rows, key=lambda row: order.index(row.values[place]))
        groups = {row.values: f"{chosen.group}={short(row.values[place])}" for row in rows}
    for row in rows:
        costs = [(record.parameters, record.seconds) for record in row.finished]
        for points, numbers in zip(found.values(), zip(*costs)):
            if known := [number for number in numbers if number is not None]:
                points.append((statistics.fmean(known), row.score.mean, groups[row.values]))
    return {kind: points for kind, points in found.items() if len({p[0] for p in points}) > 1}
