"""Errors that are shown as one line: a `UserError` can be mended by the user, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

BAD_INPUT = 2
"""The exit code of a command whose input is wrong; the last line that it prints says what."""
NO_MEMORY = ("failed to map segment", "can't start new thread", "allocate memory")
"""What errors say, besides a `MemoryError`, where a process gets no more memory or threads."""
MOST_SHOWN = 300
"""Characters of a value or of somebody else's message in an error of ours."""


class UserError(Exception):
    """Bad input, found before work begins.

    The message says what was wrong, the value that was got, what would be right and the key or
    command that mends it, in one or two lines. It is printed without a traceback.
    """


class Stopped(SystemExit):
    """Ctrl-C or SIGTERM before there is anything to go on with; its code is the exit code."""


class TimedOut(BaseException):
    """Raised inside a training that is past its time limit and did not stop.

    It is no `Exception`, so that a user's own code does not catch it by accident.
    """


class StoreAway(UserError):
    """The tracking store does not answer now; later it may."""


class InUse(UserError):
    """Another process has a run's spool."""


class ClaimLost(UserError):
    """Another process has taken a run over, or finished it: nothing more may be written to it."""


def wrong_value(key: str, value: Any, right: str) -> UserError:
    """The error for a `value` that is not what is `right` for `key`."""
    return UserError(f"{key}={shown(value)} is not valid; right: {right}")


def shown(value: Any) -> str:
    """A value as an error shows it: as it is typed, in one line, and not for ever."""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    text = "null" if value is None else text
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def in_one_line(error: BaseException) -> str:
    """What an exception says, in one line; its kind where it says nothing of its own."""
    kind, text = type(error).__name__, shown(error)
    return f"{kind}: {text}" if text else kind


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one before it, says that this process gets no more memory or threads."""
    if error is None:
        return False
    told = isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)
    return told or lacks_memory(error.__context__)


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
