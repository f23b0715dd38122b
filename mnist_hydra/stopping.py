"""How a training is ended before its last epoch: by a sweep, by Ctrl-C or by SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum
from types import FrameType
from typing import Any

from mnist_hydra.errors import Stopped

OF_SIGNAL = 128
"""Added to a signal's number to give the exit code: 130 after Ctrl-C, 143 after SIGTERM."""
AGAIN_AFTER_S = 0.2
"""After a signal whose exception was dropped; at once, the next one would be dropped as well."""


class StopReason(Enum):
    """Why a training ended before its last epoch."""

    INTERRUPTED = "interrupted"
    PRUNED = "pruned"
    TIMEOUT = "timeout"


class Hooks:
    """By which a sweep, Ctrl-C or SIGTERM can end a training; this base class never does."""

    def should_stop(self) -> StopReason | None:
        """Called after every step: a reason to write a checkpoint and end now, or `None`."""
        return None

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        """Called after every epoch (from 1), once it is saved: a reason to end, or `None`; after
        the last one that counts for nothing.
        """
        return None

    def waiting(self) -> AbstractContextManager[None]:
        """A context in which the training waits for its store, which is no part of its time."""
        return nullcontext()


@contextmanager
def on_signals(
    handler: Callable[[int, FrameType | None], object],
    numbers: Iterable[int] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[None]:
    """A context in which `handler` handles signals; it may be entered in the main thread alone."""
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, signal.SIG_DFL if handler_before is None else handler_before)


def insist_on_signals() -> None:
    """Let Ctrl-C or SIGTERM be handled again where its handler raised while Python drops what is
    raised, such as in the callback of a weak reference.
    """
    show = sys.unraisablehook

    def handle(dropped: sys.UnraisableHookArgs) -> None:
        error = dropped.exc_value
        if isinstance(error, Stopped):
            number = int(str(error.code)) - OF_SIGNAL
        elif isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        else:
            show(dropped)
            return
        again = threading.Timer(AGAIN_AFTER_S, os.kill, [os.getpid(), number])
        again.daemon = True
        try:
            again.start()
        except RuntimeError:  # no thread can be started
            show(dropped)

    sys.unraisablehook = handle


class StopOnSignal(Hooks):
    """Hooks by which Ctrl-C or SIGTERM ends a training at its next step, after a checkpoint.

    A second one leaves at once; so does the first, before there is a run. After the last epoch
    there is no training to end: the first one says so, and pictures and model are still recorded.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self.exit_code = 0
        """128 + the signal's number, as a shell expects."""
        self.is_trained: Callable[[], bool] = lambda: False
        """Whether the last epoch is over, so that what came out of it is all that is left to do."""
        self.go_on: Callable[[], str] | None = None
        """Returns the command that goes on with the run, once there is a run."""

    def should_stop(self) -> StopReason | None:
        return self.reason

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        return self.reason

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What is done about a signal."""
        self.exit_code = OF_SIGNAL + number
        if self.go_on is None:
            raise Stopped(self.exit_code)
        if self.reason is not None:
            print(f"go on with\n  {self.go_on()}", file=sys.stderr, flush=True)
            os._exit(self.exit_code)
        self.reason = StopReason.INTERRUPTED
        now = "stopping after a checkpoint"
        if self.is_trained():
            now = "the training is complete, and what came out of it is being recorded"
        print(f"{now}; once more to leave at once", file=sys.stderr)
