"""The sweepers as Hydra wants to see them; everything they do is in `mnist_hydra.sweep`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GridSweeper(Sweeper):
    """Runs every combination of the axes.

    Args:
        params: `hydra.sweeper.params`, axes that the configuration brings.
    """

    kind = "grid"

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = dict(params or {})

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives; the launcher is made once the input is known to be good."""
        from mnist_hydra.sweep.command import Job

        self.job = Job(self.kind, self.params, hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep that the command line asks for; leaves with its exit code."""
        from mnist_hydra.sweep.sweeper import run_and_exit

        run_and_exit(self.job, arguments)


class SearchSweeper(GridSweeper):
    """Searches the axes for the best objective with Optuna."""

    kind = "search"
