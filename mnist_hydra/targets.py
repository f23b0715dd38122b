"""Turns a `_target_` into a class. What counts is the object found, never how it is spelled."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from typing import Any, TypeVar

from hydra.conf import ConfigSourceInfo

from mnist_hydra.errors import UserError

T = TypeVar("T")


def resolve_class(path: str, base: type[T], key: str) -> type[T]:
    """Find the class at a dotted path and insist that it is a kind of `base`.

    Nothing but a subclass of `base` is ever returned, so no path can name a function, a module or
    another class to be called.

    Args:
        path: such as `torch.optim.SGD` or `my_models.Wide`; its module must be importable.
        base: what the class must derive from.
        key: the configuration key to name in an error, such as `model._target_`.

    Raises:
        UserError: if the path leads nowhere or to something else.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{key}={path!r} is no dotted path; right: module.Class")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it may be the user's own file
        raise UserError(
            f"{key}={path}: {type(error).__name__}: {error}; right: a class in a module "
            f"that can be imported (a file beside the YAML of --config-dir can)"
        ) from None
    found: Any = getattr(module, name, None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        what = "nothing" if found is None else repr(found)
        raise UserError(
            f"{key}={path} is {what}; right: a subclass of {base.__module__}.{base.__qualname__}"
        )
    return found


def construct(kind: type[T], arguments: dict[str, Any], key: str, **given: Any) -> T:
    """Make an instance of `kind` from configured arguments and those that the program gives.

    Raises:
        UserError: if the class does not take these arguments or refuses their values.
    """
    nested = [name for name, value in arguments.items() if _has_target(value)]
    if nested:
        raise UserError(f"{key}.{nested[0]} holds a _target_ of its own; right: plain values")
    try:
        inspect.signature(kind).bind(**given, **arguments)
        return kind(**given, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{key}: {kind.__name__}: {error}; right: the arguments of {kind.__module__}."
            f"{kind.__qualname__}, as keys of {key}"
        ) from None


def accepts(kind: type, name: str) -> bool:
    """Whether the class's constructor has a parameter called `name`."""
    return name in inspect.signature(kind).parameters


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_target(inner) for inner in value)


def import_user_code_from(config_sources: list[ConfigSourceInfo]) -> None:
    """Let Python files beside the YAML files of `--config-dir` be imported."""
    for source in config_sources:
        if source.schema == "file" and source.path and source.path not in sys.path:
            sys.path.insert(0, os.path.abspath(source.path))
