"""Confidence intervals of a mean, by Student's t; exact, and without any statistics package."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """The mean, correctly rounded, so that it does not depend on the values' order.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values")
    return math.fsum(values) / len(values)


def half_width(values: Sequence[float], confidence: float = 0.95) -> float | None:
    """Half of the confidence interval of the mean of normal values; `None` for less than two."""
    count = len(values)
    if count < 2:
        return None
    centre = mean(values)
    variance = math.fsum((value - centre) ** 2 for value in values) / (count - 1)
    return two_sided_quantile(confidence, count - 1) * math.sqrt(variance / count)


def two_sided_quantile(confidence: float, freedom: int) -> float:
    """The t between whose plus and minus Student's t lies with a probability of `confidence`.

    It inverts, by bisection, the finite sums of Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.7.3 and 26.7.4.

    Args:
        confidence: above 0, below 1.
        freedom: degrees of freedom, at least 1.

    Raises:
        ValueError: an argument is out of range.
    """
    if not 0 < confidence < 1 or freedom < 1:
        raise ValueError(f"no quantile for confidence {confidence}, {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _probability(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(high)


def _probability(angle: float, freedom: int) -> float:
    """P(|T| <= t) at t = sqrt(freedom) * tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2 == 1
    term, total = (cosine if odd else 1.0), 0.0
    for factor in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine * cosine * (factor - 1) / factor
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
