"""One attempt at a trial: heartbeat, stop requests and time limit while it trains, then its end.

It tells the training when to stop, and changes nothing that the training records.
"""

from __future__ import annotations

import gc
import io
import itertools
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from types import FrameType, SimpleNamespace
from typing import Any, TextIO, TypeAlias, cast

from mnist_hydra.config import SweepConfig
from mnist_hydra.errors import ClaimLost, TimedOut, first_line
from mnist_hydra.ledger.ledger import Ledger, wait_for_store
from mnist_hydra.ledger.plan import Planned
from mnist_hydra.ledger.trial import FAILED, TIMEOUT, Trial
from mnist_hydra.secrets import hide_in_error
from mnist_hydra.stopping import Hooks, StopReason

ASK_S = 1.0
"""How often the ledger is asked whether the trial is to stop."""
ASKS_PER_BEAT = 3
"""The heartbeat changes with every third time."""
GRACE_S = 20.0
"""How long a trial may go on past its time limit, to write a checkpoint, before it is killed."""
HUNG_EXIT_CODE = 1
MAX_CHARACTERS = 1_000_000
"""Of a transcript so many at least are kept, and no more than twice as many."""

Prune: TypeAlias = Callable[[int, dict[str, float]], bool]
"""Decides after an epoch of a trial, from its number and metrics, whether to give the trial up."""

Train: TypeAlias = Callable[[Planned, str, "Watch"], str]
"""Trains one trial in its run, whose id it gets; returns how that ended: `finished`, `interrupted`,
`pruned` or `timeout`. The watch is the training's hooks, and is told when its time limit begins and
ends.
"""

log = logging.getLogger(__name__)


def attempt(planned: Planned, train: Train, watch: Watch) -> None:
    """Train a claimed trial once and record how that ended; a failure is recorded, not raised."""
    trial, error, folder = watch.trial, "", os.getcwd()
    try:
        with transcribing() as transcript, watch:
            end = train(planned, trial.run_id, watch)
        if end == TIMEOUT:
            error = watch.timeout_text()
    except ClaimLost as lost:
        log.warning("%s", lost)
        return
    except TimedOut:
        # What a trial's error ends with is shown in the sweep's results.
        end, error = TIMEOUT, traceback.format_exc() + watch.timeout_text()
    except BaseException:  # noqa: B036  a user's own code may raise what it likes
        end, error = FAILED, traceback.format_exc()
    finally:
        os.chdir(folder)  # a user's own code may have changed it, and paths may be relative
    seconds = watch.seconds
    gc.collect(1)  # what the training made, before it counts among what stays
    if error:
        error = hide_in_error(error)
        _keep_evidence(planned, watch, error, transcript.getvalue())
        _free_memory()
    wait_for_store(watch.stop, watch.ledger.end, trial, end, seconds=seconds, error=error)


def _keep_evidence(planned: Planned, watch: Watch, error: str, transcript: str) -> None:
    """Record the full traceback and the log of a failed attempt as artifacts of its run."""
    trial, client = watch.trial, watch.ledger.client
    folder = f"failures/attempt-{trial.number}"
    heading = f"{' '.join(planned.overrides)}\non {trial.owner}\n\n"
    try:
        said = hide_in_error(heading + transcript)
        client.log_text(trial.run_id, error, f"{folder}/traceback.txt")
        client.log_text(trial.run_id, said, f"{folder}/log.txt")
    except Exception as failure:  # the state is what matters
        log.warning("the traceback of %s could not be kept: %s", trial.name, failure)


def _free_memory() -> None:
    """Free the memory of a failed training before the next one begins."""
    torch = sys.modules.get("torch")
    if torch is not None:
        gc.collect()
        torch.cuda.empty_cache()


