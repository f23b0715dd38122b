"""The report's sentences: what won, by how much, and whether that is more than chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mnist_hydra.report.questions import Contrast, Layout, Lead
from mnist_hydra.report.read import Findings, short
from mnist_hydra.report.statistics import Difference, Summary, summary

NOTHING_APART = (
    "Every configuration ran with one seed, so nothing can be told apart: the order may be chance. "
    "A seed axis, for example seed=1,2,3,4,5, tells more."
)
FEW_SEEDS = 5


def value(objective: str, number: float) -> str:
    """A value of a metric: accuracies in percent."""
    return f"{100 * number:.2f} %" if is_share(objective) else f"{number:.4g}"


def gain(objective: str, number: float) -> str:
    """A difference of a metric: of accuracies in percentage points."""
    return f"{100 * number:.2f} points" if is_share(objective) else f"{number:.3g}"


def interval(objective: str, found: Difference) -> str:
    """A difference's 95 % interval: `0.01 to 0.11`; empty where there is none."""
    if found.half_width is None:
        return ""
    low, high = found.mean - found.half_width, found.mean + found.half_width
    if is_share(objective):
        return f"{_signed(100 * low, 2)} to {_signed(100 * high, 2)}"
    return f"{low:.3g} to {high:.3g}".replace("-", "−")


def mean_with_interval(objective: str, found: Summary) -> str:
    """`96.52 % ± 0.11`, without the interval where there is none."""
    if found.half_width is None:
        return value(objective, found.mean)
    width = 100 * found.half_width if is_share(objective) else found.half_width
    return f"{value(objective, found.mean)} ± " + (
        f"{width:.2f}" if is_share(objective) else f"{width:.2g}"
    )


def verdict(found: Difference) -> str:
    """What a comparison comes to, in a few words."""
    if found.is_identical:
        return "identical"
    if found.is_real:
        return "more than chance"
    if found.is_hint:
        return "a hint, may be chance"
    return "may be chance" if found.p is not None else "cannot be told"


def name(axes: Sequence[str], values: Sequence[str]) -> str:
    """A configuration: `model=model3, dropout=0.04`."""
    return ", ".join(f"{axis}={short(text)}" for axis, text in zip(axes, values, strict=True))


def winner(findings: Findings, others: Sequence[Lead]) -> list[str]:
    """Which configuration is first, its lead, and what it reaches on the test set."""
    found = findings.results
    first, of = found.rows[0], found.objective
    seeds = len(first.finished)
    over = f", the mean of {seeds} seeds and its 95 % interval" if seeds > 1 else ""
    here = Summary(seeds, first.mean, None, first.half_width)
    what = name(found.axes, first.values) or "the one configuration"
    told = [
        f"{what} comes first of {len(found.rows)}: {of} {mean_with_interval(of, here)}{over}."
        if len(found.rows) > 1
        else f"{what}: {of} {mean_with_interval(of, here)}{over}."
    ]
    if others:
        told.append(_lead(of, others, found.axes))
    told += _on_test_set(findings)
    return told


def in_brief(
    findings: Findings, contrasts: Mapping[str, Sequence[Contrast]], others: Sequence[Lead]
) -> list[str]:
    """The best value of each setting and whether it is more than chance; where they lead to.

    Args:
        contrasts: of each axis, its best value against the others.
    """
    found = findings.results
    best = {axis: [one for one in of if one.within is None] for axis, of in contrasts.items()}
    best = {axis: of for axis, of in best.items() if of}
    if len(best) < 2 or all(one.difference.p is None for of in best.values() for one in of):
        return []
    parts = [f"{axis}={short(of[0].better)} {_how_sure(of)}" for axis, of in best.items()]
    told = [f"Setting by setting, the others averaged: {'; '.join(parts)}."]
    together = {axis: of[0].better for axis, of in best.items()}
    for lead in others:
        values = dict(zip(found.axes, lead.row.values, strict=True))
        if together.items() <= values.items() and lead.row.rank > 1 and lead.difference.n:
            behind = gain(found.objective, lead.difference.mean)
            chances = verdict(lead.difference)
            place = f"{_place(lead.row.rank)} of {len(found.rows)}"
            told.append(f"Together they come {place}, {behind} behind the first: {chances}.")
            break
    return told


