"""A sweep's results: its configurations ranked by the objective, with statistics over seeds.

Pure functions over plain records: nothing here reads the ledger, a file or a clock.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, Literal

from mnist_hydra.cli.commands import shell_command
from mnist_hydra.ledger.plan import Plan, Planned
from mnist_hydra.ledger.trial import FINISHED, PRUNED, TIMEOUT, Trial
from mnist_hydra.metrics import is_finite, is_minimized, objective_value
from mnist_hydra.report import wording
from mnist_hydra.report.statistics import Summary, summary
from mnist_hydra.secrets import hide

if TYPE_CHECKING:
    from rich.console import Group

SEED = "seed"
MAX_LINES = 20
INTERVAL = "+/- (95 %)"
WIDE = 10_000
"""Characters of a line where there is no terminal, so that none is folded."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial, what came of it, and what made it."""

    values: Mapping[str, str]
    """What was swept: axis to value."""
    overrides: Sequence[str]
    """All of its overrides, in Hydra's order."""
    state: str
    """One of those in `trial.py`."""
    objective: float | None
    run_id: str
    note: str = ""
    """For a trial that did not finish: why, in a few words."""
    flags: Sequence[str] = ()
    """Hydra's own, by which a command finds the same configuration files."""
    seed: str = ""
    """Empty where it is not known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""
    seconds: float | None = None
    """That its attempts took."""
    began_s: float | None = None
    """When its run began, in seconds since 1970; `None` where that was not read."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Of its run; empty where that was not read."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of its run; where that was not read, what the ledger has of them."""

    @property
    def counts(self) -> bool:
        """Whether it is ranked: it has finished, with a finite objective."""
        finite = self.objective is not None and is_finite(self.objective)
        return self.state == FINISHED and finite

    @property
    def came_out(self) -> tuple[float | None, dict[str, float]]:
        """What two trials have in common that are the same training: objective, all losses and
        accuracies. An accuracy alone may be that of chance.
        """
        return self.objective, {name: x for name, x in self.metrics.items() if "/" in name}

    @property
    def score(self) -> float:
        """The objective of a trial that counts."""
        assert self.objective is not None
        return self.objective

    @property
    def parameters(self) -> int | None:
        """How many the model has; `None` where that is not known."""
        return int(text) if (text := self.tags.get("weights", "")).isdigit() else None


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
    score: Summary
    """Of the objective over those that finished."""


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

    @property
    def minimize(self) -> bool:
        """Whether less of the objective is better."""
        return is_minimized(self.objective)

    @property
    def swept(self) -> tuple[str, ...]:
        """The axes, the seed among them where it was one."""
        return (*self.axes, SEED) if self.over_seed else self.axes

    @property
    def on_test_set(self) -> bool:
        """Whether the objective is of the test set, so that it must not be used to choose."""
        return self.objective.startswith("test/")

    @property
    def accuracy(self) -> str:
        """The accuracy on the images that the objective is of."""
        return f"{self.objective.partition('/')[0]}/acc"

    @property
    def ranked_trials(self) -> list[TrialRecord]:
        """The trials that have a rank, those of the best configuration first."""
        return [record for row in self.rows for record in row.finished]


def record_of_trial(
    trial: Trial, planned: Planned, plan: Plan, metric: str, by_epoch: Mapping[int, float] | None
) -> TrialRecord:
    """A trial as a record, as far as the ledger has it; only a finished one has an objective.

    Args:
        plan: of the command that `planned` is of.
        metric: the objective's name.
        by_epoch: the metric by epoch, where its best one counts; `None` where the last one does.
    """
    values, objective = values_of(planned.overrides), trial.metrics.get(metric)
    if by_epoch is not None:
        objective = objective_value(by_epoch, "best", is_minimized(metric))
    return TrialRecord(
        values,
        plan.arguments.overrides(planned.overrides),
        trial.state,
        objective if trial.state == FINISHED else None,
        trial.run_id,
        note=reason(trial.error, trial.state),
        flags=plan.flags,
        seed=values.get(SEED, ""),
        metrics=trial.metrics,
        seconds=sum(attempt.end.seconds for attempt in trial.attempts if attempt.end),
        tags=trial.made_by,
    )


def reason(error: str, state: str) -> str:
    """Why a trial failed, in one line: the first one of what was raised, which may have many.

    Args:
        error: as its attempt recorded it, with a traceback or without.
        state: how the attempt ended.
    """
    lines = error.strip().splitlines() or [""]
    frames = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if not frames or state == TIMEOUT:  # whose last line says after how long
        return lines[-1]
    after = dropwhile(lambda line: line.startswith(" "), lines[frames[-1] :])
    raised = [line.strip() for line in after if line.strip()] or lines[-1:]
    return " ".join(raised[: 2 if raised[0].endswith(":") else 1])


def values_of(overrides: Iterable[str]) -> dict[str, str]:
    """What overrides set: of `+model.width=64` the axis `model.width` and `64`."""
    pairs = (override.partition("=") for override in overrides)
    return {bare_key(key): text for key, _, text in pairs}


def bare_key(key: str) -> str:
    """An override's key without the signs that add or remove it."""
    return key.lstrip("+~")


