"""Reads trials from a store: of a sweep by name or id, of several, or runs by an MLflow filter.

What a sweep's trials are, and what became of them, is the ledger's to say; their runs say what made
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from mnist_hydra.errors import UserError, did_you_mean
from mnist_hydra.ledger.ledger import STATUS, Ledger, View
from mnist_hydra.ledger.parent import existing_run
from mnist_hydra.ledger.plan import PLANS, Plan, Planned, read_plan
from mnist_hydra.ledger.trial import FINISHED, PRUNED
from mnist_hydra.metrics import is_minimized
from mnist_hydra.report.results import (
    SEED,
    Results,
    TrialRecord,
    bare_key,
    ranked,
    record_of_trial,
    values_of,
)
from mnist_hydra.report.statistics import Values, number, same_values
from mnist_hydra.tracking import tag
from mnist_hydra.tracking.pages import parameter_of
from mnist_hydra.tracking.tracker import MISTAKES_FILE, Tracker, each_run, history_of

if TYPE_CHECKING:
    from mlflow.entities import Run

Found = TypeVar("Found")
MAX_RUNS = 1_000
"""Of so many trials, the best, the runs are read; of others the ledger says what made them."""
MOST_SWEEPS = 10_000
"""Sweeps, and experiments, that a name is looked for in."""
MAX_MISTAKES = 50
"""So many trials, the best, say which test images they get wrong."""
READERS = 8
NO_AXIS = ("device", "threads")
"""Parameters that are no setting of a training."""
SPELLED = {"True": "true", "False": "false"}
"""What parameters have, and what is typed."""


@dataclass(frozen=True)
class Findings:
    """Everything that a report is made of, but for what is read for single pictures."""

    title: str
    records: tuple[TrialRecord, ...]
    """Of all trials."""
    results: Results
    """The configurations, ranked; those that are one and the same are one."""
    planned: int
    """How many trials there are to be, as far as known."""
    commands: tuple[str, ...] = ()
    """That made the sweeps."""
    parents: tuple[str, ...] = ()
    """Their MLflow runs; none where runs were chosen by a filter."""
    drawn: Mapping[str, bool] = field(default_factory=dict)
    """Axes that a search took its numbers from, and whether by ratio."""
    same: tuple[tuple[str, str, str], ...] = ()
    """Axis, value, and another value of it that is the same thing, and counts as the first."""
    repeated: int = 0
    """Runs that are left out, since they have the settings and the seed of others."""

    @property
    def finished(self) -> int:
        """How many trials finished, those that are the same as others among them."""
        return sum(record.counts for record in self.records)

    @property
    def pruned(self) -> int:
        """How many trials were given up on purpose."""
        return sum(record.state == PRUNED for record in self.records)

    def scores(self) -> dict[Values, dict[str, float]]:
        """The objective by seed of every configuration, of the trials that count, in order."""
        values = {r.run_id: row.values for row in self.results.rows for r in row.finished}
        found: dict[Values, dict[str, float]] = {}
        for record in self.records:
            if record.run_id in values:
                found.setdefault(values[record.run_id], {})[record.seed] = record.score
        return found


def read_sweeps(tracker: Tracker, names: Sequence[str]) -> Findings:
    """The trials of sweeps, each given by its name, its identity or its run's id.

    A sweep that is named twice counts once.

    Raises:
        UserError: there is no such sweep (shows the nearest names), none of its trials finished, or
            the sweeps are ranked by different metrics.
    """
    every = tracker.client.search_experiments(max_results=MOST_SWEEPS)
    experiments = [found.experiment_id for found in every]
    there = _search(tracker, experiments, f"tags.`{tag.SWEEP}` != ''", MOST_SWEEPS)  # newest first
    found = {run.info.run_id: run for run in (_find(there, name) for name in names)}
    return read_parents(tracker, list(found.values()))


def read_parents(tracker: Tracker, parents: Sequence[Run]) -> Findings:
    """The trials of sweeps, given by their parent runs, each once.

    A trial that several of them have counts once: as the first in which it finished. What the
    sweeps set to one value each, and not to the same, is an axis too.

    Raises:
        UserError: as `read_sweeps`.
    """
    objectives = {run.data.tags.get(tag.OBJECTIVE, "") for run in parents}
    if len(objectives) > 1:
        right = "sweeps that are ranked by the same metric"
        raise UserError(f"sweep: ranked by {', '.join(sorted(objectives))}; right: {right}")
    (objective,) = objectives
    plans = [_plans(tracker, run.info.run_id) for run in parents]
    every = [plan for of_sweep in plans for plan in of_sweep]
    axes = {bare_key(axis.key): axis for plan in every for axis in plan.arguments.axes}
    commands = tuple(run.data.tags.get(tag.COMMAND, "") for run in parents)
    at = "best" if "best" in map(_at, parents, plans) else "last"
    of_each = [
        _read_one(tracker, parent, of_sweep, objective, at, axes)
        for parent, of_sweep in zip(parents, plans, strict=True)
    ]
    apart = _set_apart([list(found.values()) for found, _ in of_each], axes)
    records: dict[str, TrialRecord] = {}
    for (found, _), settings in zip(of_each, apart, strict=True):
        for key, record in found.items():
            _count_once(records, key, replace(record, values={**record.values, **settings}))
    names = [*axes, *apart[0]]
    every_trial = one_spelling(list(records.values()))
    findings = Findings(
        ", ".join(run.info.run_name or run.info.run_id for run in parents),
        tuple(every_trial),
        ranked(every_trial, names, objective, at),
        len(set[str]().union(*(wanted for _, wanted in of_each))),
        commands,
        tuple(run.info.run_id for run in parents),
        {key: axis.span.log for key, axis in axes.items() if axis.span and not axis.values},
    )
    if not findings.results.rows:
        raise UserError(
            f"sweep={findings.title}: none of its trials has finished; right: the sweep's own "
            "command again, which goes on with it"
        )
    return counted_once(findings)


def read_filter(tracker: Tracker, query: str) -> Findings:
    """The runs that an MLflow filter finds; what differs among their parameters are the axes.

    They are ranked by `val/acc` where all of them have it, else by `test/acc_last`. Of runs with
    the same settings and the same seed the newest that finished counts.

    Raises:
        UserError: MLflow does not take the filter, or it finds no finished run.
    """
    from mlflow.exceptions import MlflowException

    try:
        pages = each_run(tracker.client, [tracker.experiment_id], query)
        # A run that begins meanwhile moves others to later pages.
        found = {run.info.run_id: run for run in pages}.values()
    except MlflowException as error:
        raise UserError(
            f"filter={query}: {str(error).splitlines()[0]}; right: as in MLflow's search, for "
            "example \"params.`model.name` = 'model3'\""
        ) from None
    runs = [run for run in found if tag.FINGERPRINT in run.data.tags]
    ended = [run for run in runs if run.info.status == STATUS[FINISHED]]
    on_holdout = all("val/acc" in run.data.metrics for run in ended)
    objective = "val/acc" if on_holdout else "test/acc_last"
    settings = spelled_once([run.data.params for run in runs])
    axes = _differing(settings)
    parents = {run.data.tags[tag.PARENT] for run in runs if tag.PARENT in run.data.tags}
    flags = {parent: _flags(tracker, parent) for parent in parents}
    records: dict[str, TrialRecord] = {}
    for run, params in zip(runs, settings, strict=True):  # the newest first
        values = {axis: params.get(key, "") for axis, key in axes.items()}
        own_flags = tag.read_lines(run.data.tags.get(tag.FLAGS, ""))
        done = run.info.status == STATUS[FINISHED]
        record = TrialRecord(
            values,
            overrides_of(run) or [f"{key}={text}" for key, text in values.items()],
            FINISHED if done else run.data.tags.get(tag.STATE, run.info.status.lower()),
            run.data.metrics.get(objective) if done else None,
            run.info.run_id,
            flags=own_flags or flags.get(run.data.tags.get(tag.PARENT, ""), ()),
            metrics=dict(run.data.metrics),
            seconds=((run.info.end_time or run.info.start_time) - run.info.start_time) / 1000,
        )
        key = run.data.tags[tag.FINGERPRINT]
        _count_once(records, key, with_run(record, run))
    every = tuple(records.values())
    results = ranked(every, axes, objective)
    if not results.rows:
        raise UserError(f"filter={query} finds no finished run; right: one that finds some")
    title = f"runs with {query}" if query else "all runs"
    repeated = len(runs) - len(every)
    return counted_once(Findings(title, every, results, len(every), repeated=repeated))


def _count_once(records: dict[str, TrialRecord], key: str, record: TrialRecord) -> None:
    """Keep one record of each fingerprint: the first that counts, or the first if none does."""
    if key not in records or (record.counts and not records[key].counts):
        records[key] = record


def histories(
    tracker: Tracker, run_ids: Iterable[str], metric: str
) -> dict[str, dict[int, float]]:
    """A metric's values by epoch of runs, one request a run, several at once on a server."""
    return _of_each(run_ids, lambda run_id: history_of(tracker.client, run_id, metric))


