"""The report's tables, for the page and as CSV.

They are functions of what was read alone, and of `published.yaml`: the three published experiments.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml  # type: ignore[import-untyped]

from mnist_hydra.report.page import Table
from mnist_hydra.report.questions import Contrasts
from mnist_hydra.report.read import Findings, plain
from mnist_hydra.report.results import (
    SEED,
    Results,
    Row,
    TrialRecord,
    as_csv,
    grid,
    trial_command,
)
from mnist_hydra.report.statistics import Difference, means_by_name, summary
from mnist_hydra.report.wording import gain, interval, mean_with_interval, short, value, width
from mnist_hydra.tracking import tag

MAX_ROWS = 300
"""Of a table on the page; the CSV has all."""
COMPUTED_WITH = ("precision", "threads")
PARTS = ("model.", "aug.", "optimizer.", "scheduler.")
UNKNOWN = "not read"
Cell = str | int | float | None


def configurations(findings: Findings, leads: Sequence[Difference]) -> Table:
    """Each configuration over its seeds: the ranking as a terminal has it, and what else is known.

    A column that says the same as the objective's in each row is left out, and one that says
    nothing.

    Args:
        leads: what the first gains over each other one.
    """
    found = findings.results
    names, *ranking = grid(found, MAX_ROWS)
    rows = found.rows[:MAX_ROWS]
    more = {
        "on the test set": [_metric("test/acc_last", row) for row in rows],
        "behind the first": ["", *(_behind(found.objective, lead) for lead in leads)],
        "std. dev.": [width(found.objective, row.score.deviation) for row in rows],
        f"{found.accuracy} at best epoch": [_metric(f"{found.accuracy}_best", row) for row in rows],
        f"{found.accuracy} at last epoch": [_metric(found.accuracy, row) for row in rows],
        "seconds": [_mean([record.seconds for record in row.finished]) for row in rows],
        "parameters": [_sizes(row) for row in rows],
    }
    reached = [value(found.objective, row.score.mean) for row in rows]
    kept = {n: cells for n, cells in more.items() if cells != reached and set(cells) - {"-", ""}}
    return Table(
        [*(name.replace("+/-", "±") for name in names), *kept],
        [[*cells, *(kept[name][place] for name in kept)] for place, cells in enumerate(ranking)],
        _left_out(len(found.rows)),
    )


def comparisons(objective: str, found: Contrasts) -> Table:
    """The best value of each setting against its others."""
    header = ["setting", "within", "better", "other", "difference", "95 % interval"]
    header += ["n", "p", "p, corrected", "verdict"]
    rows = []
    for axis, parts in found.items():
        for within, part in parts.items():
            for one in part:
                gap, values = one.difference, [short(one.better), short(one.worse)]
                found_gap = [gain(objective, gap.mean), interval(objective, gap), str(gap.n)]
                judged = [_p(gap.p), _p(gap.corrected), gap.verdict.value]
                rows.append([axis, within or "all", *values, *found_gap, *judged])
    return Table(header, rows)


def recipe_of(params: Mapping[str, str]) -> str | None:
    """The published recipe that a run's parameters are, but for the seed; `None` for none.

    What the parameters lack was no setting yet, and is as in the recipe. A further setting of what
    is built, such as `optimizer.nesterov`, makes another training.
    """
    of_parts = {key for key in params if key.startswith(PARTS)}
    for name, experiment in _experiments().items():
        recipe = experiment["recipe"]
        same = all(plain(params.get(key, text)) == plain(text) for key, text in recipe.items())
        if same and "model.name" in params and of_parts <= recipe.keys():
            return name
    return None


def published(findings: Findings) -> Table | None:
    """Each published result of which there is a finished trial, with ours; `None` for none.

    Ours are the accuracies on the test set in the last epoch, and in the best, which is selected on
    the test set, as published. Trials with one seed, as on several numbers of threads, are averaged
    and count once.
    """
    ours: dict[str, list[TrialRecord]] = {}
    for record in findings.results.ranked_trials:
        recipe = recipe_of(record.params)
        if recipe is not None and "test/acc_last" in record.metrics:
            ours.setdefault(recipe, []).append(record)
    if not ours:
        return None
    rows = []
    for recipe, records in sorted(ours.items()):
        row = [recipe]
        for metric in ("test/acc_last", "test/acc_best"):
            known = ((r.seed, r.metrics[metric]) for r in records if metric in r.metrics)
            here = list(means_by_name(known).values())
            reached = mean_with_interval("test/acc", summary(here)) if here else "-"
            epoch = metric.removeprefix("test/acc_")
            row += [value("test/acc", _experiments()[recipe][epoch]), reached]
        rows.append([*row, str(len({record.seed for record in records}))])
    header = ["recipe", "last epoch, published", "last epoch, here", "best epoch, published"]
    return Table([*header, "best epoch, here (selected on the test set)", "seeds"], rows)


def origin_of(record: TrialRecord, results: Results) -> dict[str, str]:
    """What made a trial: code, data, libraries, machine, command, and what it was selected on."""
    tags = record.tags
    command = trial_command(record)
    if not tags:
        return {"commit": UNKNOWN, "command": command}
    if tag.PARENT not in tags:  # else it is the sweep's command, or its worker's
        command = tags.get(tag.COMMAND, command)
    commit = tags.get(tag.COMMIT, "")
    dirty = " with uncommitted changes" if tags.get(tag.DIRTY) == "true" else ""
    return {
        "selected on": "test set" if results.on_test_set else "hold-out (val)",
        "commit": commit + dirty or "unknown",
        "data SHA-256": tags.get(tag.DATA, "unknown"),
        "versions": tags.get("versions", "unknown"),
        "hardware": ", ".join(
            [tags.get("device", "unknown")]
            + [f"{key} {record.params[key]}" for key in COMPUTED_WITH if key in record.params]
        ),
        "machine": tags.get("host", "unknown"),
        "command": command,
    }


def made_of(findings: Findings) -> tuple[list[dict[str, str]], dict[str, str], list[str]]:
    """What made each trial, what those that count have in common, and what differs in them."""
    origins = [origin_of(record, findings.results) for record in findings.records]
    pairs = zip(findings.records, origins)
    rows = [of for record, of in pairs if record.params and record.counts]
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: {row.get(name, "") for row in rows} for name in names}
    common = {name: next(iter(values)) for name, values in found.items() if len(values) == 1}
    return origins, common, [name for name in names if name not in common]


def every_trial(
    findings: Findings, origins: Sequence[Mapping[str, str]]
) -> tuple[list[str], list[dict[str, Cell]]]:
    """Every trial with its settings, results and provenance, unrounded: columns, and rows by them.

    A metric that has the name of a setting, as `lr`, or of the objective where that was taken at
    another epoch, is told apart from it as `lr_last`.

    Args:
        origins: what made each of the trials, see `origin_of`.
    """
    found, records = findings.results, findings.records
    ranks = {record.run_id: row.rank for row in found.rows for record in row.finished}
    head = ["rank", *found.axes, SEED, "state", found.objective, "seconds", "parameters"]
    head.append("best_epoch")
    taken = {*head, *(key for record in records for key in record.params)}
    metrics = {key for record in records for key in record.metrics}
    if all(record.metrics.get(found.objective) == record.objective for record in records):
        metrics.discard(found.objective)
    named = {key: f"{key}_last" if key in taken else key for key in sorted(metrics)}
    rows: list[dict[str, Cell]] = [
        {
            "rank": ranks.get(record.run_id),
            **record.values,
            SEED: record.seed,
            "state": record.state,
            found.objective: record.objective,
            "seconds": record.seconds,
            "parameters": record.parameters,
            "best_epoch": record.tags.get("best_epoch"),
            **{column: record.metrics.get(key) for key, column in named.items()},
            **facts,
            "run_id": record.run_id,
        }
        for record, facts in zip(records, origins, strict=True)
    ]
    facts_known = dict.fromkeys(name for facts in origins for name in facts)
    return [*head, *named.values(), *facts_known, "run_id"], rows


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> str:
    """`every_trial` as CSV; accuracies are shares (0 to 1)."""
    names = [column.replace(" ", "_") for column in columns]
    return as_csv([names, *([row.get(column) for column in columns] for row in rows)])


def trial_table(
    findings: Findings, rows: Sequence[Mapping[str, Cell]], differing: Sequence[str]
) -> Table:
    """What tells the trials apart, of `every_trial`.

    Args:
        differing: the facts that are not the same for all.
    """
    found = findings.results
    shown = [*found.axes, SEED, "state", found.objective, "test/acc_last", "seconds", *differing]
    columns = list(dict.fromkeys([*shown, "run_id"]))
    cells = [[_cell(column, row.get(column)) for column in columns] for row in rows[:MAX_ROWS]]
    return Table(columns, cells, _left_out(len(rows)), folded="command")


def _cell(column: str, found: Cell) -> str:
    if found is None:
        return "-"
    return value(column, found) if isinstance(found, float) else str(found)


def _metric(key: str, row: Row) -> str:
    """The mean of a metric over a configuration's seeds."""
    known = [record.metrics[key] for record in row.finished if key in record.metrics]
    return value(key, statistics.fmean(known)) if known else "-"


def _mean(numbers: Sequence[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return f"{statistics.fmean(known):.1f}" if known else "-"


def _sizes(row: Row) -> str:
    sizes = {record.parameters for record in row.finished if record.parameters is not None}
    return " ".join(f"{size:,}" for size in sorted(sizes)) or "-"


def _behind(objective: str, gap: Difference) -> str:
    return f"{width(objective, gap.mean)}, {gap.verdict.value}" if gap.n else "no shared seed"


def _p(p: float | None) -> str:
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _left_out(every: int) -> str:
    return f"{every - MAX_ROWS} more are in report.csv." if every > MAX_ROWS else ""


@cache
def _experiments() -> Mapping[str, Any]:
    """Of each published experiment `recipe`, and accuracies (share) in the `last`, `best` epoch."""
    content: Any = yaml.safe_load((files("mnist_hydra.report") / "published.yaml").read_text())
    return cast(Mapping[str, Any], content)
