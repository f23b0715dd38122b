"""A sweep's command line: read and checked, and its sweep in MLflow found or begun.

It does not read the ledger and starts no worker.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mnist_hydra import metrics
from mnist_hydra.cli.commands import config_words, override_value, refuse_moving_folder
from mnist_hydra.config import Config, SweepConfig, resolved, sweep_settings
from mnist_hydra.errors import UserError, did_you_mean
from mnist_hydra.ledger.parent import elect_parent, find_parent
from mnist_hydra.ledger.plan import Plan, Planned, base_settings, check_same_base, identity_of
from mnist_hydra.secrets import hide_all
from mnist_hydra.sweep.axes import check_grid, check_search, parse
from mnist_hydra.sweep.compose import Composer, Trials, check_points, corners
from mnist_hydra.tracking import pages, provenance, tag
from mnist_hydra.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow.entities import Run

PART = 4_000
"""Characters of a tag that every MLflow store keeps."""


@dataclass(frozen=True)
class Job:
    """What Hydra gives a sweeper."""

    kind: str
    """`grid` or `search`."""
    params: Mapping[str, Any]
    """`hydra.sweeper.params`."""
    context: HydraContext
    task: TaskFunction
    config: DictConfig
    """Composed without the axes, Hydra's own node included."""


@dataclass(frozen=True)
class Command:
    """A sweep's command line, checked."""

    job: Job
    plan: Plan
    """For its workers: all trials of a grid; those of a search are proposed later."""
    trials: Trials
    """All trials of a grid; of a search those at the ends of its axes, which are checked."""
    config: Config
    """The first trial's. Where the store is and `sweep.*` are the same for all."""
    objective: str
    base: Mapping[str, str]
    identity: str

    @property
    def ranking(self) -> dict[str, str]:
        """What ranks the trials, as tags of the sweep's run."""
        return {tag.OBJECTIVE: self.objective, tag.OBJECTIVE_AT: self.plan.at}

    def total(self, proposed: Collection[Planned]) -> int:
        """How many trials there will be; for a search no more than its axes have points, beside
        those that a command over other axes has proposed.

        Args:
            proposed: the search's points so far.
        """
        arguments, most = self.plan.arguments, self.config.sweep.n_trials
        if self.plan.kind == "grid":
            return len(self.plan.trials)
        if not all(axis.values for axis in arguments.axes):
            return most
        others = arguments.count_others(point.overrides for point in proposed)
        return min(most, arguments.count() + others)

    def worker_overrides(self, parent: str, sweeper: str, worker: int) -> list[str]:
        """The overrides that make this command a worker of the sweep.

        Args:
            parent: the sweep's MLflow run.
            sweeper: the sweeper's token.
            worker: the worker's number, from 0.
        """
        # A whole trial's: without its axes the configuration may be incomplete.
        point = next(iter(self.trials.planned.values())).overrides
        return [
            *self.plan.arguments.overrides(point),
            f"++output_dir={override_value(self.config.output_dir)}",  # it may hold the time
            f"++sweep.parent='{parent}'",
            f"++sweep.by='{sweeper}'",
            f"++sweep.worker={worker}",
        ]


def read_command(job: Job, overrides: Sequence[str]) -> Command:
    """Read and check a sweep's command line.

    Raises:
        UserError: for anything wrong that shows without torch and without the store.
    """
    HydraConfig.instance().set_config(job.config)
    loader = job.context.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    # First: what is wrong for all trials names none of them.
    sweep_settings(resolved(job.config, "sweep"))
    refuse_moving_folder(job.config, bool(job.config.hydra.job.chdir), multirun=True)
    composer = Composer(loader, job.config)
    arguments = parse(overrides, composer.options, job.params)
    is_search = job.kind == "search"
    (check_search if is_search else check_grid)(arguments)
    points: Any = corners(arguments) if is_search else arguments.points()
    trials = check_points(arguments, points, composer)
    config = trials.first
    base = base_settings(composer.base(arguments.fixed), job.kind)
    plan = Plan(
        job.kind,
        arguments,
        () if is_search else tuple(trials.planned.values()),
        tuple(config_words(job.config.hydra)),
        config.sweep.objective_at if is_search else "last",
    )
    return Command(
        job,
        plan,
        trials,
        config,
        objective_of(config.sweep, job.kind, trials),
        base,
        identity_of(config.sweep.name, base, arguments.axes),
    )


