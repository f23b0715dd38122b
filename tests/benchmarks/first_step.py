"""Runs `python -m mnist_hydra.train` up to the end of its first optimizer step, prints when that
was (`time.monotonic()`) and leaves. It must not import anything that the command itself does not.

    python -m tests.benchmarks.first_step model=model3 epochs=1
"""

from __future__ import annotations

import os
import runpy
import sys
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

WATCHED = "torch.optim.optimizer"


def leave(*_: object) -> None:
    """An optimizer step's hook."""
    os.write(1, f"\nfirst step at {time.monotonic()}\n".encode())
    os._exit(0)


class HookingLoader(Loader):
    """Loads the watched module as usual, then asks it to report every optimizer step."""

    def __init__(self, usual: Loader) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.usual.exec_module(module)
        module.register_optimizer_step_post_hook(leave)


class HookingFinder(MetaPathFinder):
    """Finds only the watched module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        spec.loader = HookingLoader(spec.loader)
        return spec


if __name__ == "__main__":
    sys.meta_path.insert(0, HookingFinder())
    runpy.run_module("mnist_hydra.train", run_name="__main__", alter_sys=True)
