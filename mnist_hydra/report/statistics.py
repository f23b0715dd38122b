"""What can be said about configurations that ran over a few seeds; pure functions.

The unit of chance is the seed: two configurations are compared over the seeds that both have, and
a setting's effect is first averaged over the other settings within each seed.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

LEVEL = 0.05
"""The chance of a false alarm that is taken; intervals are of 95 %."""
MAX_VALUES = 8
"""An axis of numbers with more values than this is one of a search: its values are not compared."""
Values = tuple[str, ...]
"""A configuration: one value for each axis, in the order of the axes."""
Scores = Mapping[Values, Mapping[str, float]]
"""Of each configuration the objective by seed."""
CameOut = TypeVar("CameOut")


class Verdict(Enum):
    """What a comparison may come to, in a few words; the strongest first."""

    REAL = "more than chance"
    HINT = "a hint only"
    CHANCE = "may be chance"
    UNTOLD = "cannot be told"
    EVEN = "even"
    IDENTICAL = "identical"
    BEHIND = "behind"


@dataclass(frozen=True)
class Summary:
    """Several seeds of one configuration."""

    n: int
    mean: float
    deviation: float | None
    """The sample's standard deviation (n - 1); `None` with one seed."""
    half_width: float | None
    """Half of the mean's 95 % interval by Student's t; `None` with one seed."""


@dataclass(frozen=True)
class Difference:
    """One thing less another, over the seeds that both have."""

    n: int
    """How many seeds those are."""
    mean: float
    """NaN with none."""
    half_width: float | None = None
    """Half of the 95 % interval, of this one comparison; `None` where nothing can be told."""
    p: float | None = None
    """Two-sided, of this one comparison."""
    corrected: float | None = None
    """The same after the correction for all that were compared with it, see `correct`."""

    @property
    def turned(self) -> Difference:
        """The other thing less the one."""
        return replace(self, mean=-self.mean)

    @property
    def verdict(self) -> Verdict:
        """What it comes to; all that is said of it goes by this.

        It is more than chance at 5 % for the whole family of comparisons. A hint would count alone,
        but does not after the correction.
        """
        if self.p is None:
            return Verdict.IDENTICAL if self.mean == 0 and self.half_width == 0 else Verdict.UNTOLD
        if (self.p if self.corrected is None else self.corrected) < LEVEL:
            return Verdict.REAL
        return Verdict.HINT if self.p < LEVEL else Verdict.CHANCE


def summary(values: Sequence[float]) -> Summary:
    """Number, mean, deviation and 95 % interval of at least one value."""
    n, mean = len(values), statistics.mean(values)  # exact, so that equal means share a rank
    if n == 1:
        return Summary(n, mean, None, None)
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    deviation = statistics.stdev(values)
    quantile = float(stdtrit(n - 1, 1 - LEVEL / 2))
    return Summary(n, mean, deviation, quantile * deviation / math.sqrt(n))


