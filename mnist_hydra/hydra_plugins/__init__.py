"""This project's sweepers and launchers, registered with Hydra, whose own scan may miss them."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from mnist_hydra.cli.config_files import check_files


def register_plugins() -> None:
    """Register the sweepers, before Hydra composes; a launcher is registered once it is chosen.

    An installed plugin of another project with a launcher of the same name would otherwise have
    Hydra check our settings against its own, and refuse them.
    """
    check_files()
    known = Plugins.instance()  # its scan executes plugin modules anew, so it has to come first
    from .sweepers import GridSweeper, SearchSweeper

    known.register(GridSweeper)
    known.register(SearchSweeper)
    others = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in ("joblib", "ray", "slurm"):
        others.pop(f"{name}.yaml", None)
