"""The report's sentences: what won, by how much, and whether that is more than chance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mnist_hydra.report import page
from mnist_hydra.report.questions import Answers, Contrast
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import Results, TrialRecord, first_place
from mnist_hydra.report.statistics import Difference, Verdict, number, summary
from mnist_hydra.report.wording import (
    configuration,
    gain,
    interval,
    is_share,
    listed,
    mean_with_interval,
    short,
)

NOTHING_APART = (
    "Every configuration ran with one seed, so nothing can be told apart: the order may be chance. "
    "A seed axis, for example seed=1,2,3,4,5, tells more."
)
OPENING = {
    Verdict.REAL: "Yes, by more than chance: ",
    Verdict.HINT: "Perhaps: ",
    Verdict.CHANCE: "With {seeds} seeds no difference shows: ",
    Verdict.UNTOLD: "It cannot be told: ",
    Verdict.EVEN: "It cannot be told: ",
    Verdict.IDENTICAL: "No: ",
}
UNSURE = {
    Verdict.HINT: "a hint only",
    Verdict.CHANCE: "which may be chance",
    Verdict.UNTOLD: "which cannot be told from chance",
}
COMPARED = {
    Verdict.REAL: "beats {gaps}",
    Verdict.HINT: "is ahead of {gaps}, a hint only: it does not survive the correction for several "
    "comparisons",
    Verdict.CHANCE: "is ahead of {gaps}, which may be chance",
    Verdict.UNTOLD: "is ahead of {gaps}, which cannot be told from chance",
    Verdict.EVEN: "reached the same as {names}",
    Verdict.IDENTICAL: "came out exactly as {names} did",
    Verdict.BEHIND: "is behind {gaps} where both were tried",
}
"""What the best value of a setting does to others, in the order in which it is said."""


def in_words(findings: Findings, answers: Answers) -> list[str]:
    """The answer: what won, whether each setting matters, and what to use."""
    first = winner(findings, answers.leads)
    return [*first, *in_brief(findings, answers), *advice(findings, answers)]


def settings(findings: Findings, answers: Answers) -> dict[str, list[str]]:
    """What each axis does: a sentence over all, then one for each panel."""
    of, told = findings.results.objective, {}
    for axis, parts in answers.contrasts.items():
        overall = parts[None]
        if not overall:
            continue
        about = [other for other in answers.layout.values if other != axis]
        averaged = f"averaged over {listed(about)}, " if about else ""
        opening = OPENING[strongest(overall)].format(seeds=overall[0].difference.n)
        share = ""
        if axis in answers.importance:
            percent = f"{100 * answers.importance[axis]:.0f} %"
            share = f" By itself it accounts for {percent} of the differences between trials."
        told[axis] = [f"{opening}{averaged}{_compared(of, axis, overall)}.{share}"]
        for within, part in parts.items():
            if within is not None and part:
                told[axis].append(f"For {within}: {_compared(of, axis, part)}.")
    return told


def warnings(
    findings: Findings, differing: Sequence[str], rising_at: int | None = None
) -> list[str]:
    """What has to be seen before anything else.

    Args:
        differing: the facts that are not the same for all trials.
        rising_at: the last epoch, where the best still improve in it.
    """
    told = []
    if findings.results.on_test_set:
        told.append(
            f"The first was selected on the test set, by {findings.results.objective}, since no "
            "training images were held out: this is no ground for choosing it."
            f"{_optimistic(findings)} data.val_size=5000 makes a hold-out."
        )
    told += without_result(findings)
    if rising_at is not None:
        told.append(
            f"The accuracy is still rising at epoch {rising_at}, the last: more epochs may change "
            "the ranking."
        )
    told += same_thing(findings.same)
    if (again := findings.repeated) > 0:
        have = "runs have" if again > 1 else "run has"
        told.append(f"{again} more {have} the same settings and seed as others, and do not count.")
    return told + [
        f"The trials differ in {name}: see the table of every trial."
        for name in ("commit", "data SHA-256", "versions")
        if name in differing
    ]


def winner(findings: Findings, leads: Sequence[Difference]) -> list[str]:
    """Which configuration is first, its lead, and what it reaches on the test set.

    Args:
        leads: what it gains over each other one.
    """
    told = [first_place(findings.results)]
    if leads:
        told.append(_lead(findings.results, leads))
    return told + _on_test_set(findings.results)


def in_brief(findings: Findings, answers: Answers) -> list[str]:
    """The best value of each setting and whether it is more than chance; where they lead to."""
    found = findings.results
    best = {axis: parts[None] for axis, parts in answers.contrasts.items() if parts[None]}
    if len(best) < 2 or not _can_be_told(answers):
        return []
    parts = [f"{axis}={short(of[0].better)} {_how_sure(of)}" for axis, of in best.items()]
    told = [f"Setting by setting, the others averaged: {'; '.join(parts)}."]
    together = {(axis, of[0].better) for axis, of in best.items()}
    for row, lead in zip(found.rows[1:], answers.leads, strict=True):
        if together <= set(zip(found.axes, row.values)) and row.rank > 1 and lead.mean >= 0:
            rank = f"rank {row.rank} of {len(found.rows)}"
            behind = f"{gain(found.objective, lead.mean)} behind the first: {lead.verdict.value}"
            told.append(f"The best value of each setting, taken together, has {rank}, {behind}.")
            break
    return told


def _how_sure(found: Sequence[Contrast]) -> str:
    """How sure it is that the best value is better than the others."""
    verdicts = [one.verdict for one in found]
    verdicts = [each for each in verdicts if each not in (Verdict.EVEN, Verdict.IDENTICAL)]
    real = verdicts.count(Verdict.REAL)
    if not verdicts:
        return "is as good as any"
    if not real:
        return f"is ahead, {UNSURE[strongest(found)]}"
    if real == len(verdicts):
        return "is best, by more than chance"
    return f"is ahead (of {real} of the {len(verdicts)} others by more than chance)"


def strongest(found: Sequence[Contrast]) -> Verdict:
    """The verdict on the comparison, of at least one, that tells most."""
    return min((one.verdict for one in found), key=list(Verdict).index)


def advice(findings: Findings, answers: Answers) -> list[str]:
    """What to use: the first configuration, and which of its settings are not certain.

    Nothing is advised where no comparison can be told, and nothing by the test set.
    """
    found = findings.results
    if found.on_test_set or not _can_be_told(answers):
        return []
    use: list[str] = []
    worse: list[str] = []
    behind: list[str] = []
    beyond: list[str] = []
    for axis, mine in zip(found.axes, found.rows[0].values, strict=True):
        overall = answers.contrasts.get(axis, {None: []})[None]
        best = overall[0].better if overall else mine
        others = {one.worse: one.verdict for one in overall if one.worse != mine}
        equal = (Verdict.EVEN, Verdict.IDENTICAL, Verdict.BEHIND)
        as_good = [value for value, verdict in others.items() if verdict in equal]
        if best != mine:
            as_good.insert(0, best)
        use.append(f"{axis}={short(mine)}")
        if as_good:
            also = listed([short(value) for value in as_good])
            use[-1] += f" (or {also}, as good or better, averaged over the rest)"
        for value, verdict in others.items():
            if value not in as_good:
                (worse if verdict == Verdict.REAL else behind).append(f"{axis}={short(value)}")
        if overall and strongest(overall) in (Verdict.REAL, Verdict.HINT):
            beyond += _at_the_edge(axis, best, answers.layout.values[axis])
    told = [f"Use {', '.join(use)}."]
    if worse:
        told.append(f"{listed(worse)} did worse, by more than chance.")
    if behind:
        told.append(f"{listed(behind)} did worse, which may be chance.")
    return [" ".join(told + beyond)]


def _at_the_edge(axis: str, best: str, values: Sequence[str]) -> list[str]:
    """Whether the best value of a setting is its largest or smallest: it was tried no further."""
    edges = {values[0]: ("smallest", "smaller"), values[-1]: ("largest", "larger")}
    if None in map(number, values) or number(best) == 0 or best not in edges:
        return []
    edge, further = edges[best]
    return [f"{axis}={short(best)} is the {edge} value tried: a {further} one may do better."]


def _can_be_told(answers: Answers) -> bool:
    """Whether there is any comparison of settings that chance can be judged in."""
    every = [one for parts in answers.contrasts.values() for one in parts[None]]
    return any(one.difference.p is not None for one in every)


def of_command(findings: Findings, trial: TrialRecord, has_model: bool) -> str:
    """Which trial the report's command trains again, and where it is.

    Args:
        trial: a finished one of the first configuration.
        has_model: whether its exported model is in the store.
    """
    count = len(findings.results.rows[0].finished)
    with_seed = f", with seed {trial.seed}, the best of its {count} runs" if count > 1 else ""
    model = f"; predict and evaluate take its model as model={trial.run_id}" * has_model
    return (
        f"The first configuration{with_seed}, as a command that trains it again. It was run "
        f"{trial.run_id}{model}."
    )


def trust(findings: Findings, leads: Sequence[Difference]) -> list[str]:
    """What to know before believing it, besides the warnings.

    Args:
        leads: what the first configuration gains over each other one.
    """
    widths = [lead.half_width for lead in leads if lead.half_width]
    told = page.rendered(
        "trust.txt",
        findings=findings,
        optimistic=_optimistic(findings, "; its test accuracy is not"),
        nothing_apart=NOTHING_APART,
        least=gain(findings.results.objective, statistics.median(widths)) if widths else "",
    )
    return told.splitlines()


def without_result(findings: Findings) -> list[str]:
    """How many trials are missing that nobody meant to leave out; empty where there is none."""
    missing = findings.planned - findings.finished - findings.pruned
    if missing == 0:
        return []
    have, were = ("has no result: it", "was") if missing == 1 else ("have no result: they", "were")
    why = f"{have} failed, did not end or {were} deleted"
    return [f"{missing} of {findings.planned} trials {why}."]


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


def _lead(found: Results, leads: Sequence[Difference]) -> str:
    of, gap, verdict = found.objective, leads[0], leads[0].verdict
    the_next = configuration(found.axes, found.rows[1].values)
    by = f"Its lead over the next, {the_next}, is {gain(of, gap.mean)}"
    if gap.mean < 0:
        gap = gap.turned
        by = f"Over the seeds that both have, the next, {the_next}, leads by {gain(of, gap.mean)}"
    if gap.n == 0:
        return "It shares no seed with the next, so their difference cannot be told from chance."
    if verdict == Verdict.UNTOLD:
        by = f"The next, {the_next}, reached the same" if gap.mean == 0 else by
        return f"{by}; with {gap.n} shared seed{'s' * (gap.n > 1)} that cannot be told from chance."
    if verdict == Verdict.IDENTICAL:
        by = f"The next, {the_next}, came out exactly the same"
    else:
        by += f" (paired over {gap.n} seeds, 95 % interval {interval(of, gap)}): {verdict.value}"
    if len(leads) == 1:
        return f"{by}."
    beaten = sum(lead.verdict == Verdict.REAL and lead.mean > 0 for lead in leads)
    if lost := sum(lead.verdict == Verdict.REAL and lead.mean < 0 for lead in leads):
        return (
            f"{by}. Over the seeds that both have it beats {beaten} of the {len(leads)} others by "
            f"more than chance, and {lost} of them beat{'s' * (lost == 1)} it so."
        )
    if beaten == len(leads):
        return f"{by}. It beats all {beaten} others by more than chance."
    if beaten == 0:
        return f"{by}. None of the {len(leads)} others can be told from it."
    return (
        f"{by}. It beats {beaten} of the {len(leads)} others by more than chance; "
        f"{len(leads) - beaten} cannot be told from it."
    )


def _optimistic(findings: Findings, but: str = "") -> str:
    """What being picked does to the first one's value; empty where there was one to pick from."""
    if len(findings.results.rows) == 1:
        return ""
    what = "accuracy" if is_share(findings.results.objective) else "value"
    return (
        f" The winner's own {what} is slightly optimistic, because it was picked for being the "
        f"{'lowest' if findings.results.minimize else 'highest'}{but}."
    )


