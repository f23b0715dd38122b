"""Reads trials from a store: of a sweep by name or id, of several, or runs by an MLflow filter.

What a sweep's trials are, and what became of them, is the ledger's to say; their runs say what made
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mnist_hydra.errors import UserError, did_you_mean
from mnist_hydra.ledger.ledger import STATUS, Ledger
from mnist_hydra.ledger.parent import OBJECTIVE_TAG, SWEEP_TAG
from mnist_hydra.ledger.plan import PLANS, Axis, read_plan
from mnist_hydra.ledger.trial import FINISHED
from mnist_hydra.metrics import is_minimized
from mnist_hydra.report.results import SEED, Results, TrialRecord, ranked, record_of_trial
from mnist_hydra.report.statistics import Values, number, same_values
from mnist_hydra.tracking.provenance import COMMAND_TAG
from mnist_hydra.tracking.tracker import (
    FINGERPRINT_TAG,
    MISTAKES_FILE,
    OVERRIDES_TAG,
    PARENT_TAG,
    Tracker,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNS_PER_REQUEST = 1_000
MAX_RUNS = 1_000
"""Of so many trials, the best, the runs are read; of others the ledger says what made them."""
MAX_MISTAKES = 50
"""So many trials, the best, say which test images they get wrong."""
READERS = 8
NO_AXIS = ("device", "threads")
"""Parameters that are no setting of a training."""


@dataclass(frozen=True)
class Entry:
    """One trial, as it stands in the report."""

    record: TrialRecord
    seed: str
    """Empty where it is not known."""
    metrics: Mapping[str, float]
    """The last value of each."""
    seconds: float | None
    """That its attempts took."""
    params: Mapping[str, str] = field(default_factory=dict)
    """Of its run; empty where that was not read."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of its run; where that was not read, what the ledger has of them."""

    @property
    def parameters(self) -> int | None:
        """How many the model has; `None` where that is not known."""
        return int(text) if (text := self.tags.get("weights", "")).isdigit() else None


@dataclass(frozen=True)
class Findings:
    """Everything that a report is made of, but for what is read for single pictures."""

    title: str
    commands: tuple[str, ...]
    """That made the sweeps."""
    parents: tuple[str, ...]
    """Their MLflow runs; none where runs were chosen by a filter."""
    entries: tuple[Entry, ...]
    results: Results
    """The configurations, ranked; those that are one and the same are one."""
    minimize: bool
    planned: int
    """How many trials there are to be, as far as known."""
    log_axes: frozenset[str] = frozenset()
    """Axes of numbers that a search took its values from by ratio."""
    same: tuple[tuple[str, str, str], ...] = ()
    """Axis, value, and another value of it that is the same thing, and counts as the first."""

    @property
    def finished(self) -> int:
        """How many trials finished, those that are the same as others among them."""
        return sum(entry.record.counts for entry in self.entries)

    @property
    def axes(self) -> tuple[str, ...]:
        """What was varied, but for the seed."""
        return self.results.axes

    def scores(self) -> dict[Values, dict[str, float]]:
        """The objective by seed of every configuration, of the trials that count, in order."""
        counted = {record.run_id: row for row in self.results.rows for record in row.finished}
        found: dict[Values, dict[str, float]] = {}
        for entry in self.entries:
            if (row := counted.get(entry.record.run_id)) is not None:
                found.setdefault(row.values, {})[entry.seed] = entry.record.objective or 0.0
        return found

    def by_run(self) -> dict[str, Entry]:
        """The entries by their runs."""
        return {entry.record.run_id: entry for entry in self.entries}

    def seed_of(self) -> dict[str, str]:
        """The seed of each run."""
        return {entry.record.run_id: entry.seed for entry in self.entries}


def read_sweeps(tracker: Tracker, names: Sequence[str]) -> Findings:
    """The trials of sweeps, each given by its name, its identity or its run's id.

    Raises:
        UserError: there is no such sweep (shows the nearest names), none of its trials finished, or
            the sweeps are ranked by different metrics.
    """
    there = _parents(tracker)
    return read_parents(tracker, [_find(there, name) for name in names])


