"""Makes a sweep's report: page, pictures and CSV, on disk and as artifacts of the sweep's run."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_hydra.errors import UserError
from mnist_hydra.inference.exported import model_of
from mnist_hydra.ledger.parent import REPORT
from mnist_hydra.report import answer, hard, origin, page, published, questions, read, table
from mnist_hydra.report.importance import importances
from mnist_hydra.report.questions import Contrast, Layout, Lead
from mnist_hydra.report.read import Findings, short
from mnist_hydra.report.results import SEED, best_trial, trial_command
from mnist_hydra.tracking.tracker import Tracker

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnist_hydra.report import plots

MAX_TABLE_ROWS = 300
"""Rows of a table on the page; the CSV has all."""
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


@dataclass(frozen=True)
class Answers:
    """What was asked of the trials, and what came of it."""

    importance: Mapping[str, float]
    layout: Layout
    contrasts: Mapping[str, Sequence[Contrast]]
    leads: Sequence[Lead]


def ask(findings: Findings) -> Answers:
    """All statistics of the report."""
    importance = importances(*questions.points_of(findings))
    chosen = questions.layout(findings.axes, findings.scores(), importance)
    return Answers(
        importance, chosen, questions.contrasts(findings, chosen), questions.leads(findings)
    )


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Python's own is off meanwhile: over all that MLflow holds it takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@no_garbage_collection()
def make(tracker: Tracker, findings: Findings, output_dir: Path, data_dir: Path) -> Report:
    """Write a report below `output_dir` and record it with its sweep, where it is of one.

    Args:
        data_dir: where test images are looked for.
    """
    answers = ask(findings)
    folder = output_dir / "reports" / _folder_name(findings)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    curves = _curves(tracker, findings, answers.layout)
    for picture, figure in _pictures(findings, answers, curves):
        figure.savefig(folder / f"{picture.name}.png", dpi=PICTURE_DPI)
        drawn = page.svg(figure, picture.name)
        pictures.append(page.Picture(picture.name, picture.heading, picture.caption, drawn))
    thumbnails = []
    for thumbnail, sheet in _hard(tracker, findings, data_dir):
        thumbnails.append(thumbnail)
        if sheet is not None:
            sheet.savefig(folder / "hard_images.png", dpi=PICTURE_DPI)
    best = best_trial(findings.results)
    note = answer.of_command(findings, best, _has_model(tracker, best.run_id))
    command = (note, trial_command(best))
    origins = [origin.facts(entry, findings.results) for entry in findings.entries]
    whole = _page(findings, answers, pictures, thumbnails, command, origins, rising_at(curves))
    (folder / "report.html").write_text(page.html(whole), encoding="utf-8")
    (folder / "report.csv").write_text(table.csv_text(findings, origins), encoding="utf-8")
    if len(findings.parents) == 1:
        tracker.client.log_artifacts(findings.parents[0], str(folder), REPORT)
    settings = [f"{setting.axis}: {setting.overall}" for setting in whole.settings]
    return Report(folder, (*whole.answer, *settings, *whole.warnings))


def _what(findings: Findings) -> str:
    if not findings.parents:
        return "these runs"
    if findings.title.startswith("sweep over"):  # it has no name of its own
        return f"the {findings.title}"
    return ("sweep " if len(findings.parents) == 1 else "sweeps ") + findings.title


def _folder_name(findings: Findings) -> str:
    name = UNSAFE.sub("-", findings.title).strip("-.")[:60] or "runs"
    return f"{name}-{findings.parents[0][:8]}" if len(findings.parents) == 1 else name


def _pictures(
    findings: Findings, answers: Answers, curves: Sequence[plots.Curve]
) -> Iterator[tuple[page.Picture, Figure]]:
    """The pictures that there is something to show on, the most telling first."""
    from mnist_hydra.report import plots

    found, chosen = findings.results, answers.layout
    scores, objective = findings.scores(), found.objective
    if chosen.rows is not None:
        averaged = f" Averaged over {', '.join(chosen.averaged)}." if chosen.averaged else ""
        panels = f", a panel for each {chosen.panels}" if chosen.panels else ""
        yield (
            page.Picture(
                "heat_map",
                f"Which {chosen.rows} and which {chosen.columns}?",
                f"{objective} over {chosen.rows} and {chosen.columns}{panels}; the "
                "stronger the colour, the more. "
                f"The numbers stand in the table of configurations.{averaged}",
            ),
            plots.heat_map(scores, found.axes, chosen, objective),
        )
    if chosen.varied:
        effects = {axis: questions.means(findings, axis) for axis in chosen.varied}
        seeds = max(summary.n for values in effects.values() for summary in values.values())
        share = ", ".join(f"{a} {100 * s:.0f} %" for a, s in answers.importance.items())
        caption = (
            f"The mean {objective} at each value of a setting, the others averaged. Its interval "
            "is of that mean alone; the comparisons in words are paired, and sharper."
        )
        if share:
            caption += (
                f" Share of the differences between trials (fANOVA): {share}."
                " What the seed accounts for is chance."
            )
        yield (
            page.Picture("main_effects", "How much does each setting matter?", caption),
            plots.main_effects(effects, answers.importance, objective, seeds),
        )
    if curves:
        metric = f"{objective.partition('/')[0]}/acc"
        group = _best_of(chosen)
        below = plots.range_of_the_end(curves) is not None
        what = f"The best configuration of each {group}" if group else "The best configurations"
        yield (
            page.Picture(
                "learning_curves",
                "Do they still improve?",
                f"{what}: {metric} by epoch; the band goes from the lowest to the highest seed."
                + " The first epochs lie below the picture." * below,
            ),
            plots.trial_curves(curves, metric),
        )
    costs = table.costs(findings, _best_of(chosen), chosen)
    costs = {kind: points for kind, points in costs.items() if len({x for x, _, _ in points}) > 1}
    if costs:
        yield (
            page.Picture(
                "cost",
                "What does accuracy cost?",
                f"{objective} of each configuration against {' and '.join(costs)}.",
            ),
            plots.against_cost(costs, objective),
        )
    if len(chosen.varied) > 1:
        names, points, objectives = questions.points_of(findings)
        kept = [names.index(axis) for axis in chosen.varied]
        yield (
            page.Picture(
                "parallel",
                "What do the good trials have in common?",
                f"Each line is a trial, from its settings to its {objective}; "
                "the stronger its colour, the better.",
            ),
            plots.parallel_coordinates(
                chosen.varied,
                [[point[place] for place in kept] for point in points],
                objectives,
                chosen.values,
                objective,
                findings.minimize,
            ),
        )


def _curves(tracker: Tracker, findings: Findings, chosen: Layout) -> list[plots.Curve]:
    """The best configuration of each value of the panels' axis, or the best few."""
    from mnist_hydra.report.plots import curve

    found = findings.results
    group = _best_of(chosen)
    if group is not None:
        place = found.axes.index(group)
        first = {row.values[place]: row for row in reversed(found.rows)}
        rows = [first[value] for value in chosen.values[group][:MAX_CURVES]]
    else:
        rows = list(found.rows[: MAX_CURVES - 1])
    metric = f"{found.objective.partition('/')[0]}/acc"
    wanted = [record.run_id for row in rows for record in row.finished]
    histories = read.histories(tracker, wanted, metric)
    curves = []
    for row in rows:
        mine = [histories[record.run_id] for record in row.finished]
        curves.append(curve(answer.name(found.axes, row.values) or metric, mine))
    return [one for one in curves if len(one.epochs) > 1]


