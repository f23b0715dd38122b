"""Checks settings by the types that a dataclass gives its fields.

Text, numbers, flags, choices, lists and mappings are each checked in one place, here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from mnist_hydra.errors import UserError, did_you_mean, shown, wrong_value

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """The range of a number: `Annotated[float, Limits(above=0)]`."""

    above: float = -math.inf
    at_least: float = -math.inf
    below: float = math.inf
    at_most: float = math.inf

    def allow(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        return bool(self.above < value < self.below and self.at_least <= value <= self.at_most)

    def __str__(self) -> str:
        ends = [(name.replace("_", " "), end) for name, end in vars(self).items()]
        text = " and ".join(f"{words} {end}" for words, end in ends if math.isfinite(end))
        return f"of {text}" if text.startswith("at ") else text


@dataclass(frozen=True)
class Pattern:
    """The form of a text: `Annotated[str, Pattern("[0-9]+", "digits")]`."""

    regex: str
    words: str

    def allow(self, value: Any) -> bool:
        """Whether a text has the form."""
        return re.fullmatch(self.regex, value) is not None

    def __str__(self) -> str:
        return self.words


def read_settings(kind: type[T], raw: Mapping[Any, Any], prefix: str = "", **given: Any) -> T:
    """Make a dataclass of settings, each checked by its field's type.

    A whole number is accepted for text. A flag is no number, and 1.0 is no whole number.

    Args:
        kind: the dataclass.
        raw: its fields by name.
        prefix: what stands before their names in an error, such as `data.`.
        given: fields that are no settings, as they are.

    Raises:
        UserError: naming the key that is unknown, missing or wrong, and what would be right.
    """
    every = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    known = {name: field for name, field in every.items() if name not in given}
    for name, value in raw.items():
        if name not in known:
            what = f"{prefix}{name}={shown(value)} is no setting{did_you_mean(str(name), known)}"
            raise UserError(f"{what}; right: one of {', '.join(known)}")
    types = _types(kind)  # type: ignore[arg-type]
    for name, field in known.items():
        if name not in raw and field.default is field.default_factory is MISSING:
            raise UserError(f"{prefix}{name} is missing; right: {words(types[name])}")
    settings = {name: check_setting(prefix + name, raw[name], types[name]) for name in raw}
    return kind(**settings, **given)


def check_setting(key: str, value: Any, type_: Any) -> Any:
    """The value of a setting, as its type has it.

    Raises:
        UserError: it is none; names the key and what would be right.
    """
    for option in _options(type_):
        if get_origin(option) is dict and isinstance(value, Mapping):
            of = get_args(option)[1]
            return {str(k): check_setting(f"{key}.{k}", inner, of) for k, inner in value.items()}
    try:
        return _value(value, type_)
    except ValueError:
        right = words(type_)
        if isinstance(value, bool | float) and _takes_text(type_):
            right += f" (in quotes, if that is one: {key}='\"{shown(value)}\"')"
        is_plain = isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value)
        if is_plain and not _takes_text(type_):
            right += ", without quotes"
        raise wrong_value(key, value, right) from None


def words(type_: Any) -> str:
    """A type in the words of an error."""
    origin, inner = get_origin(type_), get_args(type_)
    if origin is Annotated:
        of = [str(limit) for limit in inner[1:]]
        return of[0] if isinstance(inner[1], Pattern) else " ".join([words(inner[0]), *of])
    if origin in (Union, UnionType):
        return ", or ".join(words(option) for option in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is dict:
        return f"a mapping of names to {words(inner[1])}"
    if origin is list:
        return f"a list, each {words(inner[0])}"
    simple = {
        str: "text in one line",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        NoneType: "null",
    }
    return simple.get(type_, "a value")


def _value(value: Any, type_: Any) -> Any:
    """The value as `type_` has it, or a ValueError."""
    origin, inner = get_origin(type_), get_args(type_)
    if origin in (Union, UnionType):
        for option in inner:  # a dict among them was seen to by `check_setting`
            with suppress(ValueError):
                return _value(value, option)
        raise ValueError
    if origin is list and isinstance(value, list):
        return [_value(one, inner[0]) for one in value]
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if origin is Annotated:
        value = _value(value, inner[0])
        right = all(limit.allow(value) for limit in inner[1:])
    elif origin is Literal:
        right = any(type(value) is type(one) and value == one for one in inner)
    elif type_ is str:
        value = str(value) if is_whole else value
        right = isinstance(value, str) and value.isprintable()
    elif type_ is float:
        right = (is_whole or isinstance(value, float)) and abs(value) <= 1.7e308
    elif type_ is int:
        right = is_whole
    else:
        right = type_ is Any or isinstance(value, origin or type_)
    if not right:
        raise ValueError
    return value


def _takes_text(type_: Any) -> bool:
    options = _options(type_)
    return str in options or any(get_args(option)[:1] == (str,) for option in options)


def _options(type_: Any) -> tuple[Any, ...]:
    return get_args(type_) if get_origin(type_) in (Union, UnionType) else (type_,)


@cache
def _types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