def ranked(
    records: Sequence[TrialRecord],
    axes: Iterable[str],
    objective: str,
    at: str = "last",
) -> Results:
    """Rank the configurations by the mean of their finished trials' objectives.

    A configuration of which no trial finished has no rank, and its trials are found in `apart`.
    Configurations with equal means keep the order of the records.

    Args:
        records: the sweep's trials, in the order in which they are to be listed.
        axes: what was swept, the seed among it where it was.
        objective: the metric's name, by which it is known whether less of it is better.
        at: the epoch that it was taken at, `last` or `best`.
    """
    axes = tuple(axes)
    others = tuple(axis for axis in axes if axis != SEED)
    groups: dict[tuple[str, ...], list[TrialRecord]] = {}
    for record in records:
        groups.setdefault(tuple(record.values.get(axis, "") for axis in others), []).append(record)
    scored = []
    for values, group in groups.items():
        if finished := tuple(record for record in group if record.counts):
            scored.append((summary([r.score for r in finished]), values, finished, len(group)))
    sign = 1 if is_minimized(objective) else -1
    scored.sort(key=lambda entry: sign * entry[0].mean)
    ranks: dict[float, int] = {}
    rows = tuple(
        Row(ranks.setdefault(score.mean, place), values, finished, trials, score)
        for place, (score, values, finished, trials) in enumerate(scored, start=1)
    )
    apart = tuple(record for record in records if not record.counts)
    return Results(objective, at, others, SEED in axes, rows, apart)


def best_command(results: Results) -> str | None:
    """The first configuration as a shell command that trains it once; `None` if none finished.

    What only concerns the sweep (`sweep.*`, `hydra.*`) is left out, and so is the seed where the
    mean is over several.
    """
    if not results.rows:
        return None
    first, *others = results.rows[0].finished
    return trial_command(first, with_seed=not others)


def trial_command(record: TrialRecord, *, with_seed: bool = True) -> str:
    """The shell command that trains a trial by itself, without what only concerns its sweep.

    Like every record of a command it has no password.
    """
    overrides = [
        hide(override)
        for override in record.overrides
        if not bare_key(override).startswith(("sweep.", "hydra.", "hydra/"))
        and (with_seed or bare_key(override.partition("=")[0]) != SEED)
    ]
    return shell_command("train", [*record.flags, *overrides])


def by_last_epoch(results: Results) -> list[TrialRecord]:
    """The ranked trials with what they reached in the last epoch, which their models are of."""
    metric = results.objective.removesuffix("_best")
    last = [replace(one, objective=one.metrics.get(metric)) for one in results.ranked_trials]
    return [record for record in last if record.counts]


def best_of(records: Sequence[TrialRecord], minimize: bool) -> TrialRecord:
    """The best of trials that count, at least one."""
    return (min if minimize else max)(records, key=lambda record: record.score)


def ranking_csv(results: Results) -> str:
    """The table as CSV, unrounded, with the trials that have no rank below it.

    Accuracies are shares (0 to 1). Beyond the table's columns it has each row's state, runs and
    seeds; several in one cell are separated by spaces.
    """
    head = ["rank", *results.axes, SEED, "n", results.objective, "half_width_95"]
    rows: list[list[Any]] = [[*head, "state", "run_id"]]
    for row in results.rows:
        seeds = " ".join(record.seed for record in row.finished)
        runs = " ".join(record.run_id for record in row.finished)
        score = [row.score.n, row.score.mean, row.score.half_width]
        rows.append([row.rank, *row.values, seeds, *score, FINISHED, runs])
    for record in results.apart:
        values = [record.values.get(axis, "") for axis in results.axes]
        score = [0, record.objective, None]
        rows.append([None, *values, record.seed, *score, record.state, record.run_id])
    return as_csv(rows)


