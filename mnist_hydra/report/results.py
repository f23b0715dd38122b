"""A sweep's results: its configurations ranked by the objective, with statistics over seeds.

Pure functions over plain records: nothing here reads the ledger, a file or a clock.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mnist_hydra.cli.commands import shell_command
from mnist_hydra.ledger.trial import FINISHED, PRUNED, Trial
from mnist_hydra.secrets import hide

if TYPE_CHECKING:
    from rich.console import Group

SEED = "seed"
MAX_LINES = 20
CONFIDENCE = 0.95


@dataclass(frozen=True)
class TrialRecord:
    """One trial."""

    values: Mapping[str, str]
    """What was swept: axis to value, both as in an override."""
    overrides: Sequence[str]
    """All of its overrides, in Hydra's order."""
    state: str
    """One of those in `trial.py`."""
    objective: float | None
    run_id: str
    note: str = ""
    """For a trial that did not finish: why, in a few words."""

    @property
    def counts(self) -> bool:
        """Whether it is ranked: it has finished, with a finite objective."""
        finite = self.objective is not None and math.isfinite(self.objective)
        return self.state == FINISHED and finite


@dataclass(frozen=True)
class Row:
    """One configuration: the trials that differ in nothing but their seed."""

    rank: int
    """From 1; equal means share a rank."""
    values: tuple[str, ...]
    """One for each of `Results.axes`."""
    finished: tuple[TrialRecord, ...]
    """The trials whose mean is taken, at least one."""
    trials: int
    """How many trials there are, finished or not."""
    mean: float
    half_width: float | None
    """Half of the mean's 95 % interval; `None` with one trial."""


@dataclass(frozen=True)
class Results:
    """A sweep's configurations, ranked, and the trials that are not ranked."""

    objective: str
    """The metric's name."""
    at: str
    """The epoch that it was taken at, `last` or `best`."""
    axes: tuple[str, ...]
    """What was swept, but for the seed."""
    over_seed: bool
    """Whether the seed was an axis."""
    rows: tuple[Row, ...]
    """The best first."""
    apart: tuple[TrialRecord, ...]
    """Trials that failed, were pruned, did not end, or have no finite objective."""
    minimize: bool = False
    """Whether less of the objective is better."""

    @property
    def on_test_set(self) -> bool:
        """Whether the objective is of the test set, so that it must not be used to choose."""
        return self.objective.startswith("test/")


def record_of_trial(
    trial: Trial, values: Mapping[str, str], overrides: Sequence[str], objective: float | None
) -> TrialRecord:
    """A trial as a record; only a finished one has an objective.

    Args:
        values, overrides: as in `TrialRecord`.
    """
    return TrialRecord(
        values,
        overrides,
        trial.state,
        objective if trial.state == FINISHED else None,
        trial.run_id,
        note=trial.error.strip().rpartition("\n")[2],
    )