def mistakes(tracker: Tracker, run_ids: Iterable[str]) -> dict[str, dict[int, int]]:
    """The test images that runs get wrong, and what they take them for; only of those that say."""

    def read(run_id: str) -> dict[int, int] | None:
        with suppress(Exception):  # whatever a store raises where there is no such artifact
            raw = json.loads(tracker.read_text(run_id, MISTAKES_FILE))
            return {int(index): int(taken_for) for index, taken_for in raw.items()}
        return None

    found = _of_each(run_ids, read)
    return {run_id: wrong for run_id, wrong in found.items() if wrong is not None}


def _of_each(run_ids: Iterable[str], read: Callable[[str], Found]) -> dict[str, Found]:
    """What is read of each run."""
    run_ids = list(run_ids)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(run_ids, pool.map(read, run_ids), strict=True))


def _find(there: Sequence[Run], name: str) -> Run:
    """The newest sweep that has this name, identity or run id."""
    for run in there:
        if name in (run.info.run_id, run.info.run_name, run.data.tags[tag.SWEEP]):
            return run
    if not there:
        raise UserError(f"sweep={name}: this store holds no sweep; right: run one first")
    names = list(dict.fromkeys(run.info.run_name or run.info.run_id for run in there))
    raise UserError(
        f"sweep={name}: no such sweep in this store{did_you_mean(name, names)}; right: the name or "
        f"the run's id of one, such as {', '.join(names[:5])}"
    )