def read_parents(tracker: Tracker, parents: Sequence[Run]) -> Findings:
    """The trials of sweeps, given by their parent runs.

    Raises:
        UserError: as `read_sweeps`.
    """
    objectives = {run.data.tags.get(OBJECTIVE_TAG, "") for run in parents}
    if len(objectives) > 1:
        right = "sweeps that are ranked by the same metric"
        raise UserError(f"sweep: ranked by {', '.join(sorted(objectives))}; right: {right}")
    (objective,) = objectives
    axes: dict[str, Axis] = {}
    entries: dict[str, Entry] = {}
    planned = 0
    for parent in parents:
        swept, found, wanted = _read_one(tracker, parent, objective)
        axes |= {axis.key: axis for axis in swept}
        planned += wanted
        entries |= {key: entry for key, entry in found.items() if key not in entries}
    completed = [_completed(entry, tuple(axes)) for entry in entries.values()]
    titles = [run.info.run_name or run.info.run_id for run in parents]
    commands = tuple(run.data.tags.get(COMMAND_TAG, "") for run in parents)
    return _findings(
        ", ".join(titles),
        commands,
        tuple(run.info.run_id for run in parents),
        completed,
        tuple(axes),
        objective,
        planned,
        "best" if any(map(_at_best, parents)) else "last",
        frozenset(key for key, axis in axes.items() if axis.span is not None and axis.span.log),
    )


def read_filter(tracker: Tracker, query: str) -> Findings:
    """The runs that an MLflow filter finds; what differs among their parameters are the axes.

    They are ranked by `val/acc` where all of them have it, else by `test/acc_last`.

    Raises:
        UserError: MLflow does not take the filter, or it finds no finished run.
    """
    from mlflow.exceptions import MlflowException

    try:
        runs = [
            run
            for run in _search(tracker, [tracker.experiment_id], query, MAX_RUNS)
            if FINGERPRINT_TAG in run.data.tags
        ]
    except MlflowException as error:
        raise UserError(
            f"filter={query}: {str(error).splitlines()[0]}; right: as in MLflow's search, for "
            "example \"params.`model.name` = 'model3'\""
        ) from None
    ended = [run for run in runs if run.info.status == STATUS[FINISHED]]
    if not ended:
        raise UserError(f"filter={query} finds no finished run; right: one that finds some")
    on_holdout = all("val/acc" in run.data.metrics for run in ended)
    axes = _differing(runs)
    entries = []
    for run in runs:
        objective = run.data.metrics.get("val/acc" if on_holdout else "test/acc_last")
        values = {axis: run.data.params.get(key, "") for axis, key in axes.items()}
        done = run.info.status == STATUS[FINISHED]
        record = TrialRecord(
            values=values,
            overrides=_overrides(run) or [f"{key}={value}" for key, value in values.items()],
            state=FINISHED if done else run.info.status.lower(),
            objective=objective if done else None,
            run_id=run.info.run_id,
        )
        entries.append(_entry(record, dict(run.data.metrics), None, run, {}))
    return _findings(
        f"runs with {query}" if query else "all runs",
        (),
        (),
        entries,
        tuple(axes),
        "val/acc" if on_holdout else "test/acc_last",
        len(entries),
    )


def histories(
    tracker: Tracker, run_ids: Iterable[str], metric: str
) -> dict[str, list[tuple[int, float]]]:
    """A metric's epochs and values of runs, one request a run, several at once on a server."""

    def read(run_id: str) -> tuple[str, list[tuple[int, float]]]:
        rows = tracker.client.get_metric_history(run_id, metric)
        last = {row.step: row.value for row in sorted(rows, key=lambda row: row.timestamp)}
        return run_id, sorted(last.items())

    with ThreadPoolExecutor(READERS) as pool:
        return dict(pool.map(read, run_ids))


def mistakes(tracker: Tracker, run_ids: Iterable[str]) -> dict[str, dict[int, int]]:
    """The test images that runs get wrong, and what they take them for; only of those that say."""

    def read(run_id: str) -> tuple[str, dict[int, int] | None]:
        with suppress(Exception):  # whatever a store raises where there is no such artifact
            raw = json.loads(tracker.read_text(run_id, MISTAKES_FILE))
            return run_id, {int(index): int(taken_for) for index, taken_for in raw.items()}
        return run_id, None

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(pool.map(read, run_ids))
    return {run_id: wrong for run_id, wrong in found.items() if wrong is not None}


