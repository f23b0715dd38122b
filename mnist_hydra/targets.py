"""Turns a `_target_` into a class, out of modules that are let in, and makes instances of it.

What counts is the object that is found, never how it is spelled; its module is judged before it is
imported, since an import runs code.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any, TypeVar

from mnist_hydra.errors import Stopped, TimedOut, UserError, in_one_line, shown

if TYPE_CHECKING:
    from hydra.conf import ConfigSourceInfo

T = TypeVar("T")

KNOWN = ("torch", "torchvision", "albumentations", "mnist_hydra")
"""Packages of which any public module may be named."""


@dataclass
class LetIn:
    """What a `_target_` may name besides `KNOWN`."""

    folders: list[str]
    """Folders with YAML files; the Python files beside them are the user's own."""
    modules: list[str]
    """Modules that the command line trusts."""


os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or its import asks the network

LET_IN = LetIn([], [])
"""This process's, as `sys.path` is; filled by `let_in`."""


def let_in(folders: Iterable[str], modules: Iterable[str]) -> None:
    """Let a `_target_` name the Python files in `folders`, and `modules` with what is in them."""
    for folder in map(os.path.abspath, folders):
        if folder not in LET_IN.folders:
            LET_IN.folders.append(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # last: no file in it stands for an installed module
    LET_IN.modules += [module for module in modules if module not in LET_IN.modules]


def folders_of(config_sources: Iterable[ConfigSourceInfo]) -> list[str]:
    """The folders with YAML files of the user's own, among the places that Hydra reads."""
    return [one.path for one in config_sources if one.schema == "file" and one.path]


def resolve_class(path: str, base: type[T], key: str) -> type[T]:
    """Find the class at a dotted path and insist that it is a kind of `base`.

    Nothing but a subclass of `base` is ever returned, so no path can name a function, a module or
    another class to be called.

    Args:
        path: such as `torch.optim.SGD` or `my_models.Wide`.
        base: what the class must derive from.
        key: the configuration key to name in an error, such as `model._target_`.

    Raises:
        UserError: if the path leads nowhere, to something else, or into a module that is not let
            in, which is then not imported.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{key}={shown(path)} is no dotted path; right: module.Class")
    _insist_on_let_in(module_name, f"{key}={path}")
    right = "a class in a module that can be imported (a file beside the YAML of --config-dir can)"
    with blaming(f"{key}={path}", right):
        found: Any = getattr(importlib.import_module(module_name), name, None)
    if not (inspect.isclass(found) and issubclass(found, base)):
        what = "nothing" if found is None else shown(repr(found))
        raise UserError(
            f"{key}={path} is {what}; right: a subclass of {base.__module__}.{base.__qualname__}"
        )
    return found


def construct(kind: type[T], arguments: dict[str, Any], key: str, **given: Any) -> T:
    """Make an instance of `kind` from configured arguments and those that the program gives.

    The first of these is given by its place where the class has no such name for it.

    Raises:
        UserError: if the class does not take these arguments or refuses their values.
    """
    nested = [name for name, value in arguments.items() if _has_target(value)]
    if nested:
        raise UserError(f"{key}.{nested[0]} holds a _target_ of its own; right: plain values")
    got = ", ".join(f"{key}.{name}={shown(value)}" for name, value in arguments.items())
    right = f"the arguments of {kind.__module__}.{kind.__qualname__}, as keys of {key}"
    with blaming(f"{key}: {kind.__name__}", f"{right} (got {got or 'none'})"):
        try:
            bound = inspect.signature(kind).bind(**given, **arguments)
        except TypeError:
            if next(iter(given), None) in inspect.signature(kind).parameters:
                raise
            first = [given.pop(name) for name in [*given][:1]]
            bound = inspect.signature(kind).bind(*first, **given, **arguments)
        return kind(*bound.args, **bound.kwargs)


@contextmanager
def blaming(
    what: str, right: str = "", why: Callable[[BaseException], str] = in_one_line
) -> Iterator[None]:
    """Whatever somebody else's code raises is a `UserError` that names `what` and the `right`.

    That is `sys.exit` and KeyboardInterrupt, too: a module may raise them as it is imported.

    Args:
        why: puts what was raised in words.
    """
    try:
        yield
    except (UserError, Stopped, TimedOut):
        raise
    except BaseException as error:  # noqa: B036  it is raised as another
        mend = f"; right: {right}" if right else ""
        raise UserError(f"{what}: {why(error)}{mend}") from error


def accepts(kind: type, name: str) -> bool:
    """Whether the class's constructor has a parameter called `name`."""
    return name in inspect.signature(kind).parameters


def _insist_on_let_in(module: str, setting: str) -> None:
    """Judge a module by its name and place, before it is imported.

    Raises:
        UserError: it is not let in.
    """
    top, *inner = module.split(".")
    if any(module == one or module.startswith(one + ".") for one in LET_IN.modules):
        return
    if top in KNOWN:
        private = [part for part in inner if part.startswith("_")]
        if private:
            raise UserError(f"{setting}: {private[0]} is private to {top}; right: a public module")
        return
    # A folder without `__init__.py` is no module: an installed one of its name would come first.
    spec = PathFinder.find_spec(top, LET_IN.folders) if LET_IN.folders else None
    if spec is None or spec.origin is None:
        raise UserError(
            f"{setting}: the module {top} is not let in; right: one of {', '.join(KNOWN)}, a "
            f"Python file beside the YAML of --config-dir, or 'trusted=[{top}]' on the command line"
        )
    first = None
    with suppress(ValueError):  # `__main__` has none
        first = importlib.util.find_spec(top)
    if first is None or os.path.realpath(str(first.origin)) != os.path.realpath(str(spec.origin)):
        other = None if first is None else first.origin
        raise UserError(
            f"{setting}: {spec.origin} has the name of another module ({other}); right: a name of "
            "its own"
        )


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_target(inner) for inner in value.values())
    return isinstance(value, list) and any(_has_target(inner) for inner in value)