def _plans(tracker: Tracker, parent_id: str) -> list[Plan]:
    """What each command of a sweep went over, the last command's last."""
    files = tracker.client.list_artifacts(parent_id, PLANS)
    plans = [read_plan(tracker.read_text(parent_id, file.path)) for file in files]
    return sorted(plans, key=lambda plan: plan.written_ms)


def _at(parent: Run, plans: Sequence[Plan]) -> str:
    """The epoch that a sweep's last command takes the objective at, `last` or `best`."""
    if (at := parent.data.tags.get(tag.OBJECTIVE_AT)) is not None:
        return at
    said_so = "sweep.objective_at=best" in parent.data.tags.get(tag.COMMAND, "")
    # Sweeps of before 2026-11-27 have no such tag, and plans of 2026-11-25 do not say.
    return "best" if said_so or any(plan.at == "best" for plan in plans) else "last"


def _flags(tracker: Tracker, parent_id: str) -> Sequence[str]:
    """Hydra's flags of one of a sweep's commands; none where the sweep is not there any more."""
    with suppress(Exception):  # whatever a store raises then
        return _plans(tracker, parent_id)[-1].flags
    return ()


def _read_one(
    tracker: Tracker,
    parent: Run,
    plans: Sequence[Plan],
    objective: str,
    at: str,
    axes: Collection[str],
) -> tuple[dict[str, TrialRecord], set[str]]:
    """One sweep's trials by fingerprint, and the fingerprints of all that there are to be.

    Each has its seed and a value for each of `axes`, also where its run is not read.

    Raises:
        UserError: the plans are missing from the store.
    """
    view = Ledger(tracker.client, parent.info.run_id).read()
    if (view.points or view.trials) and not plans:
        raise UserError(
            f"sweep={parent.info.run_name}: its artifacts below {PLANS}/ are missing from the "
            f"store; right: a sweep that has them, or what was in {parent.info.artifact_uri}"
        )
    records = records_of(tracker, view, plans, objective, at)
    planned = {one.fingerprint for one in (*view.points, *(t for p in plans for t in p.trials))}
    best_first = [f"metrics.`{objective}` {'ASC' if is_minimized(objective) else 'DESC'}"]
    order = best_first if len(planned) > MAX_RUNS else ()  # it costs minutes of a large store
    of_parent = f"tags.`{tag.PARENT}` = '{parent.info.run_id}'"
    found = _search(tracker, [parent.info.experiment_id], of_parent, MAX_RUNS, order)
    runs = {run.info.run_id: run for run in found}
    whole = {
        key: completed(with_run(one, runs[one.run_id]), axes)
        for key, one in records.items()
        if one.run_id in runs
    }
    alike = {_but_for_numbers(records[key]): one for key, one in whole.items()}
    for key, one in records.items():
        if key not in whole:
            kind = _but_for_numbers(one)
            if kind not in alike:
                run = existing_run(tracker.client, one.run_id)
                alike[kind] = completed(with_run(one, run), axes)
            values, seed = {**alike[kind].values, **one.values}, one.seed or alike[kind].seed
            whole[key] = replace(one, values=values, seed=seed)
    return {key: whole[key] for key in records}, planned


