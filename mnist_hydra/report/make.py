"""Makes a sweep's report: page, pictures and CSV, on disk and as artifacts of the sweep's run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mnist_hydra.errors import UserError
from mnist_hydra.inference.exported import model_of
from mnist_hydra.ledger.parent import REPORT
from mnist_hydra.report import answer, hard, page, plots, published, questions, read, table
from mnist_hydra.report.page import Picture
from mnist_hydra.report.questions import Answers, Layout
from mnist_hydra.report.read import Findings
from mnist_hydra.report.results import TrialRecord, best_of, trial_command
from mnist_hydra.report.statistics import level_means
from mnist_hydra.report.wording import configuration
from mnist_hydra.tracking.tracker import Tracker

MAX_CURVES = 6
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


def make(tracker: Tracker, findings: Findings, output_dir: Path, data_dir: Path) -> Report:
    """Write a report below `output_dir` and record it with its sweep, where it is of one.

    Args:
        data_dir: where test images are looked for.
    """
    answers = questions.ask(findings)
    curves = _curves(tracker, findings, answers.layout)
    hard_images = hard.hard_images(tracker, findings.results.ranked, data_dir)
    folder = output_dir / "reports" / _folder_name(findings)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = list(pictures_of(findings, answers, curves))
    for picture in pictures:
        picture.figure.savefig(folder / f"{picture.name}.png", dpi=PICTURE_DPI)
    if hard_images:
        sheet = plots.hard_sheet(hard_images)
        sheet.savefig(folder / "hard_images.png", dpi=PICTURE_DPI)
    best = best_of(findings.results.rows[0].finished, findings.results.minimize)
    origins = [table.origin_of(record, findings.results) for record in findings.records]
    read_origins = [facts for record, facts in zip(findings.records, origins) if record.params]
    common, differing = table.shared_facts(read_origins)
    if findings.commands:
        common.pop("command", None)  # of the one trial; here stand those of the sweeps
    columns, rows = table.every_trial(findings, origins)
    told, rising = answer.in_words(findings, answers), rising_at(curves)
    warnings = answer.warnings(findings, differing, rising)
    settings = answer.settings(findings, answers)
    html = page.html(
        title=f"What {_what(findings)} found",
        status=answer.status(findings),
        answer=told,
        warnings=warnings,
        settings=settings,
        trust=answer.trust(findings, answers.leads, rising),
        command_note=answer.of_command(findings, best, _has_model(tracker, best)),
        command=trial_command(best),
        pictures=pictures,
        tables={
            "configurations": table.configurations(findings, answers.leads),
            "comparisons": table.comparisons(findings.results.objective, answers.contrasts),
            "published": published.beside(findings),
            "trials": table.trial_table(findings, rows, differing),
        },
        hardest_classes=hard.hardest_classes(findings.results.ranked),
        hard_images=hard_images,
        kind="handwritten" if best.params.get("data.name") == "mnist" else "class",
        origin=common,
        commands=[command for command in findings.commands if command],
    )
    (folder / "report.html").write_text(html, encoding="utf-8")
    (folder / "report.csv").write_text(table.csv_text(columns, rows), encoding="utf-8")
    if len(findings.parents) == 1:
        tracker.client.log_artifacts(findings.parents[0], str(folder), REPORT)
    of_settings = [f"{axis}: {lines[0]}" for axis, lines in settings.items()]
    return Report(folder, (*told, *of_settings, *warnings))


def _what(findings: Findings) -> str:
    if not findings.parents:
        return "these runs"
    if findings.title.startswith("sweep over"):  # it has no name of its own
        return f"the {findings.title}"
    return ("sweep " if len(findings.parents) == 1 else "sweeps ") + findings.title


def _folder_name(findings: Findings) -> str:
    name = UNSAFE.sub("-", findings.title).strip("-.")[:60] or "runs"
    return f"{name}-{findings.parents[0][:8]}" if len(findings.parents) == 1 else name


def pictures_of(
    findings: Findings, answers: Answers, curves: Sequence[plots.Curve]
) -> Iterator[Picture]:
    """The pictures that there is something to show on, the most telling first."""
    found, chosen, objective = findings.results, answers.layout, findings.results.objective
    scores, group = findings.scores(), _best_of(answers.layout)
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
    if chosen.varied:
        effects = {
            axis: level_means(scores, found.axes.index(axis), chosen.values[axis])
            for axis in chosen.varied
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
                f" Share of the differences between trials (fANOVA): {', '.join(shares)}."
                " What the seed accounts for is chance."
            )
        yield Picture(
            "main_effects",
            "How much does each setting matter?",
            caption,
            plots.main_effects(effects, answers.importance, objective, chosen.scales),
        )
    if curves:
        metric = _accuracy(objective)
        below = plots.range_of_the_end(curves) is not None
        what = f"The best configuration of each {group}" if group else "The best configurations"
        yield Picture(
            "learning_curves",
            "Do they still improve?",
            f"{what}: {metric} by epoch{'; the band goes over its seeds' * over_seeds}."
            + " The first epochs lie below the picture." * below,
            plots.trial_curves(curves, metric),
        )
    if costs := questions.costs(findings, chosen, group):
        yield Picture(
            "cost",
            "What does accuracy cost?",
            f"{objective} of each configuration against {' and '.join(costs)}.",
            plots.against_cost(costs, objective),
        )
    if len(chosen.varied) > 1:
        values = {axis: chosen.values[axis] for axis in chosen.varied}
        yield Picture(
            "parallel",
            "What do the good trials have in common?",
            f"Each line is a trial, from its settings to its {objective}; "
            "the stronger its colour, the better.",
            plots.parallel_coordinates(
                found.ranked, values, objective, found.minimize, chosen.scales
            ),
        )


def _curves(tracker: Tracker, findings: Findings, chosen: Layout) -> list[plots.Curve]:
    """The best configuration of each value of the panels' axis, or the best few."""
    found, group = findings.results, _best_of(chosen)
    rows = list(found.rows[: MAX_CURVES - 1])
    if group is not None:
        place = found.axes.index(group)
        first = {row.values[place]: row for row in reversed(found.rows)}
        rows = [first[value] for value in chosen.values[group][:MAX_CURVES]]
    metric = _accuracy(found.objective)
    wanted = [record.run_id for row in rows for record in row.finished]
    histories = read.histories(tracker, wanted, metric)
    curves = [
        plots.curve(
            configuration(found.axes, row.values) or metric,
            [histories[record.run_id] for record in row.finished],
        )
        for row in rows
    ]
    return [one for one in curves if len(one.epochs) > 1]


def rising_at(curves: Sequence[plots.Curve]) -> int | None:
    """The last epoch, where the accuracy still rises in it; `None` where it does not.

    It does where of most curves every seed's last value is above the mean of the epoch before.
    """
    rising = [curve for curve in curves if curve.values[:, -1].min() > curve.values[:, -2].mean()]
    if 2 * len(rising) <= len(curves):
        return None
    return max(curve.epochs[-1] for curve in rising)


def _accuracy(objective: str) -> str:
    """The accuracy on the images that the objective is of."""
    return f"{objective.partition('/')[0]}/acc"


def _best_of(chosen: Layout) -> str | None:
    """The axis of which each value has a colour of its own, if there is one."""
    if chosen.panels is not None:
        return chosen.panels
    return next((axis for axis in chosen.varied if len(chosen.values[axis]) <= MAX_CURVES), None)


def _has_model(tracker: Tracker, trial: TrialRecord) -> bool:
    """Whether a trial's exported model is in the store."""
    try:
        experiment_id = tracker.client.get_run(trial.run_id).info.experiment_id
        model_of(tracker, experiment_id, trial.run_id)
    except UserError:
        return False
    return True
