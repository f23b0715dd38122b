"""Keeps what one attempt at a trial printed and logged, so that a failure can be understood later.

It changes nothing of what is shown meanwhile.
"""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any, TextIO, cast

MAX_CHARACTERS = 1_000_000
"""The beginning of a longer transcript is dropped."""


class Transcript:
    """While it is open, this thread's output and log records are kept as text."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._length = 0
        self._thread = threading.get_ident()

    def text(self) -> str:
        """All that was kept."""
        return "".join(self._kept)

    def keep(self, text: str) -> None:
        """Add `text`, if the thread is the one that is listened to."""
        if threading.get_ident() != self._thread or not text:
            return
        self._kept.append(text)
        self._length += len(text)
        while self._length > MAX_CHARACTERS and len(self._kept) > 1:
            self._length -= len(self._kept.pop(0))

    def __enter__(self) -> Transcript:
        self._thread = threading.get_ident()
        self._handler = logging.StreamHandler(cast(TextIO, _Sink(self)))
        self._handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
        )
        logging.getLogger().addHandler(self._handler)
        self._before = sys.stdout, sys.stderr
        self._own = tuple(cast(TextIO, _Tee(stream, self)) for stream in self._before)
        sys.stdout, sys.stderr = self._own
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Where somebody else has replaced them since, they are his.
        if sys.stdout is self._own[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._own[1]:
            sys.stderr = self._before[1]
        logging.getLogger().removeHandler(self._handler)


class _Sink:
    """Where the log records go."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript

    def write(self, text: str) -> None:
        self._transcript.keep(text)


class _Tee:
    """Shows what is written as before and keeps it too."""

    def __init__(self, shown: TextIO, transcript: Transcript) -> None:
        self._shown = shown
        self._transcript = transcript

    def write(self, text: str) -> int:
        self._transcript.keep(text)
        return self._shown.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)
