"""The command `python -m mnist_hydra.train`: compose, check, train, and nothing else.

Nothing heavy is imported before Hydra has composed, so `--help` and tab completion are quick.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Sequence
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends the imports without a word

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import mnist_hydra.tracking.provenance  # noqa: F401  # finds git before a configuration is composed
from mnist_hydra.cli import entry
from mnist_hydra.cli.commands import config_words, refuse_moving_folder
from mnist_hydra.config import refuse_unread_experiment, settle
from mnist_hydra.errors import UserError
from mnist_hydra.stopping import insist_on_signals
from mnist_hydra.targets import folders_of, let_in


@hydra.main(version_base="1.3", config_path="pkg://mnist_hydra.conf", config_name="config")
def task(cfg: DictConfig) -> float | None:
    """Train what was composed; with `sweep.parent` set, work on that sweep's trials instead."""
    hydra_cfg = HydraConfig.get()
    try:
        refuse_unread_experiment(cfg)
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

        return run_alone(config, raw["task"], config_words(hydra_cfg))
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
    """The console script `mnist-train`: `main`, and out."""
    with entry.leaving_promptly():
        try:
            if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            entry.prepare_streams()
            entry.outlive_readers()
            insist_on_signals()
            main()
        except KeyboardInterrupt:
            print("stopped before anything was begun", file=sys.stderr)
            raise SystemExit(130) from None


if __name__ == "__main__":
    from mnist_hydra.train import command as imported_command  # so workers can import `task`

    imported_command()