def difference(one: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    """`one` less `other`, paired over the seeds that both have: Student's paired t test.

    It takes the differences as normal (Student, "The probable error of a mean", Biometrika 1908).
    With one seed, or where all differences are the same, there is no spread to judge by, and no
    interval is made up.

    Args:
        one, other: a value for each seed.
    """
    pairs = [one[seed] - other[seed] for seed in one if seed in other]
    if not pairs:
        return Difference(0, math.nan)
    found = summary(pairs)
    if all(pair == 0 for pair in pairs):
        return Difference(found.n, 0.0, found.half_width)
    if found.deviation is None or max(pairs) - min(pairs) < 1e-12:
        return Difference(found.n, found.mean)
    from scipy.special import stdtr

    t = found.mean / (found.deviation / math.sqrt(found.n))
    p = 2 * float(stdtr(found.n - 1, -abs(t)))
    return Difference(found.n, found.mean, found.half_width, p)


def effect(scores: Scores, place: int, one: str, other: str) -> Difference:
    """What it brings to set an axis to `one` rather than to `other`, all else being equal.

    Within each seed the differences are averaged over the other axes' values; these averages are
    then compared over the seeds, as `difference` does. Only pairs of trials count of which both
    finished.

    Args:
        place: of the axis in a configuration.
    """
    gaps = ((seed, mine - its) for seed, mine, its in twins(scores, place, one, other))
    means = means_by_name(gaps)
    return difference(means, dict.fromkeys(means, 0.0))


def twins(
    outcomes: Mapping[Values, Mapping[str, CameOut]], place: int, one: str, other: str
) -> list[tuple[str, CameOut, CameOut]]:
    """Seed and outcomes of each two trials that differ in one axis alone.

    Args:
        outcomes: of each configuration what came out, by seed.
        place: of the axis in a configuration.
        one, other: its two values.
    """
    return [
        (seed, mine, twin[seed])
        for point, seeds in outcomes.items()
        if point[place] == one
        for twin in [outcomes.get((*point[:place], other, *point[place + 1 :]), {})]
        for seed, mine in seeds.items()
        if seed in twin
    ]


def level_means(scores: Scores, place: int, values: Sequence[str]) -> dict[str, Summary]:
    """The objective at each value of an axis, averaged over the others, summed up over seeds.

    All values are averaged over the same settings of the other axes: those that each value was
    tried with. If they have none in common, all settings are used.

    Args:
        values: of the axis, at least one.
    """
    others: dict[str, set[tuple[Values, str]]] = {value: set() for value in values}
    for point, seeds in scores.items():
        others[point[place]] |= {(point[:place] + point[place + 1 :], seed) for seed in seeds}
    shared = set.intersection(*others.values())
    found = {}
    for value in values:
        means = means_by_name(
            (seed, scores[rest[:place] + (value,) + rest[place:]][seed])
            for rest, seed in shared or others[value]
        )
        if means:
            found[value] = summary(list(means.values()))
    return found


def means_by_name(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Of each name the mean of its values."""
    found: dict[str, list[float]] = {}
    for name, value in values:
        found.setdefault(name, []).append(value)
    return {name: statistics.fmean(of_name) for name, of_name in found.items()}


def correct(family: Sequence[Difference], tests: int | None = None) -> list[Difference]:
    """The differences with p values corrected for how many there are, by Holm's method.

    The chance to call even one of them real that is none stays below 5 % (Holm, "A simple
    sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979).
    Those without a p value do not count.

    Args:
        tests: how many there might have been, where the same data chose these; `None`: no others.
    """
    tested = sorted((one.p, index) for index, one in enumerate(family) if one.p is not None)
    tests = len(tested) if tests is None else tests
    steps = (min(1.0, (tests - done) * p) for done, (p, _) in enumerate(tested))
    rising = itertools.accumulate(steps, max)
    corrected = {index: p for (_, index), p in zip(tested, rising, strict=True)}
    return [replace(one, corrected=corrected.get(i)) for i, one in enumerate(family)]


def same_values(
    axes: Sequence[str], outcomes: Mapping[Values, Mapping[str, CameOut]]
) -> list[tuple[str, str, str]]:
    """Axis, value, and a later value of it that came out exactly the same.

    They are the same where at least two trials have twins that differ in nothing but them, and
    all of these came out as their twins did. Of three that are the same the first stands for the
    two others. Axes of more than eight values are left out.

    Args:
        axes: of the configurations.
        outcomes: of each configuration what came out, by seed.
    """
    found: dict[tuple[str, str], str] = {}
    for place, axis in enumerate(axes):
        values = in_order([point[place] for point in outcomes])
        for one, other in itertools.combinations(values if len(values) <= MAX_VALUES else [], 2):
            pairs = twins(outcomes, place, one, other)
            if len(pairs) > 1 and all(mine == its for _, mine, its in pairs):
                found.setdefault((axis, other), found.get((axis, one), one))
    return [(axis, one, other) for (axis, other), one in found.items()]


def in_order(values: Sequence[str]) -> list[str]:
    """Values of an axis, each once: by size where all are numbers, else as they came."""
    unique = list(dict.fromkeys(values))
    return unique if None in map(number, unique) else sorted(unique, key=float)


def number(value: str) -> float | None:
    """A value of an axis as a finite number; `None` if it is none."""
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