def _how_sure(found: Sequence[Contrast]) -> str:
    """How sure it is that the best value is better than the others."""
    gaps = [one.difference for one in found if not one.difference.is_identical]
    real = sum(gap.is_real for gap in gaps)
    if not gaps:
        return "is as good as any"
    if real == len(gaps):
        return "is best, by more than chance"
    if real:
        return f"is ahead, by more than chance of {real} of the {len(gaps)} others"
    return "is ahead, which may be chance"


def setting(
    of: str, axis: str, found: Sequence[Contrast], chosen: Layout, weight: float | None
) -> list[str]:
    """What an axis does: a sentence over all, then one for each panel.

    Args:
        of: the objective.
        found: its comparisons.
        weight: its share of the importances.
    """
    overall = [one for one in found if one.within is None]
    told = []
    if overall:
        about = [other for other in chosen.varied if other != axis]
        averaged = f", averaged over {' and '.join(about)}" if about else ""
        told.append(f"{_in_short(overall)}{_compared(of, axis, overall)}{averaged}.")
    for within in dict.fromkeys(one.within for one in found if one.within is not None):
        part = [one for one in found if one.within == within]
        told.append(f"For {within}: {_compared(of, axis, part)}.")
    if weight is not None and told:
        told[0] += f" It accounts for {100 * weight:.0f} % of the differences between trials."
    return told


def trust(findings: Findings, others: Sequence[Lead]) -> list[str]:
    """What to know before believing it."""
    found = findings.results
    told = []
    if found.on_test_set:
        told.append(
            f"Selected on the test set: the ranking is by {found.objective}, since no training "
            "images were held out. The first is no ground for a choice, and its accuracy is too "
            "good by the luck of having been picked. data.val_size=5000 makes a hold-out."
        )
    elif found.objective.startswith("val/"):
        told.append(
            f"The ranking is by {found.objective}, on training images that were held out; the test "
            "set had no part in it. The first's own value is too good by the luck of having been "
            "picked; its test accuracy is not."
        )
    seeds = sorted({len(row.finished) for row in found.rows})
    if seeds[-1] == 1:
        told.append(NOTHING_APART)
    else:
        how = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        told.append(
            f"Each configuration ran with {how} seeds. Comparisons are paired over shared seeds "
            "(Student's t), and every interval is a 95 % interval of its own."
        )
        pairs = [lead.difference.half_width for lead in others if lead.difference.half_width]
        if seeds[-1] < FEW_SEEDS:
            told.append(
                f"{seeds[-1]} seeds are few. In a sweep that has a name (sweep.name) the same "
                "command with more values of seed runs what is missing, and tells more."
            )
        if pairs:
            least = gain(found.objective, statistics.median(pairs))
            told.append(
                f"With so many seeds two configurations have to differ by about {least} before "
                "the interval leaves out 0."
            )
        told.append(
            "More than chance means p < 0.05 after Holm's correction for the number of comparisons "
            "in a family. The families are: all pairs of one setting's values; all those pairs "
            "within the panels; the first configuration against each other one."
        )
    missing = findings.planned - findings.finished
    if missing > 0:
        told.append(
            f"{missing} of {findings.planned} trials are not in it: they failed, were pruned, or "
            "have not ended."
        )
    return told