def _on_test_set(found: Results) -> list[str]:
    """What the first configuration reaches there, where it was not selected by that."""
    first = [record.metrics for record in found.rows[0].finished]
    accuracies = [metrics["test/acc_last"] for metrics in first if "test/acc_last" in metrics]
    if found.on_test_set or not accuracies:
        return []
    reached = mean_with_interval("test/acc", summary(accuracies))
    return [f"On the test set, which is not used for choosing, it reaches {reached}."]


def _compared(of: str, axis: str, found: Sequence[Contrast]) -> str:
    """`dropout=0.0 beats 0.04 by 0.31 points (...); it is ahead of 0.02 by 0.10 points (...)`."""
    told = []
    for verdict, words in COMPARED.items():
        if chosen := [one for one in found if one.verdict == verdict]:
            gaps = listed([_behind(of, one) for one in chosen])
            told.append(words.format(gaps=gaps, names=listed([short(one.worse) for one in chosen])))
    return f"{axis}={short(found[0].better)} {'; it '.join(told)}"


def _behind(of: str, one: Contrast) -> str:
    """`0.02 by 0.31 points (0.11 to 0.51)`."""
    gap = one.difference.turned if one.verdict == Verdict.BEHIND else one.difference
    told = f"{short(one.worse)} by {gain(of, gap.mean)}"
    if gap.half_width is None:
        return told
    paired = f"paired over {gap.n} seeds, 95 % interval " if gap.verdict == Verdict.REAL else ""
    return f"{told} ({paired}{interval(of, gap)})"
