"""The one error that a user can mend: its message is all that is shown, and the exit code is 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Bad input, found before work begins.

    The message says what was wrong, the value that was got, what would be right and the key or
    command that mends it, in one or two lines. It is printed without a traceback.
    """


class StoreAway(UserError):
    """The tracking store does not answer now; later it may."""


def wrong_value(key: str, value: Any, right: str) -> UserError:
    """The error for a `value` that is not what is `right` for `key`."""
    return UserError(f"{key}={value} is not valid; right: {right}")


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """The nearest of `choices` as the end of a sentence, or nothing where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(value.lower(), by_lower, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(by_lower[f] for f in found)}?)" if found else ""


def first_line(error: BaseException) -> str:
    """What an error says first, without where it was raised and what else it says."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("(raised as a result of")]
    return (told or [type(error).__name__])[0][:300]