def objective_of(settings: SweepConfig, kind: str, trials: Trials) -> str:
    """The metric that ranks trials: `sweep.objective` in a search; in a grid as it has a hold-out.

    Raises:
        UserError: `sweep.objective` is not a metric of a trial, or is of the test set; or a search
            has no hold-out.
    """
    chosen = settings.objective
    if chosen.startswith("test/"):
        raise UserError(
            f"sweep.objective={chosen} would choose by the test set; right: a metric of the "
            "hold-out, such as sweep.objective=val/acc"
        )
    each_epoch = metrics.of_epoch("val")
    known = [name for name in (*each_epoch, *metrics.at_end("val")) if name[:5] != "test/"]
    if chosen not in known:
        near = did_you_mean(chosen, known)
        right = ", ".join(known)
        raise UserError(f"sweep.objective={chosen} is no metric{near}; right: one of {right}")
    if kind == "grid":
        return "val/acc" if trials.holdout else "test/acc_last"
    if settings.pruner != "none" and chosen not in each_epoch:
        raise UserError(
            f"sweep.pruner={settings.pruner} needs a metric of each epoch, got "
            f"sweep.objective={chosen}; right: one of {', '.join(each_epoch)}"
        )
    if not trials.holdout:
        raise UserError(
            f"a search by sweep.objective={chosen} needs a hold-out, got data.val_size=0; right: "
            "data.val_size=5000"
        )
    return chosen


def find_sweep(command: Command, tracker: Tracker) -> Run | None:
    """The command's sweep in MLflow; `None` if it was not begun, or `sweep.fresh` begins it anew.

    Raises:
        UserError: an earlier version began it, or the sweep's name is taken by a sweep with another
            base configuration.
    """
    if command.config.sweep.fresh:
        return None
    parent = find_parent(tracker.client, tracker.experiment_id, command.identity)
    if parent is not None:
        _check_base(command, parent)
    return parent


def begin_sweep(command: Command, tracker: Tracker) -> Run:
    """The command's sweep in MLflow; it is begun if it was not.

    MLflow's list of its trials has a column for each axis, those of commands before included.

    Raises:
        UserError: as `find_sweep`.
    """
    mine = [axis.key for axis in command.plan.arguments.axes]
    base = json.dumps(hide_all(command.base), sort_keys=True)
    starts = range(0, len(base), PART)
    parts = {f"{tag.BASE}{n}": base[at : at + PART] for n, at in enumerate(starts)}
    parent = elect_parent(
        tracker.client,
        tracker.experiment_id,
        command.identity,
        name=command.config.sweep.name or "sweep over " + ", ".join(mine),
        tags=hide_all(provenance.tags() | parts),
        trials=command.total(()),
        anew=command.config.sweep.fresh,
    )
    _check_base(command, parent)
    axes = list(dict.fromkeys([*_axes(parent), *mine]))
    run_id = parent.info.run_id
    tracker.set_tags(run_id, command.ranking | {tag.AXES: json.dumps(axes)[:PART]})
    view = pages.trials_view(run_id, command.objective, axes)
    tracker.client.set_experiment_tag(tracker.experiment_id, tag.VIEW + run_id, view)
    return parent


def _check_base(command: Command, parent: Run) -> None:
    """Check a named sweep's base; without a name the base is part of the identity already."""
    if command.config.sweep.name is None:
        return
    swept = {*_axes(parent), *(axis.key for axis in command.plan.arguments.axes)}
    recorded, mine = (hide_all(base) for base in (_base(parent), command.base))
    check_same_base(command.config.sweep.name, recorded, mine, swept)


def _base(parent: Run) -> dict[str, str]:
    tags = parent.data.tags
    parts = [key for key in tags if key.startswith(tag.BASE)]
    in_order = sorted(parts, key=lambda key: int(key.removeprefix(tag.BASE)))
    settings: dict[str, str] = json.loads("".join(tags[key] for key in in_order) or "{}")
    return settings


def _axes(parent: Run) -> list[str]:
    """The keys of the axes of all commands of the sweep so far."""
    try:
        return list(json.loads(parent.data.tags.get(tag.AXES, "[]")))
    except json.JSONDecodeError:  # sweeps of before 2026-11-27 kept the values too, cut off
        return []
