"""The report's sentences: what won, by how much, and whether that is more than chance."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from mnist_hydra.report.questions import Contrast, Layout, Lead
from mnist_hydra.report.read import Findings, short
from mnist_hydra.report.results import TrialRecord
from mnist_hydra.report.statistics import Difference, Summary, summary

NOTHING_APART = (
    "Every configuration ran with one seed, so nothing can be told apart: the order may be chance. "
    "A seed axis, for example seed=1,2,3,4,5, tells more."
)
FEW_SEEDS = 5
REAL, HINT, CHANCE = "more than chance", "a hint only", "may be chance"
UNTOLD, IDENTICAL = "cannot be told", "identical"


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
    """What a comparison comes to, in a few words; all that is said of it goes by this."""
    if found.is_identical:
        return IDENTICAL
    if found.is_real:
        return REAL
    if found.is_hint:
        return HINT
    return CHANCE if found.p is not None else UNTOLD


def strongest(found: Sequence[Contrast]) -> str:
    """The verdict on the comparison, of at least one, that tells most."""
    verdicts = {verdict(one.difference) for one in found}
    return next(word for word in (REAL, HINT, CHANCE, UNTOLD, IDENTICAL) if word in verdicts)


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
    others = [one for one in found if not one.difference.is_identical]
    real = sum(one.difference.is_real for one in others)
    if real and real == len(others):
        return "is best, by more than chance"
    if real:
        return f"is ahead (of {real} of the {len(others)} others by more than chance)"
    return {
        HINT: "is ahead, a hint only",
        CHANCE: "is ahead, which may be chance",
        UNTOLD: "is ahead, which cannot be told from chance",
        IDENTICAL: "is as good as any",
    }[strongest(found)]


def advice(findings: Findings, contrasts: Mapping[str, Sequence[Contrast]]) -> list[str]:
    """What to use: the first configuration, and which values of its settings may do as well.

    Nothing is advised where no comparison can be told, and nothing by the test set.

    Args:
        contrasts: of each axis, its best value against the others.
    """
    found = findings.results
    overall = [one for of in contrasts.values() for one in of if one.within is None]
    if found.on_test_set or all(one.difference.p is None for one in overall):
        return []
    mine = dict(zip(found.axes, found.rows[0].values, strict=True))
    as_good: dict[tuple[str, str], None] = {}  # in order, each once
    for one in overall:
        if one.better != mine[one.axis]:
            as_good[one.axis, one.better] = None
        if one.worse != mine[one.axis] and not one.difference.is_real:
            as_good[one.axis, one.worse] = None
    told = f"Use {name(found.axes, found.rows[0].values)}."
    if as_good:
        others = [f"{axis}={short(text)}" for axis, text in as_good]
        told += f" Changed one at a time, {_listed(others)} may do as well."
    return [told]


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
        averaged = f"averaged over {_listed(about)}, " if about else ""
        told.append(f"{_in_short(overall)}{averaged}{_compared(of, axis, overall)}.")
    for within in dict.fromkeys(one.within for one in found if one.within is not None):
        part = [one for one in found if one.within == within]
        told.append(f"For {within}: {_compared(of, axis, part)}.")
    if weight is not None and told:
        told[0] += f" It accounts for {100 * weight:.0f} % of the differences between trials."
    return told


def of_command(findings: Findings, trial: TrialRecord, has_model: bool) -> str:
    """Which trial the report's command trains again, and where it is.

    Args:
        trial: a finished one of the first configuration.
        has_model: whether its exported model is in the store.
    """
    count = len(findings.results.rows[0].finished)
    seed = findings.seed_of()[trial.run_id]
    with_seed = f", with seed {seed}, the best of its {count} runs" if count > 1 else ""
    model = "; its model is there, for predict and evaluate as model=<that id>" * has_model
    return (
        f"The first configuration{with_seed}, as a command that trains it again. It was run "
        f"{trial.run_id}{model}."
    )


def trust(
    findings: Findings, others: Sequence[Lead], rising_at: int | None = None
) -> list[str]:
    """What to know before believing it.

    Args:
        rising_at: the last epoch, where the best still improve in it.
    """
    found = findings.results
    told = []
    if found.on_test_set:
        told.append(selected_on_test_set(findings))
    elif found.objective.startswith("val/"):
        told.append(
            f"The ranking is by {found.objective}, on training images that were held out; the test "
            f"set had no part in it. {_optimistic(findings)}; its test accuracy is not."
        )
    seeds = sorted({len(row.finished) for row in found.rows})
    if seeds[-1] == 1:
        told.append(NOTHING_APART)
    else:
        how = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        told.append(
            f"Each configuration ran with {how} seeds. Comparisons are paired over shared seeds "
            "(Student's t); the intervals are not corrected for multiple comparisons."
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
                f"With {'only ' * (seeds[-1] < FEW_SEEDS)}{seeds[-1]} seeds two configurations "
                f"typically have to differ by about {least} before the interval leaves out 0."
            )
        told.append(
            "More than chance means p < 0.05 after Holm's correction for the number of comparisons "
            "in a family. The families are: all pairs of one setting's values; all those pairs "
            "within the panels; the first configuration against each other one."
        )
    if rising_at is not None:
        told.append(
            f"The accuracy is still rising at epoch {rising_at}, the last: more epochs may change "
            "the ranking."
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


def selected_on_test_set(findings: Findings) -> str:
    """What to know of a ranking that is of the test set."""
    return (
        f"Selected on the test set: the ranking is by {findings.results.objective}, since no "
        f"training images were held out. The first is no ground for a choice. "
        f"{_optimistic(findings)}. data.val_size=5000 makes a hold-out."
    )


def _optimistic(findings: Findings) -> str:
    what = "accuracy" if is_share(findings.results.objective) else "value"
    return (
        f"The winner's own {what} is slightly optimistic, because it was picked for being the "
        f"{'lowest' if findings.minimize else 'highest'}"
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
    return [f"On the test set, which is not used for choosing, it reaches {reached}."]


def _in_short(found: Sequence[Contrast]) -> str:
    """Whether the axis matters, in a word."""
    return {
        REAL: "Yes, by more than chance: ",
        HINT: "Perhaps: ",
        CHANCE: "No difference shows: ",
        UNTOLD: "It cannot be told: ",
        IDENTICAL: "No: ",
    }[strongest(found)]


def _compared(of: str, axis: str, found: Sequence[Contrast]) -> str:
    """`dropout=0.0 beats 0.04 by 0.31 points (...); is ahead of 0.02 by 0.10 points (...)`."""

    def against(words: str, chosen: Sequence[Contrast], with_n: bool = False) -> str:
        gaps = [
            f"{short(one.worse)} by {gain(of, one.difference.mean)}"
            + (f" ({_paired(of, one.difference, with_n)})" if one.difference.half_width else "")
            for one in chosen
        ]
        return f"{words} {_listed(gaps)}"

    by_word: dict[str, list[Contrast]] = {}
    for one in found:
        by_word.setdefault(verdict(one.difference), []).append(one)
    told = []
    if real := by_word.get(REAL):
        told.append(against("beats", real, with_n=True))
    endings = {
        HINT: "a hint only: it does not survive the correction for several comparisons",
        CHANCE: "which may be chance",
        UNTOLD: "which cannot be told from chance",
    }
    for word, ending in endings.items():
        if word in by_word:
            told.append(f"{against('is ahead of', by_word[word])}, {ending}")
    if same := by_word.get(IDENTICAL):
        told.append(f"came out exactly as {_listed([short(one.worse) for one in same])} did")
    return f"{axis}={short(found[0].better)} {'; it '.join(told)}"


def _paired(of: str, gap: Difference, with_n: bool) -> str:
    words = f"paired over {gap.n} seeds, 95 % interval " if with_n else ""
    return words + interval(of, gap)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _listed(words: Sequence[str]) -> str:
    """`a, b and c`; of at least one."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _place(rank: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}th" if rank % 100 in (11, 12, 13) else f"{rank}{ending}"


def _signed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def is_share(metric: str) -> bool:
    return "acc" in metric.rpartition("/")[2]
