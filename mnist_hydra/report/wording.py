"""Numbers and settings as a reader of the report sees them; pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from mnist_hydra.report.statistics import Difference, Summary, number


def is_share(metric: str) -> bool:
    """Whether a metric is a share (0 to 1), which is shown in percent: an accuracy."""
    return "acc" in metric.rpartition("/")[2]


def value(metric: str, found: float) -> str:
    """A value of a metric: accuracies in percent."""
    return f"{100 * found:.2f} %" if is_share(metric) else f"{found:.4g}"


def gain(metric: str, found: float) -> str:
    """A difference of a metric: of accuracies in percentage points."""
    return f"{100 * found:.2f} points" if is_share(metric) else f"{found:.3g}"


def width(metric: str, found: float | None) -> str:
    """Half of an interval, or a deviation: `0.11`; a dash where there is none."""
    return "-" if found is None else gain(metric, found).removesuffix(" points")


def interval(metric: str, found: Difference) -> str:
    """A difference's 95 % interval: `0.01 to 0.11`; a dash where there is none."""
    if found.half_width is None:
        return "-"
    ends = (found.mean - found.half_width, found.mean + found.half_width)
    return " to ".join(width(metric, end) for end in ends).replace("-", "−")


def mean_with_interval(metric: str, found: Summary) -> str:
    """`96.52 % ± 0.11`, without the interval where there is none."""
    told = value(metric, found.mean)
    return told if found.half_width is None else f"{told} ± {width(metric, found.half_width)}"


def short(setting: str) -> str:
    """A value of an axis for people: of a number that is not whole four digits that count."""
    found = number(setting)
    whole = setting.lstrip("-").isdecimal()
    return setting if found is None or whole or len(setting) <= 6 else f"{found:.4g}"


def configuration(axes: Sequence[str], values: Sequence[str]) -> str:
    """A configuration: `model=model3, dropout=0.04`; empty without axes."""
    return ", ".join(f"{axis}={short(text)}" for axis, text in zip(axes, values, strict=True))


def listed(words: Sequence[str]) -> str:
    """`a, b and c`; of at least one."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
