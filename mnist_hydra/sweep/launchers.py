"""How a sweep uses Hydra's launchers, its own and foreign ones; it knows nothing of trials."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mnist_hydra.config import SweepConfig
from mnist_hydra.errors import UserError


def make(context: HydraContext, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher that `hydra/launcher=` names.

    Raises:
        UserError: its package is not installed; with the command that installs it.
    """
    try:
        return Plugins.instance().instantiate_launcher(context, task, config)
    except (ImportError, RuntimeError, HydraException) as error:
        target = str(config.hydra.launcher._target_)
        chosen = config.hydra.runtime.choices.get("hydra/launcher")
        package = target.removeprefix("hydra_plugins.").partition(".")[0].replace("_", "-")
        raise UserError(
            f"hydra/launcher={chosen} cannot be used ({' '.join(str(error).split())}); "
            f"right: pip install {package}"
        ) from None


def in_process(launcher: Launcher) -> bool:
    """Whether trials run in the sweeper's own process, one after another."""
    return isinstance(launcher, BasicLauncher)


def on_this_machine(launcher: Launcher) -> bool:
    """Whether trials run on this machine, so that its devices are theirs."""
    known = type(launcher).__name__ in ("JoblibLauncher", "LocalLauncher")
    return in_process(launcher) or bool(getattr(launcher, "on_this_machine", known))


def slots(launcher: Launcher, settings: SweepConfig) -> int:
    """How many workers there is room for.

    Raises:
        UserError: the launcher's own, such as a cluster that does not answer.
    """
    if in_process(launcher):
        return 1
    own: Any = getattr(launcher, "slots", None)
    return int(own()) if own is not None else settings.workers or 1


def stop(launcher: Launcher) -> None:
    """Ask the launcher to start no worker any more, where it can be asked."""
    own: Any = getattr(launcher, "stop", None)
    if own is not None:
        own()
