"""Makes a sweep's report: page, pictures and CSV, on disk and as artifacts of the sweep's run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_hydra.config import Place
from mnist_hydra.errors import UserError
from mnist_hydra.exported import model_of
from mnist_hydra.ledger.parent import REPORT
from mnist_hydra.report import answer, hard, page, page_tables, plots, questions, read
from mnist_hydra.report.page import Picture
from mnist_hydra.report.questions import Answers, Layout
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import TrialRecord, best_of, trial_command
from mnist_hydra.report.statistics import level_means
from mnist_hydra.report.wording import configuration
from mnist_hydra.tracking.tracker import Tracker

MAX_CURVES = 5
PICTURE_DPI = 110
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Report:
    """A report that was made."""

    folder: Path
    sentences: tuple[str, ...]
    """The answer, setting by setting, and what warns against it."""

    @property
    def page(self) -> Path:
        """The page."""
        return self.folder / "report.html"


def make(tracker: Tracker, findings: Findings, place: Place) -> Report:
    """Write a report below `place` and record it with its sweep, where it is of one."""
    found, answers = findings.results, questions.ask(findings)
    curves = _curves(tracker, findings, answers.layout)
    alike = hard.on_one_data_set(found.ranked_trials)
    hard_images = hard.hard_images(tracker, alike, place.cache_dir)
    folder = place.folder / "reports" / _folder_name(findings)
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("*.png"):
        earlier.unlink(missing_ok=True)  # this report may have fewer
    pictures = list(pictures_of(findings, answers, curves))
    figures = {picture.name: picture.figure for picture in pictures}
    if hard_images:
        figures["hard_images"] = plots.hard_sheet(hard_images)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=PICTURE_DPI)
    best = best_of(found.rows[0].finished, found.minimize)
    origins, common, differing = page_tables.made_of(findings)
    if findings.commands:
        common.pop("command", None)  # of the one trial; here stand those of the sweeps
    columns, rows = page_tables.every_trial(findings, origins)
    told = answer.in_words(findings, answers)
    warnings = answer.warnings(findings, differing, rising_at(curves))
    settings = answer.settings(findings, answers)
    html = page.rendered(
        "page.html",
        findings=findings,
        answer=told,
        warnings=warnings,
        settings=settings,
        trust=answer.trust(findings, answers.leads),
        command_note=answer.of_command(findings, best, _has_model(tracker, best)),
        command=trial_command(best),
        pictures=pictures,
        configurations=page_tables.configurations(findings, answers.leads),
        comparisons=page_tables.comparisons(found.objective, answers.contrasts),
        published=page_tables.published(findings),
        trials=page_tables.trial_table(findings, rows, differing),
        hardest_classes=hard.hardest_classes(alike),
        hard_of=alike[0].params.get("data.name") if len(alike) < len(found.ranked_trials) else None,
        hard_images=hard_images,
        kind="handwritten" if best.params.get("data.name") == "mnist" else "class",
        origin=common,
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "report.csv").write_text(page_tables.csv_text(columns, rows), encoding="utf-8")
    if len(findings.parents) == 1:
        tracker.client.log_artifacts(findings.parents[0], str(folder), REPORT)
    of_settings = [f"{axis}: {lines[0]}" for axis, lines in settings.items()]
    return Report(folder, (*told, *of_settings, *warnings))


def _folder_name(findings: Findings) -> str:
    name = UNSAFE.sub("-", findings.title).strip("-.")[:60] or "runs"
    return f"{name}-{findings.parents[0][:8]}" if len(findings.parents) == 1 else name


def pictures_of(
    findings: Findings, answers: Answers, curves: Sequence[plots.Curve]
) -> Iterator[Picture]:
    """The pictures that there is something to show on, the most telling first."""
    found, chosen, objective = findings.results, answers.layout, findings.results.objective
    scores = findings.scores()
    over_seeds = any(row.score.n > 1 for row in found.rows)
    if chosen.rows is not None:
        averaged = f" Averaged over {', '.join(chosen.averaged)}." if chosen.averaged else ""
        panels = f", a panel for each {chosen.panels}" if chosen.panels else ""
        yield Picture(
            "heat_map",
            f"Which {chosen.rows} and which {chosen.columns}?",
            f"{objective} over {chosen.rows} and {chosen.columns}{panels}; the colours' "
            f"scale stands on the right, the numbers in the table of configurations.{averaged}",
            plots.heat_map(scores, found.axes, chosen, objective),
        )
    if chosen.values:
        effects = {
            axis: level_means(scores, found.axes.index(axis), values)
            for axis, values in chosen.values.items()
        }
        caption = f"The mean {objective} at each value of a setting, the others averaged."
        if over_seeds:
            caption += (
                " Its interval is of that mean alone; the comparisons in words are paired, and "
                "sharper."
            )
        if answers.importance:
            shares = (f"{axis} {100 * share:.0f} %" for axis, share in answers.importance.items())
            caption += (
                " Share of the differences between trials that each accounts for by itself "
                f"(fANOVA): {', '.join(shares)}. What the seed accounts for is chance; what is "
                "left to 100 % is what they do only together, and chance, too."
            )
        yield Picture(
            "main_effects",
            "How much does each setting matter?",
            caption,
            plots.main_effects(effects, answers.importance, objective, chosen.scales),
        )
    if curves:
        below = plots.range_of_the_end(curves) is not None
        best = f"configuration of each {chosen.group}" if chosen.group else "configurations"
        yield Picture(
            "learning_curves",
            "Do they still improve?",
            f"The best {best}: {found.accuracy} by epoch"
            f"{'; the band goes over its seeds' * over_seeds}."
            + " The first epochs lie below the picture." * below,
            plots.trial_curves(curves, found.accuracy),
        )
    if costs := questions.costs(findings, chosen):
        yield Picture(
            "cost",
            "What does accuracy cost?",
            f"{objective} of each configuration against {' and '.join(costs)}.",
            plots.against_cost(costs, objective),
        )
    if len(chosen.values) > 1:
        trials, minimize = found.ranked_trials, found.minimize
        yield Picture(
            "parallel",
            "What do the good trials have in common?",
            f"Each line is a trial, from its settings to its {objective}; "
            "the stronger its colour, the better.",
            plots.parallel_coordinates(trials, chosen, objective, minimize),
        )


def _curves(tracker: Tracker, findings: Findings, chosen: Layout) -> list[plots.Curve]:
    """The best configuration of each value of the axis that has colours, or the best few."""
    found = findings.results
    rows = list(found.rows[:MAX_CURVES])
    if chosen.group is not None:
        place = found.axes.index(chosen.group)
        first = {row.values[place]: row for row in reversed(found.rows)}
        rows = [first[value] for value in chosen.values[chosen.group]]
    wanted = [record.run_id for row in rows for record in row.finished]
    histories = read.histories(tracker, wanted, found.accuracy)
    curves = []
    for row in rows:
        name = configuration(found.axes, row.values) or found.accuracy
        curves.append(plots.curve(name, [histories[record.run_id] for record in row.finished]))
    return [one for one in curves if len(one.epochs) > 1]


def rising_at(curves: Sequence[plots.Curve]) -> int | None:
    """The last epoch, where the accuracy still rises in it; `None` where it does not.

    It does where of most curves every seed's last value is above the means of all epochs before.
    """
    before = [curve.values[:, :-1].mean(0).max() for curve in curves]
    rising = [c for c, most in zip(curves, before, strict=True) if c.values[:, -1].min() > most]
    if 2 * len(rising) <= len(curves):
        return None
    return max(curve.epochs[-1] for curve in rising)


def _has_model(tracker: Tracker, trial: TrialRecord) -> bool:
    """Whether a trial's exported model is in the store."""
    try:
        model_of(tracker, tracker.client.get_run(trial.run_id))
    except UserError:
        return False
    return True
