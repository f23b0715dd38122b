"""A thread that keeps an eye on the ledger: it feeds the display and passes on a request to stop.

A signal handler cannot talk to MLflow, which may be in the middle of something; this thread can.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from mnist_hydra.sweep.display import Display, Shown
from mnist_hydra.sweep.ledger import Ledger, View

POLL_S = 2.0

log = logging.getLogger(__name__)


class Follower:
    """A context manager; while it is open the display follows the ledger.

    Args:
        ledger: for this object alone.
        display: what to feed.
        shown: what to show of the ledger, trials by fingerprint.
        by: the sweeper's token.
    """

    def __init__(
        self,
        ledger: Ledger,
        display: Display,
        shown: Callable[[View], Mapping[str, Shown]],
        by: str,
    ) -> None:
        self._ledger, self._display, self._shown, self._by = ledger, display, shown, by
        self._looking = threading.Lock()
        self._wake = threading.Event()
        self._over = False
        self._stop_reason: str | None = None
        self._thread = threading.Thread(target=self._run, name="sweep follower", daemon=True)

    def __enter__(self) -> Follower:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._wake.set()
        self._thread.join()
        self.look()

    def stop_trials(self, reason: str) -> None:
        """Ask all trials of this sweeper to write a checkpoint and end; a signal handler may."""
        self._stop_reason = reason
        self._wake.set()

    def _run(self) -> None:
        while not self._over:
            self._wake.wait(POLL_S)
            self._wake.clear()
            self.look(fresh=False)

    def look(self, fresh: bool = True) -> None:
        """Look at the ledger now, pass on a request to stop, and show what there is.

        Args:
            fresh: see `Ledger.read`.
        """
        with self._looking:
            try:
                self._pass_on()
                self._display.update(self._shown(self._ledger.read(fresh)), time.monotonic())
            except Exception as error:  # the store may be away for a while; training goes on
                log.warning("the ledger cannot be read: %s", error)

    def _pass_on(self) -> None:
        reason = self._stop_reason
        if reason is not None:
            self._ledger.stop(self._by, reason)
            self._stop_reason = None
            self._display.message(
                f"{reason}: running trials write a checkpoint; once more to leave at once"
            )
