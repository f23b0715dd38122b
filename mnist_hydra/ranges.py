"""Range checks of single settings; each raises a `UserError` that names key, value and mend."""

from __future__ import annotations

import math
from typing import Any

from mnist_hydra.errors import UserError


def bad(key: str, value: Any, right: str) -> UserError:
    """The error for a `value` that is not what is `right` for `key`."""
    return UserError(f"{key}={value} is not valid; right: {right}")


def whole(
    key: str, value: Any, *, at_least: int, at_most: int | None = None, also: str = ""
) -> None:
    """Check a whole number; booleans are none. `also` names another accepted word."""
    right = f"a whole number of at least {at_least}" + (f", or {also}" if also else "")
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise bad(key, value, right)
    if at_most is not None and value > at_most:
        raise bad(key, value, f"a whole number of at most {at_most}")


def number(
    key: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
) -> None:
    """Check a finite number against its limits; booleans are none."""
    limits = [
        f"{word} {limit:g}"
        for word, limit in (("above", above), ("at least", at_least), ("below", below))
        if limit is not None
    ]
    right = "a number " + " and ".join(limits) if limits else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise bad(key, value, right)
    if (
        (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (below is not None and value >= below)
    ):
        raise bad(key, value, right)


def flag(key: str, value: Any) -> None:
    """Check a truth value."""
    if not isinstance(value, bool):
        raise bad(key, value, "true or false")