def _but_for_numbers(record: TrialRecord) -> tuple[str, ...]:
    """A trial's overrides without the numbers of its axes, by which nothing else is chosen.

    Names are kept, as of a model: what is fixed, such as its dropout, may follow from them.
    """
    pairs = (override.partition("=") for override in record.overrides)
    return tuple(
        key if bare_key(key) in record.values and number(text) is not None else f"{key}={text}"
        for key, _, text in pairs
    )


def records_of(
    tracker: Tracker, view: View, plans: Sequence[Plan], objective: str, at: str
) -> dict[str, TrialRecord]:
    """The trials that were begun, by fingerprint, as far as the ledger has them.

    Args:
        plans: what the sweep's commands go over. A point of a search is taken for that of the last
            one over its axes, and of the last one of all if there is none.
        at: the epoch that the objective is taken at, `last` or `best`.
    """
    planned: dict[str, tuple[Planned, Plan]]
    planned = {point.fingerprint: (point, _plan_of(point, plans)) for point in view.points}
    planned |= {one.fingerprint: (one, plan) for plan in plans for one in plan.trials}
    begun = {key: view.trials[key] for key in planned if key in view.trials}
    finished = [trial.run_id for trial in begun.values() if trial.state == FINISHED]
    by_epoch = histories(tracker, finished if at == "best" else [], objective)
    return {
        key: record_of_trial(trial, *planned[key], objective, by_epoch.get(trial.run_id))
        for key, trial in begun.items()
    }


def _plan_of(point: Planned, plans: Sequence[Plan]) -> Plan:
    over_its_axes = (plan for plan in plans[::-1] if plan.arguments.are_of(point.overrides))
    return next(over_its_axes, plans[-1])


def with_run(record: TrialRecord, run: Run | None) -> TrialRecord:
    """A record with what its run, where there is one, says of it."""
    if run is None:
        return record
    params, tags, began_s = dict(run.data.params), dict(run.data.tags), run.info.start_time / 1000
    seed = record.seed or params.get(SEED, "")
    return replace(record, seed=seed, params=params, tags=tags, began_s=began_s)


def completed(record: TrialRecord, axes: Iterable[str]) -> TrialRecord:
    """A record with a value for each axis: what its own sweep left fixed is in its parameters.

    What is no parameter, such as `experiment`, is as its command had it.
    """
    given = values_of(record.overrides)
    fixed = {axis: _recorded(record.params, axis) or given.get(axis, "") for axis in axes}
    return replace(record, values={**fixed, **record.values})


def _recorded(params: Mapping[str, str], axis: str) -> str:
    """What parameters have as a key's value; empty where they have none."""
    name = parameter_of(axis)
    if not axis.startswith(f"{name}."):
        return params.get(name, "")
    with suppress(Exception):  # a list that is cut off, or has no such item
        value = json.loads(params[name])
        for part in axis.removeprefix(f"{name}.").split("."):
            value = value[int(part) if isinstance(value, list) else part]
        return str(value)
    return ""


