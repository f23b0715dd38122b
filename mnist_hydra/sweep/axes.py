"""Reads a sweep's axes from overrides in Hydra's grammar; composes no configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from mnist_hydra.config import changes_result
from mnist_hydra.errors import UserError
from mnist_hydra.ledger.plan import Arguments, Axis, Span

MAX_POINTS = 100_000

Options = Callable[[str], list[str]]
"""The entries of a config group by its name (`model`, `db/engine`); none where it is no group."""


def parse(
    arguments: Sequence[str], options: Options, params: Mapping[str, Any] | None = None
) -> Arguments:
    """Read a sweep's overrides.

    Of two overrides of one key the last counts, as with Hydra, but an axis is never dropped.

    Args:
        arguments: overrides as on the command line.
        options: looks up a config group's entries, for `glob`.
        params: `hydra.sweeper.params`; the command line goes before it.
    Raises:
        UserError: two axes that set the same key, an axis that matches nothing, one that no trial
            could differ by, or text that is not Hydra's grammar.
    """
    typed = _parse(arguments)
    _refuse_twins(typed)
    keys = {_target(override) for override in typed}
    configured = _parse([f"{k}={'null' if v is None else v}" for k, v in (params or {}).items()])
    _refuse_twins(configured)
    items: dict[str, str | Axis] = {}
    for override in [o for o in configured if _target(o) not in keys] + typed:
        swept = override.is_sweep_override()
        items[override.get_key_element()] = (
            _axis(override, options) if swept else str(override.input_line)
        )
    return Arguments(tuple(items.values()))


def check_grid(arguments: Arguments) -> None:
    """Check that every combination of the axes can be listed.

    Raises:
        UserError: a continuous axis, or more than `MAX_POINTS` combinations.
    """
    for axis in arguments.axes:
        if not axis.values:
            raise UserError(
                f"{axis.key}={axis.text} is continuous, which a grid cannot list; right: values "
                f"such as {axis.key}=A,B or {axis.key}=range(...), or hydra/sweeper=search"
            )
    if arguments.count() > MAX_POINTS:
        raise UserError(
            f"the axes have {arguments.count()} combinations; right: at most {MAX_POINTS}, "
            "or hydra/sweeper=search with sweep.n_trials"
        )


def check_search(arguments: Arguments) -> None:
    """Check that there is something to search over, and that it can be sampled.

    Raises:
        UserError: no axis, an unknown tag, or a logarithmic axis that reaches zero.
    """
    if not arguments.axes:
        raise UserError(
            "the search has no axis; right: at least one, such as 'lr=tag(log,interval(0.02,0.5))'"
        )
    for axis in arguments.axes:
        for tag in filter(lambda tag: tag != "log", axis.tags):
            raise UserError(f"{axis.key}={axis.text}: tag {tag} is unknown; right: log, or none")
        if axis.tags and axis.span is None:
            raise UserError(
                f"{axis.key}={axis.text}: only an interval or a range can be logarithmic"
            )
        if axis.span is not None and axis.span.log and axis.span.low <= 0:
            raise UserError(
                f"{axis.key}={axis.text}: a logarithmic axis must begin above 0, got "
                f"{axis.span.low:g}"
            )


def _parse(arguments: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(arguments))
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None


def _target(override: Override) -> str:
    """What the override sets, however it is spelled (`+lr`, `++lr` and `lr` are one)."""
    return override.get_key_element().lstrip("+~")


def _refuse_twins(overrides: Sequence[Override]) -> None:
    for earlier, later in itertools.combinations(overrides, 2):
        same_key = earlier.get_key_element() == later.get_key_element()
        if same_key and not earlier.is_sweep_override():
            continue  # the last counts, as with Hydra; an axis is never dropped that way
        swept = earlier.is_sweep_override() or later.is_sweep_override()
        if swept and _set_the_same(earlier, later):
            raise UserError(
                f"{earlier.input_line} and {later.input_line} set the same key; "
                "right: one of them, with all values"
            )


def _set_the_same(one: Override, other: Override) -> bool:
    """Whether both set one key, or one sets a mapping and the other something inside of it."""
    for outer, inner in ((one, other), (other, one)):
        if _target(inner).startswith(_target(outer) + ".") and "{" in str(outer.input_line):
            return True
    return _target(one) == _target(other)


def _axis(override: Override, options: Options) -> Axis:
    key, text = override.get_key_element(), override.get_value_string()
    target = _target(override)
    if not changes_result(target):
        raise UserError(
            f"{key}={text}: {target} changes no trial's result, so it cannot be an axis; "
            f"right: one value, {target}=VALUE"
        )
    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        return Axis(key, text, (), _interval(key, text, value), tuple(sorted(value.tags)))
    if isinstance(value, Glob):
        found = options(override.key_or_group)
        values = value.filter(found)
        right = "one of " + ", ".join(found) if found else f"{override.key_or_group} is no group"
    else:
        if isinstance(value, ChoiceSweep) and any(isinstance(one, Sweep) for one in value.list):
            raise UserError(f"{key}={text} is a sweep within another; right: {key}=A,B,C")
        values = _listed(override)
        right = "at least one value"
    if not values:
        raise UserError(f"{key}={text} matches nothing; right: {right}")
    tags = tuple(sorted(value.tags)) if isinstance(value, Sweep) else ()
    span = _range(value, values, "log" in tags) if isinstance(value, RangeSweep) else None
    return Axis(key, text, tuple(dict.fromkeys(values)), span, tags)


def _listed(override: Override) -> list[str]:
    line = override.input_line
    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MAX_POINTS + 1))
    except (HydraException, ArithmeticError, ValueError) as error:
        raise UserError(f"{line}: {error}") from None
    if len(values) > MAX_POINTS:
        raise UserError(f"{line} has more than {MAX_POINTS} values; right: fewer")
    return values


def _interval(key: str, text: str, value: IntervalSweep) -> Span:
    assert value.start is not None and value.end is not None
    low, high = value.start, value.end
    # `interval(1,8)` always holds floats; only `int(interval(1,8))` holds whole numbers, and
    # Hydra's interval leaves its end out.
    integer = isinstance(low, int) and isinstance(high, int)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{key}={text} matches nothing; right: interval(LOW,HIGH), LOW below HIGH")
    log = "log" in value.tags
    return Span(low, high - 1 if integer else high, 1 if integer else None, integer, log)


def _range(value: RangeSweep, values: Sequence[str], log: bool) -> Span:
    numbers = [float(text) for text in values]
    integer = all(isinstance(part, int) for part in (value.start, value.stop, value.step))
    return Span(min(numbers), max(numbers), abs(value.step), integer, log)