def rising_at(curves: Sequence[plots.Curve]) -> int | None:
    """The last epoch, where the accuracy still rises in it; `None` where it does not.

    It does where of most curves every seed's last value is above the mean of the epoch before.
    """
    rising = [curve for curve in curves if curve.lows[-1] > curve.means[-2]]
    if 2 * len(rising) <= len(curves):
        return None
    return max(curve.epochs[-1] for curve in rising)


def _best_of(chosen: Layout) -> str | None:
    """The axis of which each value has a colour of its own, if there is one."""
    if chosen.panels is not None:
        return chosen.panels
    few = [axis for axis in chosen.varied if len(chosen.values[axis]) <= MAX_CURVES]
    return few[0] if few else None


def _hard(
    tracker: Tracker, findings: Findings, data_dir: Path
) -> list[tuple[page.Thumbnail, Figure | None]]:
    """The images that most models get wrong, and on the first of them the sheet of all."""
    from mnist_hydra.report import plots

    rows = findings.results.rows
    runs = [record.run_id for row in rows for record in row.finished][: read.MAX_MISTAKES]
    found = read.mistakes(tracker, runs)
    images = hard.hardest(found)
    if not images:
        return []
    one = next(iter(found))
    root = read.data_root(tracker, one)
    test = hard.test_images(findings.by_run()[one], data_dir, root)
    if test is None:
        return []
    pixels, labels = test
    kind = "handwritten" if findings.by_run()[one].params["data.name"] == "mnist" else "class"
    drawn, captions = [], []
    for image in images:
        drawn.append(pixels[image.index])
        captions.append(
            (f"{labels[image.index]} → {image.taken_for}", f"{image.wrong} of {len(found)}")
        )
    sheet = plots.hard_images(
        pixels[[image.index for image in images]],
        [(what, str(image.wrong)) for (what, _), image in zip(captions, images, strict=True)],
        len(found),
    )
    return [
        (
            page.Thumbnail(
                hard.png_uri(image),
                f"{what}, {count} (no. {which.index})",
                f"{kind} {labels[which.index]}, test image {which.index}",
            ),
            sheet if place == 0 else None,
        )
        for place, (image, (what, count), which) in enumerate(
            zip(drawn, captions, images, strict=True)
        )
    ]