def one_spelling(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The same with each value of an axis as it is spelled first."""
    values = spelled_once([record.values for record in records])
    return [replace(record, values=of) for record, of in zip(records, values, strict=True)]


def spelled_once(every: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """The same settings, each value of a key as it is spelled first: `0.0` and `0` are one."""
    first: dict[tuple[str, float | str], str] = {}
    return [
        {key: first.setdefault((key, plain(text)), text) for key, text in settings.items()}
        for settings in every
    ]


def plain(text: str) -> float | str:
    """What a setting's text means: a number, or a text that all spellings of the same have."""
    if (as_number := number(text)) is not None:
        return as_number
    with suppress(ValueError, RecursionError):
        return json.dumps(json.loads(text, parse_int=float), sort_keys=True)
    return SPELLED.get(text, text)


def counted_once(findings: Findings) -> Findings:
    """The same with values of an axis that are one and the same thing as one configuration.

    Else they would weigh twice in every mean, and be compared as if they were two. The same are
    those that always came out the same. All trials stay in the records; in the results are of each
    seed the trials of the first value that finished.
    """
    old = findings.results
    outcomes: dict[Values, dict[str, object]] = {}
    for record in filter(lambda record: record.counts, findings.records):
        values = tuple(record.values[axis] for axis in old.axes)
        outcomes.setdefault(values, {})[record.seed] = record.came_out
    same = same_values(old.axes, outcomes)
    if not same:
        return findings
    instead = {(axis, other): one for axis, one, other in same}
    groups: dict[Values, dict[Values, list[TrialRecord]]] = {}
    for record in findings.records:
        before = tuple(record.values[axis] for axis in old.swept)
        kept = {axis: instead.get((axis, v), v) for axis, v in zip(old.swept, before, strict=True)}
        equal = groups.setdefault((*kept.values(), record.seed), {})
        equal.setdefault(before, []).append(replace(record, values=kept))
    once: list[TrialRecord] = []
    for equal in groups.values():
        once += max(equal.values(), key=lambda group: any(record.counts for record in group))
    results = ranked(once, old.swept, old.objective, old.at)
    return replace(findings, results=results, same=tuple(same))


def overrides_of(run: Run) -> list[str]:
    """A run's own overrides, each a line of its tag."""
    text = run.data.tags.get(tag.OVERRIDES, "")
    if "\n" in text:
        return tag.read_lines(text)
    # Runs of before 2026-11-27 have spaces between them, which a value may hold, too.
    return re.split(r" (?=[+~]{0,2}[A-Za-z_][\w./@-]*=|~)", text) if text else []


def _set_apart(
    sweeps: Sequence[Sequence[TrialRecord]], axes: Iterable[str]
) -> list[dict[str, str]]:
    """Of each sweep what it set to one value while another one set it to another, as axes.

    Args:
        axes: those of the sweeps, which are left out.
    """
    settings: list[dict[str, str]] = []
    swept = {parameter_of(axis) for axis in axes}
    for records in sweeps:
        every = spelled_once([record.params for record in records if record.params])
        keys = set[str]().union(*every)
        found = {key: {params.get(key, "") for params in every} for key in keys}
        swept |= {key for key, values in found.items() if len(values) > 1}
        settings.append({key: min(values) for key, values in found.items()})
    kept = spelled_once([{key: of[key] for key in of if key not in swept} for of in settings])
    differ = _differing(kept)
    return [{axis: of.get(key, "") for axis, key in differ.items()} for of in kept]


def _differing(every: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The parameters that differ: name as an axis, and as a parameter.

    What follows from the name of its group is left out, such as `aug.steps` from `aug.name`.
    """

    def count(*keys: str) -> int:
        return len({tuple(params.get(key) for key in keys) for params in every})

    differ = [key for key in sorted(set[str]().union(*every) - set(NO_AXIS)) if count(key) > 1]
    names = {key.partition(".")[0]: key for key in differ if key.endswith(".name")}
    given = ((key, names.get(key.partition(".")[0], key)) for key in differ)
    kept = [key for key, name in given if key == name or count(name) < count(name, key)]
    return {key.removesuffix(".name") if key.count(".") == 1 else key: key for key in kept}


def _search(
    tracker: Tracker, experiments: Sequence[str], query: str, limit: int, order: Sequence[str] = ()
) -> list[Run]:
    return list(islice(each_run(tracker.client, experiments, query, order=order), limit))
