"""One attempt at a trial: heartbeat, stop requests and time limit while it trains, then its end.

It tells the training when to stop, and changes nothing that the training records.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from mnist_hydra.ledger.ledger import Ledger, wait_for_store
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import FAILED, INTERRUPTED, TIMEOUT, Trial
from mnist_hydra.secrets import hide

if TYPE_CHECKING:
    from mnist_hydra.trainer import StopReason

BEAT_S = 3.0
ASK_S = 1.0
"""How often the ledger is asked whether the trial is to stop."""
GRACE_S = 20.0
"""How long a trial may go on past its time limit, to write a checkpoint, before it is killed."""
HUNG_EXIT_CODE = 1
MAX_CHARACTERS = 1_000_000
"""The beginning of a longer transcript is dropped."""

log = logging.getLogger(__name__)


class ClaimLost(Exception):
    """Another process has taken the trial, as this one was silent too long; or it was deleted."""


class TimedOut(BaseException):
    """Raised inside a training that is past its time limit and did not stop.

    It is no `Exception`, so that a user's own code does not catch it by accident.
    """


class Train(Protocol):
    """Trains one trial in its run."""

    def __call__(self, planned: Planned, run_id: str, watch: Watch, resume: bool) -> str:
        """Train; returns how it ended: `finished`, `interrupted`, `pruned` or `timeout`.

        Args:
            watch: the training's hooks; the function sets `watch.epochs`.
            resume: whether there is a checkpoint to go on from.
        """


def attempt(ledger: Ledger, planned: Planned, trial: Trial, train: Train, watch: Watch) -> None:
    """Train a claimed trial once and record how that ended; a failure is recorded, not raised."""
    error = ""
    transcript = Transcript()
    try:
        with watch, transcript:
            end = train(planned, trial.run_id, watch, trial.step >= 0)
        if end == TIMEOUT:
            error = timeout_text(watch.timeout_s)
    except ClaimLost as lost:
        log.warning("%s", lost)
        return
    except TimedOut:
        end, error = TIMEOUT, timeout_text(watch.timeout_s) + "\n" + traceback.format_exc()
    except (Exception, SystemExit):
        end, error = FAILED, traceback.format_exc()
    except BaseException:
        ledger.end(trial, INTERRUPTED, seconds=watch.seconds)
        raise
    seconds = watch.seconds
    if error:
        _keep_evidence(ledger, planned, trial, error, transcript.text())
        _free_memory()
    wait_for_store(lambda: ledger.end(trial, end, seconds=seconds, error=error), watch.stop)


def _keep_evidence(
    ledger: Ledger, planned: Planned, trial: Trial, error: str, transcript: str
) -> None:
    """Record the full traceback and the log of a failed attempt as artifacts of its run."""
    folder = f"failures/attempt-{trial.number}"
    about = f"{' '.join(planned.overrides)}\non {trial.attempts[-1].owner}\n\n"
    try:
        ledger.client.log_text(trial.run_id, hide(error), f"{folder}/traceback.txt")
        ledger.client.log_text(trial.run_id, hide(about + transcript), f"{folder}/log.txt")
    except Exception as failure:  # the state is what matters
        log.warning("the traceback of %s could not be kept: %s", trial.name, failure)


def _free_memory() -> None:
    """Free the memory of a failed training before the next one begins."""
    torch = sys.modules.get("torch")
    if torch is not None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Watch:
    """The sweep's part in one attempt, as the `Hooks` of a training and as a context.

    Args:
        ledger: of the sweep.
        trial: as `Ledger.claim` returned it.
        by: the sweeper's token.
        stop: set when this process is asked to stop.
        timeout_s: time limit of the attempt, or `None`.
        prune: decides after an epoch, from its number and metrics, whether to give the trial up.
        beat_s, grace_s: see `BEAT_S`, `GRACE_S`.
    """

    def __init__(
        self,
        ledger: Ledger,
        trial: Trial,
        *,
        by: str,
        stop: threading.Event,
        timeout_s: float | None = None,
        prune: Callable[[int, dict[str, float]], bool] | None = None,
        beat_s: float = BEAT_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._ledger = ledger
        self._trial = trial
        self._by = by
        self.epochs: int | None = None
        """How many the trial has; set by the training."""
        self.stop = stop
        self.timeout_s = timeout_s
        self._prune = prune
        self._beat_s = beat_s
        self._grace_s = grace_s
        self._began = time.monotonic()
        self._deadline = self._began + timeout_s if timeout_s is not None else float("inf")
        self._told_to_stop = False
        self._lost = False
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._watchdog: threading.Timer | None = None
        self._alarm_before: object = None

    @property
    def seconds(self) -> float:
        """Since the attempt began."""
        return time.monotonic() - self._began

    def should_stop(self) -> StopReason | None:
        """Asked after every step.

        Raises:
            ClaimLost: so that nothing more is written.
        """
        if self._lost:
            raise ClaimLost(f"{self._trial.name}: it was deleted, or another process took it over")
        if not (self._told_to_stop or self.stop.is_set() or time.monotonic() > self._deadline):
            return None
        from mnist_hydra.trainer import StopReason  # torch; whoever trains has it

        if self._told_to_stop or self.stop.is_set():
            return StopReason.INTERRUPTED
        return StopReason.TIMEOUT

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        """Told of every epoch; after the last one there is nothing left to stop."""
        reason = self.should_stop()
        if epoch == self.epochs:
            return None
        if reason is None and self._prune is not None and self._prune(epoch, metrics):
            from mnist_hydra.trainer import StopReason

            return StopReason.PRUNED
        return reason

    def __enter__(self) -> Watch:
        self._beating.start()
        if self.timeout_s is not None:
            forced_after_s = self.timeout_s + self._grace_s
            if threading.current_thread() is threading.main_thread() and hasattr(
                signal, "setitimer"
            ):
                self._alarm_before = signal.signal(signal.SIGALRM, self._raise_timed_out)
                signal.setitimer(signal.ITIMER_REAL, forced_after_s)
                forced_after_s += self._grace_s
            self._watchdog = threading.Timer(forced_after_s, self._end_process)
            self._watchdog.daemon = True
            self._watchdog.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()  # no heartbeat may be written after the attempt's end
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._alarm_before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)  # type: ignore[arg-type]

    def _beat(self) -> None:
        """Change the heartbeat every `beat_s`, and ask about `ASK_S` apart whether to stop."""
        silent = False
        asks = max(1, round(self._beat_s / ASK_S))  # a heartbeat
        for count in itertools.count(1):
            if self._over.wait(self._beat_s / asks):
                return
            try:
                self._told_to_stop = self._told_to_stop or self._ledger.stopped(self._by)
                if count % asks == 0 and not self._ledger.beat(self._trial, count // asks):
                    self._lost = True
                    return
                silent = False
            except Exception as error:  # the store may come back; training goes on
                if not silent:
                    log.warning("no heartbeat of %s: %s", self._trial.name, error)
                silent = True

    def _raise_timed_out(self, number: int, frame: FrameType | None) -> None:
        if not self._over.is_set():
            raise TimedOut

    def _end_process(self) -> None:
        """End this process: the training hangs where no Python exception can reach it."""
        if self._over.is_set():
            return
        text = timeout_text(self.timeout_s) + "; it hung, so its process was ended"
        try:
            self._ledger.end(self._trial, TIMEOUT, seconds=self.seconds, error=text)
        finally:
            print(f"{self._trial.name}: {text}", file=sys.stderr, flush=True)
            os._exit(HUNG_EXIT_CODE)


def timeout_text(timeout_s: float | None) -> str:
    """The recorded error of a trial that took too long."""
    return f"took longer than sweep.trial_timeout_s={timeout_s:g}"


class Transcript:
    """A context that keeps a copy of all that this thread prints and logs."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._length = 0
        self._thread = threading.get_ident()
        self._handler = logging.StreamHandler(cast(TextIO, _Tee(None, self)))
        form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        self._handler.setFormatter(logging.Formatter(form))

    def text(self) -> str:
        """All that was kept."""
        return "".join(self._kept)

    def keep(self, text: str) -> None:
        """Add `text`, if this thread is the one that opened the context."""
        if threading.get_ident() != self._thread or not text:
            return
        self._kept.append(text)
        self._length += len(text)
        while self._length > MAX_CHARACTERS and len(self._kept) > 1:
            self._length -= len(self._kept.pop(0))

    def __enter__(self) -> Transcript:
        logging.getLogger().addHandler(self._handler)
        self._before = sys.stdout, sys.stderr
        self._own = tuple(cast(TextIO, _Tee(stream, self)) for stream in self._before)
        sys.stdout, sys.stderr = self._own
        return self

    def __exit__(self, *_: object) -> None:
        # A stream that other code has replaced meanwhile is left alone.
        if sys.stdout is self._own[0]:
            sys.stdout = self._before[0]
        if sys.stderr is self._own[1]:
            sys.stderr = self._before[1]
        logging.getLogger().removeHandler(self._handler)


class _Tee:
    """A stream that keeps a copy of what is written to another one, if there is another one."""

    def __init__(self, shown: TextIO | None, transcript: Transcript) -> None:
        self._shown = shown
        self._transcript = transcript

    def write(self, text: str) -> int:
        self._transcript.keep(text)
        return len(text) if self._shown is None else self._shown.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)