def _has_model(tracker: Tracker, run_id: str) -> bool:
    """Whether a run's exported model is in the store."""
    try:
        model_of(tracker, tracker.client.get_run(run_id).info.experiment_id, run_id)
    except UserError:
        return False
    return True


def _page(
    findings: Findings,
    answers: Answers,
    pictures: Sequence[page.Picture],
    thumbnails: Sequence[page.Thumbnail],
    command: tuple[str, str],
    origins: Sequence[Mapping[str, str]],
    last_rise: int | None,
) -> page.Page:
    found = findings.results
    whole = zip(findings.entries, origins, strict=True)
    read_origins = [facts for entry, facts in whole if entry.params]
    common, differing = origin.shared(read_origins)
    if findings.commands:
        common.pop("command", None)  # of the one trial; here stand those of the sweeps
    settings = []
    for axis in answers.layout.varied:
        lines = answer.setting(
            found.objective,
            axis,
            answers.contrasts.get(axis, ()),
            answers.layout,
            answers.importance.get(axis),
        )
        if lines:
            settings.append(page.Setting(axis, lines[0], lines[1:]))
    warnings = answer.same_thing(findings.same)
    if found.on_test_set:
        warnings.insert(0, answer.selected_on_test_set(findings))
    warnings += [
        f"The trials differ in {name}: see the table of every trial."
        for name in ("commit", "data SHA-256", "versions")
        if name in differing
    ]
    header, rows = table.configurations(findings, answers.leads, MAX_TABLE_ROWS)
    tables = {"configurations": page.Table(header, rows, _left_out(len(found.rows), len(rows)))}
    if answers.contrasts:
        compared = table.comparisons(found.objective, answers.contrasts)
        tables["comparisons"] = page.Table(*compared)
    tables["trials"] = _trials(findings, origins, differing)
    if beside := published.beside(findings):
        tables["published"] = _published(beside)
    by_run = findings.by_run()
    counted = [by_run[record.run_id] for row in found.rows for record in row.finished]
    errors = list(hard.class_errors(counted).items())[:3]
    return page.Page(
        title=f"What {_what(findings)} found",
        status=f"{findings.finished} of {findings.planned} trials finished: {len(found.rows)} "
        f"configurations ranked by {found.objective}, {found.at} epoch",
        answer=[
            *answer.winner(findings, answers.leads),
            *answer.in_brief(findings, answers.contrasts, answers.leads),
            *answer.advice(findings, answers.contrasts),
        ],
        warnings=warnings,
        settings=settings,
        trust=answer.trust(findings, answers.leads, last_rise),
        command_note=command[0],
        command=command[1],
        pictures=pictures,
        tables=tables,
        hard="The classes that are missed most, as the mean over all trials: "
        + ", ".join(f"{name} ({100 * share:.2f} % of its test images)" for name, share in errors)
        + "."
        if errors
        else "",
        thumbnails=thumbnails,
        origin=common,
        commands=[text for text in findings.commands if text],
    )


def _trials(
    findings: Findings, origins: Sequence[Mapping[str, str]], differing: Sequence[str]
) -> page.Table:
    found = findings.results
    named = SEED not in found.axes
    header = [*found.axes, *(["seed"] if named else []), "state", found.objective, "test/acc_last"]
    header += ["seconds", *differing, "run"]
    rows = []
    for entry, facts in list(zip(findings.entries, origins, strict=True))[:MAX_TABLE_ROWS]:
        swept = {axis.lstrip("+~"): text for axis, text in entry.record.values.items()}
        rows.append(
            [short(swept.get(axis, "")) for axis in found.axes]
            + ([entry.seed] if named else [])
            + [entry.record.state, _number(found.objective, entry.record.objective)]
            + [_number("test/acc", entry.metrics.get("test/acc_last"))]
            + ["–" if entry.seconds is None else f"{entry.seconds:.1f}"]
            + [facts.get(name, origin.UNKNOWN) for name in differing]
            + [entry.record.run_id]
        )
    return page.Table(header, rows, _left_out(len(findings.entries), len(rows)), "command")


def _published(found: Sequence[published.Beside]) -> page.Table:
    header = ["recipe", "last epoch, published", "last epoch, here", "seeds"]
    header += ["best epoch, published", "best epoch, here (selected on the test set)"]
    return page.Table(
        header,
        [
            [one.recipe, answer.value("test/acc", one.published_last)]
            + [answer.mean_with_interval("test/acc", one.last), str(one.last.n)]
            + [answer.value("test/acc", one.published_best)]
            + ["–" if one.best is None else answer.mean_with_interval("test/acc", one.best)]
            for one in found
        ],
    )


def _number(metric: str, number: float | None) -> str:
    return "–" if number is None else answer.value(metric, number)


def _left_out(all_: int, here: int) -> str:
    return f"{all_ - here} more are in report.csv." if all_ > here else ""
