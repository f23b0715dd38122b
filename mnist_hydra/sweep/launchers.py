"""How a sweep uses Hydra's launchers: which one, how many workers, what each of them is given."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.settings import SweepConfig

EXTRAS = {"hydra_ray_launcher": "ray", "hydra_submitit_launcher": "slurm", "ray": "ray"}


def make(context: HydraContext, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher that `hydra/launcher=` names.

    Raises:
        UserError: its package is not installed; with the command that installs it.
    """
    target = str(config.hydra.launcher._target_)
    try:
        return Plugins.instance().instantiate_launcher(context, task, config)
    except (ImportError, RuntimeError) as error:
        extra = next((name for part, name in EXTRAS.items() if part in target), None)
        package = f"mnist_hydra[{extra}]" if extra else target.split(".")[1].replace("_", "-")
        chosen = config.hydra.runtime.choices.get("hydra/launcher")
        raise UserError(
            f"hydra/launcher={chosen} is not installed ({' '.join(str(error).split())}); "
            f"right: pip install '{package}'"
        ) from None


def in_process(launcher: Launcher) -> bool:
    """Whether trials run in the sweeper's own process, one after another."""
    return type(launcher).__name__ == "BasicLauncher"


def on_this_machine(launcher: Launcher) -> bool:
    """Whether trials run on this machine, so that its cores and GPUs are theirs."""
    known = type(launcher).__name__ in ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
    return bool(getattr(launcher, "on_this_machine", known))


def slots(launcher: Launcher, node: DictConfig, settings: SweepConfig, gpus: int) -> int:
    """How many workers the launcher has room for.

    Args:
        node: the configuration at `hydra.launcher`.
        settings: `sweep.workers` goes before everything else.
        gpus: CUDA devices of this machine that trials may use.
    Raises:
        UserError: the launcher's own, such as a cluster that does not answer.
    """
    if in_process(launcher):
        return 1
    if settings.workers is not None:
        return settings.workers
    own: Any = getattr(launcher, "slots", None)
    if own is not None:
        return max(1, int(own()))
    parallel = node.get("array_parallelism")
    if parallel is not None:
        return int(parallel)
    jobs = int(node.get("n_jobs") or -1)
    if jobs > 0:
        return jobs
    return gpus * settings.trials_per_gpu if gpus else cores()


def share(worker: int, workers: int, gpus: int, fixed: Sequence[str]) -> list[str]:
    """Overrides that give a worker its share of this machine, but for what the user has set.

    Args:
        worker: its number, from 0.
        workers: how many there are.
        gpus: CUDA devices to share out.
        fixed: the user's overrides.
    """
    keys = {override.partition("=")[0].lstrip("+") for override in fixed}
    given = []
    if "threads" not in keys:
        given.append(f"threads={max(1, cores() // workers)}")
    if gpus and not any(o.startswith("device=") and o != "device=cuda" for o in fixed):
        given.append(f"device=cuda:{worker % gpus}")
    return given


def cores() -> int:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
