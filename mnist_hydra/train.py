"""The command `python -m mnist_hydra.train`: compose, check, train, and nothing else.

Nothing heavy is imported before Hydra has composed, so `--help` and tab completion are quick.
"""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the imports without a word

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import mnist_hydra.tracking.provenance  # noqa: F401  # finds git before a configuration is composed
from mnist_hydra.cli import entry
from mnist_hydra.cli.commands import refuse_moving_folder
from mnist_hydra.config import settle
from mnist_hydra.errors import UserError
from mnist_hydra.targets import folders_of, let_in

WAIT_FOR_THREADS_S = 20.0
"""The longest that a command that has ended waits for threads that it has left."""


@hydra.main(version_base="1.3", config_path="pkg://mnist_hydra.conf", config_name="config")
def task(cfg: DictConfig) -> float | None:
    """Train what was composed; with `sweep.parent` set, work on that sweep's trials instead."""
    hydra_cfg = HydraConfig.get()
    try:
        config = settle(cfg)  # before torch is loaded: what is wrong with a setting is said at once
        let_in(folders_of(hydra_cfg.runtime.config_sources), config.trusted)
        if config.sweep.parent is not None:
            from mnist_hydra.sweep.worker import work

            work(config)
            return None
        # Unresolved: what comes from the environment is recorded as the reference.
        raw: Any = OmegaConf.to_container(hydra_cfg.overrides, resolve=False)
        refuse_sweep_settings([*raw["task"], *raw["hydra"]])
        refuse_moving_folder(cfg, bool(hydra_cfg.job.chdir), multirun=False)
        from mnist_hydra.run import run_alone

        return run_alone(config, raw["task"])
    except UserError as error:
        entry.leave(error)


def refuse_sweep_settings(overrides: Sequence[str]) -> None:
    """Refuse what only a sweep takes, in a command that is none.

    Args:
        overrides: as typed.
    Raises:
        UserError: naming the first of them.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if re.match(r"sweep($|[.@])|hydra[./](sweeper|launcher|sweep)\b", key):
            raise UserError(
                f"{override} has no effect on a single run; right: with --multirun, or without it"
            )


def main() -> None:
    """Compose and train; `command` is what a shell calls."""
    entry.show_help("train")
    entry.share_cores()
    from hydra_plugins.mnist_hydra import register_plugins

    register_plugins()
    entry.call(task)


def command() -> None:
    """The console script `mnist-train`: `main`, and out.

    At its exit Python takes apart what torch and MLflow have left, which costs seconds and 90 MiB.
    An exit handler that runs last leaves before that, with the status that Python would have.
    """
    status = 0

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    atexit.register(leave)  # the first one in is the last one out
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        entry.prepare_streams()
        entry.outlive_readers()
        main()
    except KeyboardInterrupt:
        status = 130
        print("stopped before anything was begun", file=sys.stderr)
        raise SystemExit(status) from None
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    except BaseException:
        status = 1
        raise
    finally:
        # Python waits for all other threads first, and those of a user's own code may never end.
        waited = threading.Timer(WAIT_FOR_THREADS_S, leave)
        waited.daemon = True
        waited.start()


if __name__ == "__main__":
    from mnist_hydra.train import command as imported_command  # so workers can import `task`

    imported_command()
