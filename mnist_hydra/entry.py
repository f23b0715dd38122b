"""How the commands beside `train` start: composed by Hydra, bad input one line and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from mnist_hydra.errors import UserError


def start(name: str, task: Callable[[DictConfig], int]) -> None:
    """Compose `conf/<name>.yaml` with the command line and leave with the task's exit code."""

    def checked(cfg: DictConfig) -> None:
        try:
            code = task(cfg)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
        sys.exit(code)

    main = hydra.main(version_base="1.3", config_path="pkg://mnist_hydra.conf", config_name=name)
    main(checked)()