def data_root(tracker: Tracker, run_id: str) -> str | None:
    """The folder of the user's own (`data.root`) that a run's data lay in, where it says one."""
    with suppress(Exception):  # whatever a store raises, and a file that is none of ours
        config = OmegaConf.create(tracker.read_text(run_id, "config.yaml"))
        root = OmegaConf.select(config, "data.root")
        return root if isinstance(root, str) else None
    return None


def _parents(tracker: Tracker) -> list[Run]:
    """Every sweep's run in the store, the newest first."""
    experiments = [found.experiment_id for found in tracker.client.search_experiments()]
    return list(_search(tracker, experiments, f"tags.`{SWEEP_TAG}` != ''", 10_000))


def _find(there: Sequence[Run], name: str) -> Run:
    """The newest sweep that has this name, identity or run id."""
    for run in there:
        if name in (run.info.run_id, run.info.run_name, run.data.tags[SWEEP_TAG]):
            return run
    if not there:
        raise UserError(f"sweep={name}: this store holds no sweep; right: run one first")
    names = list(dict.fromkeys(run.info.run_name or run.info.run_id for run in there))
    raise UserError(
        f"sweep={name}: no such sweep in this store{did_you_mean(name, names)}; right: the name or "
        f"the run's id of one, such as {', '.join(names[:5])}"
    )


def _read_one(
    tracker: Tracker, parent: Run, objective: str
) -> tuple[list[Axis], dict[str, Entry], int]:
    """One sweep's axes, its trials by fingerprint, and how many there are to be."""
    view = Ledger(tracker.client, parent.info.run_id).read()
    overrides = {point.fingerprint: point.overrides for point in view.points}
    axes: dict[str, Axis] = {}
    fixed: list[str] = []
    for file in tracker.client.list_artifacts(parent.info.run_id, PLANS):
        plan = read_plan(tracker.read_text(parent.info.run_id, file.path))
        axes |= {axis.key: axis for axis in plan.arguments.axes}
        fixed = list(plan.arguments.fixed)
        overrides |= {planned.fingerprint: planned.overrides for planned in plan.trials}
    metric = objective + ("_best" if _at_best(parent) else "")
    runs = {}
    child = f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'"
    order = []  # costs minutes of a large store, so only where it decides what is read
    if len(overrides) > MAX_RUNS:
        order = [f"metrics.`{objective}` {'ASC' if is_minimized(objective) else 'DESC'}"]
    for run in _search(tracker, [parent.info.experiment_id], child, MAX_RUNS, order):
        runs[run.info.run_id] = run
    entries = {}
    for key, swept in overrides.items():
        trial = view.trials.get(key)
        if trial is None:
            continue
        values = dict(override.partition("=")[::2] for override in swept)
        record = record_of_trial(trial, values, [*fixed, *swept], trial.metrics.get(metric))
        seconds = sum(attempt.seconds for attempt in trial.attempts)
        own = runs.get(trial.run_id)
        entries[key] = _entry(record, trial.metrics, seconds, own, trial.made_by)
    return list(axes.values()), entries, len(overrides)


def _at_best(parent: Run) -> bool:
    """Whether a search was for the best epoch's value and not for the last one's."""
    return "sweep.objective_at=best" in parent.data.tags.get(COMMAND_TAG, "")


def _entry(
    record: TrialRecord,
    metrics: Mapping[str, float],
    seconds: float | None,
    run: Run | None,
    made_by: Mapping[str, str],
) -> Entry:
    params = {} if run is None else dict(run.data.params)
    tags = made_by if run is None else dict(run.data.tags)
    swept = {axis.lstrip("+~"): value for axis, value in record.values.items()}
    return Entry(record, swept.get(SEED, params.get(SEED, "")), metrics, seconds, params, tags)