@dataclass
class Watch(Hooks):
    """The sweep's part in one attempt, as the hooks of a training and as a context."""

    ledger: Ledger
    """Of the sweep."""
    trial: Trial
    """As `Ledger.claim` returned it."""
    settings: SweepConfig
    """Of the sweep."""
    stop: threading.Event
    """Set when this process is asked to stop."""
    prune: Prune | None = None
    """Decides whether to give the trial up; `None` never does."""
    _began: float = field(default_factory=time.monotonic)
    _limit_from: float | None = None
    asked_to_stop: bool = False
    """Whether the ledger asks for it."""
    _lost: bool = False
    _over: threading.Event = field(default_factory=threading.Event)
    _watchdog: threading.Timer | None = None
    _alarm_before: object = None

    @property
    def seconds(self) -> float:
        """Since the attempt began."""
        return time.monotonic() - self._began

    def should_stop(self) -> StopReason | None:
        """Asked after every step.

        Raises:
            ClaimLost: so that nothing more is written.
        """
        self._raise_if_lost()
        if self.asked_to_stop or self.stop.is_set():
            return StopReason.INTERRUPTED
        limit_s = self.settings.trial_timeout_s
        if limit_s is None or self._limit_from is None:
            return None
        return StopReason.TIMEOUT if time.monotonic() > self._limit_from + limit_s else None

    def after_epoch(self, epoch: int, metrics: dict[str, float]) -> StopReason | None:
        reason = self.should_stop()
        if reason is None and self.prune is not None and self.prune(epoch, metrics):
            return StopReason.PRUNED
        return reason

    def check_claim(self) -> None:
        """Asked before anything is written to the trial's run.

        Raises:
            ClaimLost: another process has recorded that this one is dead, and may train the trial.
        """
        self._lost = self._lost or self.ledger.has_ended(self.trial)
        self._raise_if_lost()

    def _raise_if_lost(self) -> None:
        if self._lost:
            raise ClaimLost(f"{self.trial.name}: it was deleted, or another process took it over")

    def timeout_text(self) -> str:
        """The recorded error of a trial that took too long."""
        return f"took longer than sweep.trial_timeout_s={self.settings.trial_timeout_s:g}"

    def __enter__(self) -> Watch:
        self._beating = threading.Thread(target=self._beat, daemon=True, name="heartbeat")
        self._beating.start()
        return self

    def begin_limit(self, used_s: float = 0.0) -> None:
        """From here on it may take `sweep.trial_timeout_s`: what it waited for before is no
        training.

        Args:
            used_s: what it has taken of that already.
        """
        self._limit_from = time.monotonic() - used_s
        if self.settings.trial_timeout_s is not None:
            forced_after_s = max(0.0, self.settings.trial_timeout_s - used_s) + GRACE_S
            if threading.current_thread() is threading.main_thread():
                self._alarm_before = signal.signal(signal.SIGALRM, self._raise_timed_out)
                signal.setitimer(signal.ITIMER_REAL, forced_after_s)
                forced_after_s += GRACE_S
            self._watchdog = threading.Timer(forced_after_s, self._end_process)
            self._watchdog.daemon = True
            self._watchdog.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        used_s = time.monotonic() - cast(float, self._limit_from)
        self.end_limit()
        try:
            yield
        finally:
            self.begin_limit(used_s)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()  # no heartbeat may be written after the attempt's end
        self.end_limit()

    def end_limit(self) -> None:
        """From here on it may take as long as it takes, such as to wait for the store."""
        self._limit_from = None
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._alarm_before is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm_before)  # type: ignore[arg-type]
            self._alarm_before = None

    def _beat(self) -> None:
        """Ask every `ASK_S` whether to stop, and change the heartbeat every few times."""
        warned, sweeper = False, str(self.settings.by)
        for count in itertools.count(1):
            if self._over.wait(ASK_S):
                return
            try:
                self.asked_to_stop = self.asked_to_stop or self.ledger.stopped(sweeper)
                beats, asks_since = divmod(count, ASKS_PER_BEAT)
                if asks_since == 0 and not self.ledger.beat(self.trial, beats):
                    self._lost = True
                    return
                warned = warned and asks_since != 0  # a store that is full can be read
            except Exception as error:  # the store may come back; training goes on
                if not warned:
                    log.warning("no heartbeat of %s: %s", self.trial.name, first_line(error))
                warned = True

    def _raise_timed_out(self, number: int, frame: FrameType | None) -> None:
        if not self._over.is_set():
            raise TimedOut

    def _end_process(self) -> None:
        """End this process: the training hangs where no Python exception can reach it."""
        if self._over.is_set():
            return
        text = self.timeout_text() + "; it hung, so its process was ended"
        try:
            self.ledger.end(self.trial, TIMEOUT, seconds=self.seconds, error=text)
        finally:
            print(f"{self.trial.name}: {text}", file=sys.stderr, flush=True)
            os._exit(HUNG_EXIT_CODE)


@contextmanager
def transcribing() -> Iterator[io.StringIO]:
    """A context that keeps a copy of what this thread prints and logs, of much of it the end."""
    transcript, thread = io.StringIO(), threading.get_ident()

    def keep(text: str) -> None:
        if threading.get_ident() == thread:
            transcript.write(text)
            if transcript.tell() > 2 * MAX_CHARACTERS:
                end = transcript.getvalue()[-MAX_CHARACTERS:]
                transcript.seek(0)
                transcript.truncate()
                transcript.write(end)

    handler = logging.StreamHandler(SimpleNamespace(write=keep))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    # Where nobody else handles warnings Python shows them itself; with a handler it would not.
    shown = logging.lastResort if not root.handlers else None
    added: list[logging.Handler] = [handler, shown] if shown is not None else [handler]
    for each in added:
        root.addHandler(each)
    out, err = (cast(TextIO, _Tee(stream, keep)) for stream in (sys.stdout, sys.stderr))
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield transcript
    finally:
        for each in added:
            root.removeHandler(each)


class _Tee:
    """Another stream, of which what is written is handed to `keep` as well."""

    def __init__(self, shown: TextIO, keep: Callable[[str], None]) -> None:
        self._shown, self._keep = shown, keep

    def write(self, text: str) -> int:
        self._keep(text)
        return self._shown.write(text)

    def close(self) -> None:
        """A trial's code has no say in that: others follow it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)
