"""What Hydra meets when it looks for plugins, which it does before each command."""

from __future__ import annotations

import importlib
import pkgutil
from types import GenericAlias

import hydra_plugins.mnist_hydra


def test_no_name_in_a_plugins_file_is_taken_for_a_class_and_is_none() -> None:
    """Hydra asks of each class there whether it is a plugin's. Python 3.10 says of `dict[str, int]`
    that it is a class, and then refuses the question: no command would start.
    """
    package = hydra_plugins.mnist_hydra
    files = [f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__)]
    assert len(files) >= 3
    for module in (package, *map(importlib.import_module, files)):
        aliases = [name for name, value in vars(module).items() if isinstance(value, GenericAlias)]
        assert not aliases, module.__name__
