"""Reads a sweep's command line and checks all of it, before there is any ledger or launcher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from mnist_hydra.config import Config, SweepConfig, settle
from mnist_hydra.errors import UserError
from mnist_hydra.sweep.axes import Arguments, check_grid, check_search, parse
from mnist_hydra.sweep.compose import Composer
from mnist_hydra.sweep.identity import base_settings, identity
from mnist_hydra.sweep.plan import Plan, Trials, check_points, corners, objective


@dataclass(frozen=True)
class Job:
    """What Hydra gives to a sweeper."""

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
    arguments: Arguments
    trials: Trials
    """All of a grid's; of a search the corners, which stand for what it may propose."""
    config: Config
    """Of one trial; says where the store is, and all of `sweep.*`."""
    objective: str
    base: Mapping[str, str]
    identity: str

    @property
    def settings(self) -> SweepConfig:
        """`sweep.*`."""
        return self.config.sweep

    @property
    def is_search(self) -> bool:
        """Whether trials are proposed as the sweep goes on."""
        return self.job.kind == "search"

    @property
    def total(self) -> int:
        """How many trials there are to be; of a search at most as many as its axes allow."""
        if not self.is_search:
            return len(self.trials.planned)
        finite = all(axis.values for axis in self.arguments.axes)
        most = self.settings.n_trials
        return min(most, self.arguments.count()) if finite else most

    def plan(self) -> Plan:
        """What its workers are to read."""
        trials = () if self.is_search else tuple(self.trials.planned.values())
        return Plan(self.job.kind, self.arguments, trials)

    def worker_overrides(self, parent: str, by: str, worker: int) -> list[str]:
        """What a launcher is to start a worker with.

        Args:
            parent: the sweep's MLflow run.
            by: the sweeper's token.
            worker: the worker's number, from 0.
        """
        return [
            *self.arguments.fixed,
            f"++sweep.parent={parent}",
            f"++sweep.by='{by}'",
            f"++sweep.worker={worker}",
        ]


def read_command(job: Job, overrides: Sequence[str]) -> Command:
    """Read and check a sweep's command line.

    Raises:
        UserError: for anything that needs neither torch nor the store to be found out.
    """
    HydraConfig.instance().set_config(job.config)
    loader = job.context.config_loader
    assert isinstance(loader, ConfigLoaderImpl)
    _check_settings(job.config)
    composer = Composer.of_master(loader, job.config)
    arguments = parse(overrides, composer.options, job.params)
    if job.kind == "search":
        check_search(arguments)
        points: Any = corners(arguments)
    else:
        check_grid(arguments)
        points = arguments.points()
    trials = check_points(arguments, points, composer)
    config = settle(composer.compose(arguments.overrides(trials.first)))
    base = base_settings(composer.base(arguments.fixed), job.kind)
    return Command(
        job,
        arguments,
        trials,
        config,
        objective(config.sweep, job.kind, trials),
        base,
        identity(config.sweep.name, base, arguments.axes),
    )


def _check_settings(config: DictConfig) -> None:
    """Check `sweep.*` on its own, so that no trial is named for what all have in common."""
    raw = cast(dict[str, Any], OmegaConf.to_container(config.sweep, resolve=True))
    known = {field.name for field in fields(SweepConfig)}
    for key in sorted(raw.keys() - known):
        right = ", ".join(sorted(known))
        raise UserError(f"sweep.{key}={raw[key]!r} is no setting; right: one of {right}")
    SweepConfig(**raw)
