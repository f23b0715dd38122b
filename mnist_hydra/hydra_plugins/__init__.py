"""This project's sweepers and launchers, registered with Hydra, whose own scan may miss them.

All that a sweeper does is in `mnist_hydra.sweep`; each launcher is a file of its own here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mnist_hydra.cli.config_files import check_files


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


def register_plugins() -> None:
    """Register the sweepers, before Hydra composes; a launcher is registered once it is chosen.

    An installed plugin of another project with a launcher of the same name would otherwise have
    Hydra check our settings against its own, and refuse them.
    """
    check_files()
    known = Plugins.instance()  # its scan executes plugin modules anew, so it has to come first
    known.register(GridSweeper)
    known.register(SearchSweeper)
    others = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in ("joblib", "ray", "slurm"):
        others.pop(f"{name}.yaml", None)