def _completed(entry: Entry, axes: Sequence[str]) -> Entry:
    """An entry with a value for each axis: what its own sweep left fixed is in its parameters."""
    values = {axis: entry.record.values.get(axis) for axis in axes}
    if None not in values.values():
        return entry
    plain = {axis: axis.lstrip("+~").replace("/", ".") for axis in axes}
    whole = {
        axis: value
        if value is not None
        else entry.params.get(plain[axis], entry.params.get(plain[axis] + ".name", ""))
        for axis, value in values.items()
    }
    return replace(entry, record=replace(entry.record, values=whole))


def _findings(
    title: str,
    commands: tuple[str, ...],
    parents: tuple[str, ...],
    entries: Sequence[Entry],
    axes: Sequence[str],
    objective: str,
    planned: int,
    at: str = "last",
    log_axes: frozenset[str] = frozenset(),
) -> Findings:
    minimize = is_minimized(objective)
    records = [entry.record for entry in entries]
    found = ranked(records, axes, objective, minimize=minimize, at=at)
    if not found.rows:
        raise UserError(
            f"sweep={title}: none of its {len(entries)} trials has finished; right: the sweep's "
            "own command again, which goes on with it"
        )
    whole = Findings(title, commands, parents, tuple(entries), found, minimize, planned, log_axes)
    return counted_once(whole, axes)


def counted_once(findings: Findings, axes: Sequence[str]) -> Findings:
    """The same with values of an axis that are one and the same thing as one configuration.

    Else they would weigh twice in every mean, and be compared as if they were two. The same are
    those that always had the same objective and the same test accuracy. All trials stay in the
    entries; in the results are of each seed the trials of the first value that finished.

    Args:
        axes: the keys of the records' values.
    """
    rows = {record.run_id: row for row in findings.results.rows for record in row.finished}
    outcomes: dict[Values, dict[str, tuple[float | None, float | None]]] = {}
    for entry in findings.entries:
        if (row := rows.get(entry.record.run_id)) is not None:
            came_out = (entry.record.objective, entry.metrics.get("test/acc_last"))
            outcomes.setdefault(row.values, {})[entry.seed] = came_out
    same = same_values(findings.axes, outcomes)
    if not same:
        return findings
    instead = {(axis, other): one for axis, one, other in same}
    groups: dict[Values, dict[Values, list[TrialRecord]]] = {}
    for entry in findings.entries:
        before = {axis: entry.record.values.get(axis, "") for axis in axes}
        values = {axis: instead.get((axis.lstrip("+~"), v), v) for axis, v in before.items()}
        equal = groups.setdefault((*values.values(), entry.seed), {})
        equal.setdefault(tuple(before.values()), []).append(replace(entry.record, values=values))
    records: list[TrialRecord] = []
    for equal in groups.values():
        records += max(equal.values(), key=lambda group: any(record.counts for record in group))
    old = findings.results
    results = ranked(records, axes, old.objective, minimize=old.minimize, at=old.at)
    return replace(findings, results=results, same=tuple(same))


def _overrides(run: Run) -> list[str]:
    """A run's own overrides, which its tag separates by spaces; a value may hold some too."""
    text = run.data.tags.get(OVERRIDES_TAG, "")
    return re.split(r" (?=[+~]{0,2}[A-Za-z_][\w./@-]*=|~)", text) if text else []


def _differing(runs: Sequence[Run]) -> dict[str, str]:
    """The parameters that the runs differ in: name as an axis, and as a parameter."""
    keys = sorted({key for run in runs for key in run.data.params} - set(NO_AXIS))
    differ = [key for key in keys if len({run.data.params.get(key) for run in runs}) > 1]
    return {key.removesuffix(".name") if key.count(".") == 1 else key: key for key in differ}


def _search(
    tracker: Tracker,
    experiments: Sequence[str],
    query: str,
    limit: int,
    order: Sequence[str] = (),
) -> list[Run]:
    found: list[Any] = []
    token = None
    while True:
        page = tracker.client.search_runs(
            list(experiments),
            query,
            max_results=RUNS_PER_REQUEST,
            order_by=list(order) or None,
            page_token=token,
        )
        found += page
        token = page.token
        if not token or len(found) >= limit:
            return found[:limit]


def short(value: str) -> str:
    """A value of an axis for people: of a number four digits that count."""
    found = number(value)
    return value if found is None or len(value) <= 6 else f"{found:.4g}"