def ranked(
    records: Sequence[TrialRecord],
    axes: Sequence[str],
    objective: str,
    *,
    minimize: bool = False,
    at: str = "last",
) -> Results:
    """Rank the configurations by the mean of their finished trials' objectives.

    A configuration of which no trial finished has no rank, and its trials are found in `apart`.
    Configurations with equal means keep the order of the records.

    Args:
        records: the sweep's trials, in the order in which they are to be listed.
        axes: the keys of `TrialRecord.values`, as they were typed.
        objective: the metric's name.
        minimize: whether less of it is better.
        at: the epoch that it was taken at, `last` or `best`.
    """
    others = [axis for axis in axes if _plain(axis) != SEED]
    groups: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(tuple(record.values.get(axis, "") for axis in others), []).append(record)
    scored = []
    for values, group in groups.items():
        finished = tuple(record for record in group if record.counts)
        if finished:
            scores = [float(record.objective or 0.0) for record in finished]
            mean = statistics.fmean(scores)
            scored.append((mean, values, finished, len(group), half_width(scores)))
    scored.sort(key=lambda entry: entry[0] if minimize else -entry[0])
    rows: list[Row] = []
    for place, (score, values, finished, trials, width) in enumerate(scored, start=1):
        rank = rows[-1].rank if rows and rows[-1].mean == score else place
        rows.append(Row(rank, values, finished, trials, score, width))
    return Results(
        objective,
        at,
        tuple(_plain(axis) for axis in others),
        len(others) < len(axes),
        tuple(rows),
        tuple(record for record in records if not record.counts),
        minimize,
    )


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean of normal values; `None` for less than two."""
    if len(values) < 2:
        return None
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    quantile = stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)
    return float(quantile) * statistics.stdev(values) / math.sqrt(len(values))


def best_command(results: Results, flags: Sequence[str] = ()) -> str | None:
    """The first configuration as a shell command that trains it once; `None` if none finished.

    What only concerns the sweep (`sweep.*`, `hydra.*`) is left out, and so is the seed where the
    mean is over several.

    Args:
        flags: Hydra's own, by which the command finds the same configuration files.
    """
    if not results.rows:
        return None
    first, *others = results.rows[0].finished
    return trial_command(first, flags, with_seed=not others)


def trial_command(
    record: TrialRecord, flags: Sequence[str] = (), *, with_seed: bool = True
) -> str:
    """The shell command that trains a trial by itself, without what only concerns its sweep.

    Like every record of a command it has no password.

    Args:
        flags: as in `best_command`.
    """
    overrides = [
        hide(override)
        for override in record.overrides
        if not _of_the_sweep(override)
        and (with_seed or _plain(override.partition("=")[0]) != SEED)
    ]
    return shell_command("train", [*flags, *overrides])


def best_trial(results: Results) -> TrialRecord:
    """The best trial of the first configuration; at least one has finished."""
    better = min if results.minimize else max
    return better(results.rows[0].finished, key=lambda record: record.objective or 0.0)


def ranking_csv(results: Results) -> str:
    """The table as CSV, unrounded, with the trials that have no rank below it.

    Accuracies are shares (0 to 1). Beyond the table's columns it has each row's state and runs,
    and its seeds where the seed was an axis; several in one cell are separated by spaces.
    """
    seeds = results.over_seed
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["rank", *results.axes, *["seed"] * seeds, "n", results.objective]
        + [*["half_width_95"] * seeds, "state", "run_id"]
    )
    for row in results.rows:
        width = "" if row.half_width is None else repr(row.half_width)
        writer.writerow(
            [row.rank, *row.values, *[" ".join(map(_seed, row.finished))] * seeds]
            + [len(row.finished), repr(row.mean), *[width] * seeds, FINISHED]
            + [" ".join(record.run_id for record in row.finished)]
        )
    for record in results.apart:
        value = "" if record.objective is None else repr(record.objective)
        swept = {_plain(axis): text for axis, text in record.values.items()}
        others = [swept.get(axis, "") for axis in results.axes]
        writer.writerow(
            ["", *others, *[_seed(record)] * seeds, 0, value]
            + [*[""] * seeds, record.state, record.run_id]
        )
    return file.getvalue()


def sweep_metrics(results: Results) -> dict[str, float]:
    """What the parent run is given as metrics; at least one trial has finished.

    The objective itself is the mean of the first configuration, `best` the best trial's, and
    `mean` that of all trials.
    """
    name = results.objective
    values = [float(record.objective or 0.0) for row in results.rows for record in row.finished]
    best = min(values) if results.minimize else max(values)
    mean = statistics.fmean(values)
    return {name: results.rows[0].mean, f"{name}/best": best, f"{name}/mean": mean}


def question(results: Results) -> str:
    """What a sweep asked, in a sentence."""
    *others, last = results.axes or ("seed",)
    swept = f"{', '.join(others)} and {last}" if others else last
    most = "lowest" if results.minimize else "highest"
    return f"Which {swept} {'give' if others else 'gives'} the {most} {results.objective}?"


def answer(results: Results) -> str:
    """What came out, in a sentence or two."""
    if not results.rows:
        return "No trial has finished."
    first, count = results.rows[0], len(results.rows)
    values = ", ".join(map("=".join, zip(results.axes, first.values))) or "The one configuration"
    seeds = len(first.finished)
    score, *width = _cells(results, first)[len(first.values) + 2 :]
    score = " ± ".join([score, *width]) if first.half_width is not None else score
    over = f", the mean of {seeds} seeds" if seeds > 1 else ""
    among = f", the first of {count} configurations" if count > 1 else ""
    told = f"{values}: {results.objective} {score}{over}{among}."
    if results.on_test_set:
        return told + " It was ranked on the test set, so this is no ground for choosing it."
    if count > 1 and seeds == 1:
        return told + " With one seed each, small differences may be chance."
    return told


def grid(results: Results, limit: int | None) -> list[list[str]]:
    """The ranking as cells, the columns' names first; at most `limit` configurations."""
    names = [name for name, _ in _columns(results)]
    return [names, *(_cells(results, row) for row in results.rows[:limit])]