def same_thing(found: Sequence[tuple[str, str, str]]) -> list[str]:
    """Which values of an axis are one and the same, see `Findings.same`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for axis, one, other in found:
        groups.setdefault((axis, one), [one]).append(other)
    return [
        f"{' and '.join(f'{axis}={short(value)}' for value in values)} came out the same in every "
        f"trial: they are counted once, as {axis}={short(one)}."
        for (axis, one), values in groups.items()
    ]


def _lead(of: str, others: Sequence[Lead], axes: Sequence[str]) -> str:
    nearest = others[0]
    gap = nearest.difference
    by = f"Its lead over the next, {name(axes, nearest.row.values)}, is {gain(of, gap.mean)}"
    if gap.n == 0:
        return "It shares no seed with the next, so their difference cannot be told from chance."
    if gap.is_identical:
        by = f"The next, {name(axes, nearest.row.values)}, came out exactly the same"
    elif gap.p is None:
        return f"{by}; with {_count(gap.n, 'shared seed')} that cannot be told from chance."
    else:
        by += f" (paired over {gap.n} seeds, 95 % interval {interval(of, gap)}): {verdict(gap)}"
    beaten = sum(lead.difference.is_real for lead in others)
    if beaten == len(others):
        return f"{by}. It beats all {beaten} others by more than chance."
    if beaten == 0:
        return f"{by}. None of the {_count(len(others), 'other')} can be told from it."
    return (
        f"{by}. It beats {beaten} of the {len(others)} others by more than chance; "
        f"{len(others) - beaten} cannot be told from it."
    )


def _on_test_set(findings: Findings) -> list[str]:
    found = findings.results
    if found.on_test_set:
        return [
            "It was selected on the test set (no hold-out), so this is no ground for choosing it."
        ]
    entries = findings.by_run()
    accuracies = [
        entries[record.run_id].metrics["test/acc_last"]
        for record in found.rows[0].finished
        if "test/acc_last" in entries[record.run_id].metrics
    ]
    if not accuracies:
        return []
    reached = mean_with_interval("test/acc", summary(accuracies))
    return [f"On the test set, which had no part in the choice, it reaches {reached}."]


def _in_short(found: Sequence[Contrast]) -> str:
    """Whether the axis matters, in a word."""
    gaps = [one.difference for one in found]
    if any(gap.is_real for gap in gaps):
        return "Yes, by more than chance: "
    if all(gap.is_identical for gap in gaps):
        return "No: "
    if all(gap.p is None for gap in gaps):
        return "It cannot be told: "
    return "Perhaps: " if any(gap.is_hint for gap in gaps) else "No difference shows: "


def _compared(of: str, axis: str, found: Sequence[Contrast]) -> str:
    """`dropout=0.0 beats 0.04 by 0.31 points (...); is ahead of 0.02 by 0.10 points (...)`."""

    def against(words: str, chosen: Sequence[Contrast], with_n: bool = False) -> str:
        gaps = [
            f"{short(one.worse)} by {gain(of, one.difference.mean)}"
            + (f" ({_paired(of, one.difference, with_n)})" if one.difference.half_width else "")
            for one in chosen
        ]
        return f"{words} {' and '.join(gaps)}"

    real = [one for one in found if one.difference.is_real]
    hints = [one for one in found if one.difference.is_hint]
    same = [one for one in found if one.difference.is_identical]
    untold = [one for one in found if one.difference.p is None and one not in same]
    chance = [one for one in found if one not in (*real, *hints, *same, *untold)]
    told = []
    if real:
        told.append(against("beats", real, with_n=True))
    if hints:
        told.append(against("is ahead of", hints) + ", a hint only, not beyond the correction")
    if chance:
        told.append(against("is ahead of", chance) + ", which may be chance")
    if untold:
        told.append(against("is ahead of", untold) + ", which cannot be told from chance")
    if same:
        told.append(f"came out exactly as {' and '.join(short(one.worse) for one in same)} did")
    return f"{axis}={short(found[0].better)} {'; it '.join(told)}"


def _paired(of: str, gap: Difference, with_n: bool) -> str:
    words = f"paired over {gap.n} seeds, 95 % interval " if with_n else ""
    return words + interval(of, gap)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _place(rank: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}th" if rank % 100 in (11, 12, 13) else f"{rank}{ending}"


def _signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def is_share(metric: str) -> bool:
    return "acc" in metric.rpartition("/")[2]
