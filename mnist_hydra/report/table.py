"""The report's tables as rows of text, for the page and as CSV; pure functions."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence

from mnist_hydra.report.answer import gain, interval, value, verdict
from mnist_hydra.report.questions import Contrast, Layout, Lead
from mnist_hydra.report.read import Entry, Findings, short
from mnist_hydra.report.results import Row
from mnist_hydra.report.statistics import Difference, summary

Rows = list[list[str]]
INTERVAL = "±\N{NO-BREAK SPACE}95\N{NO-BREAK SPACE}%"


def configurations(
    findings: Findings, others: Sequence[Lead], limit: int
) -> tuple[list[str], Rows]:
    """Each configuration over its seeds: names of the columns, and at most `limit` rows."""
    found = findings.results
    entries = findings.by_run()
    behind: list[Difference | None] = [None, *(lead.difference for lead in others)]
    best_metric = f"{found.objective.partition('/')[0]}/acc"
    at_best = f"{best_metric} at best epoch"
    header = ["rank", *found.axes, found.objective, INTERVAL, "on the test set"]
    header += ["behind the first", "n", "std. dev.", at_best, "seconds", "parameters"]
    rows = []
    for row, gap in list(zip(found.rows, behind, strict=True))[:limit]:
        mine = [entries[record.run_id] for record in row.finished]
        scores = summary([float(record.objective or 0.0) for record in row.finished])
        seconds = [entry.seconds for entry in mine if entry.seconds is not None]
        sizes = sorted({entry.parameters for entry in mine if entry.parameters is not None})
        rows.append(
            [str(row.rank), *map(short, row.values)]
            + [value(found.objective, scores.mean)]
            + [_width(found.objective, scores.half_width)]
            + [_mean("test/acc", mine, "test/acc_last")]
            + [_behind(found.objective, gap)]
            + [str(scores.n) if scores.n == row.trials else f"{scores.n} of {row.trials}"]
            + [_width(found.objective, scores.deviation)]
            + [_mean(best_metric, mine, f"{best_metric}_best")]
            + [f"{statistics.fmean(seconds):.1f}" if seconds else "–"]
            + [" ".join(f"{size:,}" for size in sizes) or "–"]
        )
    return _without_repeated(at_best, found.objective, header, rows)


def comparisons(objective: str, found: Mapping[str, Sequence[Contrast]]) -> tuple[list[str], Rows]:
    """The best value of each setting against its others: names of the columns, and rows."""
    header = ["setting", "within", "better", "other", "difference", "95 % interval"]
    header += ["n", "p", "p, corrected", "verdict"]
    rows = []
    for axis, contrasts in found.items():
        for one in contrasts:
            gap = one.difference
            rows.append(
                [axis, one.within or "all", short(one.better), short(one.worse)]
                + [gain(objective, gap.mean), interval(objective, gap) or "–", str(gap.n)]
                + [_p(gap.p), _p(gap.corrected), verdict(gap)]
            )
    return header, rows


def csv_text(findings: Findings, origins: Sequence[Mapping[str, str]]) -> str:
    """Every trial with its settings, results and provenance; accuracies are shares (0 to 1).

    A metric that has the name of a setting, as `lr`, is told apart from it as `lr_last`.

    Args:
        origins: what made each of the entries, see `origin.facts`.
    """
    found = findings.results
    objective = found.objective
    ranks = {record.run_id: row.rank for row in found.rows for record in row.finished}
    metrics = sorted({key for entry in findings.entries for key in entry.metrics} - {objective})
    known = list(dict.fromkeys(name for origin in origins for name in origin))
    header = ["rank", *found.axes, "seed", "state", objective, "seconds", "parameters"]
    header.append("best_epoch")
    taken = {*header, *(key for entry in findings.entries for key in entry.params)}
    header += [f"{key}_last" if key in taken else key for key in metrics]
    header += [*(name.replace(" ", "_") for name in known), "run_id"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for entry, origin in zip(findings.entries, origins, strict=True):
        record = entry.record
        swept = {axis.lstrip("+~"): text for axis, text in record.values.items()}
        writer.writerow(
            [ranks.get(record.run_id, ""), *(swept.get(axis, "") for axis in found.axes)]
            + [entry.seed, record.state, _exact(record.objective), _exact(entry.seconds)]
            + [entry.parameters or "", entry.tags.get("best_epoch", "")]
            + [_exact(entry.metrics.get(key)) for key in metrics]
            + [origin.get(name, "") for name in known]
            + [record.run_id]
        )
    return file.getvalue()


def costs(
    findings: Findings, group: str | None, chosen: Layout
) -> dict[str, list[tuple[float, float, str]]]:
    """What each configuration costs: the kind of cost to (cost, objective, group).

    Args:
        group: the axis whose values are the groups, in its order; `None` for one group.
    """
    entries = findings.by_run()
    place = findings.axes.index(group) if group is not None else None
    found: dict[str, list[tuple[float, float, str]]] = {}

    def add(kind: str, row: Row, numbers: Sequence[float]) -> None:
        named = f"{group}={short(row.values[place])}" if place is not None else ""
        if numbers:
            found.setdefault(kind, []).append((statistics.fmean(numbers), row.mean, named))

    rows = list(findings.results.rows)
    if group is not None and place is not None:
        rows.sort(key=lambda row: chosen.values[group].index(row.values[place]))
    for row in rows:
        mine = [entries[record.run_id] for record in row.finished]
        add("parameters", row, [e.parameters for e in mine if e.parameters is not None])
        add("seconds of training", row, [e.seconds for e in mine if e.seconds is not None])
    return found


def _without_repeated(
    name: str, other: str, header: list[str], rows: Rows
) -> tuple[list[str], Rows]:
    """A table without one column, where each row has the same in another."""
    place = header.index(name)
    if any(row[place] != row[header.index(other)] for row in rows):
        return header, rows
    kept = [index for index in range(len(header)) if index != place]
    return [header[index] for index in kept], [[row[index] for index in kept] for row in rows]


def _mean(metric: str, entries: Sequence[Entry], key: str) -> str:
    values = [entry.metrics[key] for entry in entries if key in entry.metrics]
    return value(metric, statistics.fmean(values)) if values else "–"


def _width(objective: str, width: float | None) -> str:
    if width is None:
        return "–"
    return gain(objective, width).removesuffix(" points")


def _behind(objective: str, gap: Difference | None) -> str:
    if gap is None:
        return ""
    if gap.n == 0:
        return "no shared seed"
    return f"{gain(objective, gap.mean).removesuffix(' points')}, {verdict(gap)}"


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _exact(number: float | None) -> str:
    return "" if number is None else repr(number)