def as_csv(rows: Iterable[Iterable[Any]]) -> str:
    """Rows as CSV: numbers with all of their digits, nothing for `None`."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def sweep_metrics(results: Results) -> dict[str, float]:
    """What the parent run is given as metrics; at least one trial has finished.

    The objective itself is the mean of the first configuration, `best` the best trial's, and
    `mean` that of all trials.
    """
    name, trials = results.objective, results.ranked_trials
    return {
        name: results.rows[0].score.mean,
        f"{name}/best": best_of(trials, results.minimize).score,
        f"{name}/mean": statistics.fmean(record.score for record in trials),
    }


def question(results: Results) -> str:
    """What a sweep asked, in a sentence."""
    swept = wording.listed(results.axes or [SEED])
    most = "lowest" if results.minimize else "highest"
    gives = "give" if len(results.axes) > 1 else "gives"
    return f"Which {swept} {gives} the {most} {results.objective}?"


def first_place(results: Results) -> str:
    """Which configuration is first, of at least one, and what it reaches, in a sentence."""
    first, count = results.rows[0], len(results.rows)
    what = wording.configuration(results.axes, first.values) or "The one configuration"
    ties = sum(row.rank == 1 for row in results.rows)
    place = f" comes first of {count}" if count > 1 else ""
    if ties > 1:
        place = f" shares the first place of {count} with {ties - 1} more"
    over = f", the mean of {first.score.n} seeds and its 95 % interval" * (first.score.n > 1)
    reached = wording.mean_with_interval(results.objective, first.score)
    return f"{what}{place}: {results.objective} {reached}{over}."


def brief_answer(results: Results) -> str:
    """What came out, in a sentence or two."""
    if not results.rows:
        return "No trial has finished."
    told = first_place(results)
    if results.on_test_set:
        return told + " It was ranked on the test set, so this is no ground for choosing it."
    if len(results.rows) > 1 and results.rows[0].score.n == 1:
        return told + " With one seed each, small differences may be chance."
    return told


def grid(results: Results, limit: int) -> list[list[str]]:
    """The ranking as cells, the columns' names first; at most `limit` configurations."""
    cells = [["rank", *results.axes, "n", results.objective, INTERVAL]]
    for row in results.rows[:limit]:
        n, score = len(row.finished), row.score
        of_all = f"{n}" if n == row.trials else f"{n} of {row.trials}"
        reached = wording.value(results.objective, score.mean)
        half = wording.width(results.objective, score.half_width)
        cells.append([str(row.rank), *map(wording.short, row.values), of_all, reached, half])
    return cells if results.over_seed else [row[:-1] for row in cells]


def heading(results: Results) -> str:
    """What the table is ranked by."""
    on = {"val": " on the hold-out", "test": " on the test set"}
    where = on.get(results.objective.partition("/")[0], "")
    when = "in the best epoch" if results.at == "best" else "in the last epoch"
    how = "mean over seeds and its 95 % interval, " if results.over_seed else ""
    warning = "; no ground for choosing" if results.on_test_set else ""
    return f"Configurations by {results.objective}{where} ({how}{when}){warning}"


def table(results: Results, *, boxed: bool) -> Group:
    """The ranking for people: what it is ranked by, and a rich table.

    Args:
        boxed: with lines and folded to the terminal; else in plain columns, as for a file.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names, *rows = grid(results, MAX_LINES)
    shown = Table(box=box.HEAVY_HEAD if boxed else None, pad_edge=boxed)
    for column in names:
        justify: Literal["left", "right"] = "left" if column in results.axes else "right"
        shown.add_column(Text(column), justify=justify, overflow="fold")
    for cells, row in zip(rows, results.rows):
        style = "bold" if row.rank == 1 and not results.on_test_set else ""
        shown.add_row(*map(Text, cells), style=style)
    return Group(Text(heading(results), style="bold"), shown)


def print_table(results: Results) -> None:
    """Print the ranking, where there is one."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    if results.rows:
        console.print(table(results, boxed=console.is_terminal))


def footer(results: Results) -> list[str]:
    """What stands below the ranking: what it leaves out, its caveats, and the best as a command."""
    told = []
    rows, apart = results.rows, results.apart
    if len(rows) > MAX_LINES:
        told.append(f"{len(rows) - MAX_LINES} more in results.csv")
    ties = sum(row.rank == 1 for row in rows)
    if ties > 1:
        told.append(f"{ties} configurations share the first rank")
    if any(len(row.finished) < row.trials for row in rows):
        told.append("some means are of fewer trials than others: see n")
    for record in sorted(apart, key=lambda record: record.state == PRUNED)[:MAX_LINES]:
        told.append(_without_rank(record, results.objective))
    if len(apart) > MAX_LINES:
        told.append(f"{len(apart) - MAX_LINES} more without a rank in results.csv")
    command = best_command(results)
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


def _without_rank(record: TrialRecord, objective: str) -> str:
    swept = ", ".join(map("=".join, record.values.items()))
    why = f"no finite {objective}" if record.state == FINISHED else record.state
    note = f": {record.note}" if record.note else ""
    return f"{why}: {swept or 'no axis'} (run {record.run_id}){note}"