def heading(results: Results) -> str:
    """What the table is ranked by."""
    on = {"val": " on the hold-out", "test": " on the test set"}
    where = on.get(results.objective.partition("/")[0], "")
    when = "in the best epoch" if results.at == "best" else "in the last epoch"
    how = "mean over seeds and its 95 % interval, " if results.over_seed else ""
    warning = "; no ground for choosing" if results.on_test_set else ""
    return f"Configurations by {results.objective}{where} ({how}{when}){warning}"


def table(results: Results, limit: int | None = MAX_LINES) -> Group:
    """The ranking for a terminal: what it is ranked by, and a rich table.

    Args:
        limit: how many configurations at most; `None` for all.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    shown = Table()
    for name, numeric in _columns(results):
        shown.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in results.rows[:limit]:
        style = "bold" if row.rank == 1 and not results.on_test_set else ""
        shown.add_row(*(Text(cell) for cell in _cells(results, row)), style=style)
    return Group(Text(heading(results), style="bold"), shown)


def lines(results: Results, limit: int | None = MAX_LINES) -> list[str]:
    """The ranking as plain lines, what it is ranked by first.

    Args:
        limit: how many configurations at most; `None` for all.
    """
    columns, cells = _columns(results), grid(results, limit)
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    plain = [
        "  ".join(
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, (_, numeric) in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    ]
    return [heading(results), *plain] if results.rows else [heading(results)]


def footer(
    results: Results, limit: int | None = MAX_LINES, flags: Sequence[str] = ()
) -> list[str]:
    """What stands below the ranking: what it leaves out, its caveats, and the best as a command.

    Args:
        limit: how many configurations were shown, and how many trials without a rank are listed.
        flags: see `best_command`.
    """
    told = []
    rows, apart = results.rows, results.apart
    hidden = len(rows) - len(rows[:limit])
    if hidden:
        told.append(f"{hidden} more in results.csv")
    ties = sum(row.rank == 1 for row in rows)
    if ties > 1:
        told.append(f"{ties} configurations share the first rank")
    if any(len(row.finished) < row.trials for row in rows):
        told.append("some means are of fewer trials than others: see n")
    for record in sorted(apart, key=lambda record: record.state == PRUNED)[:limit]:
        told.append(_without_rank(record, results.objective))
    if len(apart) > len(apart[:limit]):
        told.append(f"{len(apart) - len(apart[:limit])} more without a rank in results.csv")
    command = best_command(results, flags)
    if command is None:
        return [*told, "no trial finished, so there is no best configuration"]
    if results.on_test_set:
        told.append(
            f"{results.objective} is of the test set, since there is no hold-out: no ground for "
            "choosing a configuration. data.val_size=5000 makes one"
        )
    first = "first in the table" if results.on_test_set else "best"
    seeds = ", with any seed" if len(rows[0].finished) > 1 else ""
    return [*told, f"{first}{seeds}:", f"  {command}"]


def _columns(results: Results) -> list[tuple[str, bool]]:
    """Name of each column, and whether it is numbers."""
    width = [("+/- (95 %)", True)] if results.over_seed else []
    axes = [(axis, False) for axis in results.axes]
    return [("rank", True), *axes, ("n", True), (results.objective, True), *width]


def _cells(results: Results, row: Row) -> list[str]:
    count = len(row.finished)
    digits = 3 if results.over_seed else 2
    percent = "acc" in results.objective.rpartition("/")[2]

    def number(value: float) -> str:
        return f"{100 * value:.{digits}f} %" if percent else f"{value:.{digits + 3}g}"

    width = "-" if row.half_width is None else number(row.half_width)
    return [
        str(row.rank),
        *row.values,
        str(count) if count == row.trials else f"{count} of {row.trials}",
        number(row.mean),
        *([width] if results.over_seed else []),
    ]


def _without_rank(record: TrialRecord, objective: str) -> str:
    swept = ", ".join(f"{_plain(axis)}={value}" for axis, value in record.values.items())
    why = f"no finite {objective}" if record.state == FINISHED else record.state
    note = f": {record.note}" if record.note else ""
    return f"{why}: {swept or 'no axis'} (run {record.run_id}){note}"


def _plain(key: str) -> str:
    return key.lstrip("+~")


def _seed(record: TrialRecord) -> str:
    return next((value for axis, value in record.values.items() if _plain(axis) == SEED), "")


def _of_the_sweep(override: str) -> bool:
    return _plain(override).startswith(("sweep.", "hydra.", "hydra/"))
