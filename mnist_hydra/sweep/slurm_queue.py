"""A worker's way into Slurm's queue, its place there, and back into it when its time is over.

Slurm is asked no more often than every few seconds, and no answer is no news.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any

from hydra.core.utils import JobReturn

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.worker_job import WorkerJob

ASK_EVERY_S = 3.0
RESULT_MAY_LAG_S = 5.0
"""How long a shared disk may take to show the result of a job that has left the queue."""


def executor(folder: str, cluster: str, max_requeues: int, parameters: Mapping[str, Any]) -> Any:
    """Submitit's executor, with its settings.

    Raises:
        UserError: submitit is not installed, or refuses the settings.
    """
    try:
        submitit = import_module("submitit")
        made = submitit.AutoExecutor(folder, cluster, slurm_max_num_timeout=max_requeues)
        made.update_parameters(**parameters)
    except ImportError as error:
        mend = "pip install 'mnist_hydra[slurm]'"
        raise UserError(f"hydra/launcher=slurm needs submitit ({error}): {mend}") from None
    except (AssertionError, NameError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).splitlines()[:1])
        raise UserError(f"hydra.launcher: submitit refuses its settings: {why}") from None
    return made


class SlurmQueue:
    """The jobs that wait or run, by id (`12_0` in an array), as `squeue` last said.

    Every Slurm answers `squeue`; `sacct`, which submitit asks, needs accounting.
    """

    def __init__(self) -> None:
        self._held: set[str] = set()
        self._asked_at = float("-inf")
        self._left_at: dict[str, float] = {}

    def add(self, jobs: Iterable[str]) -> None:
        """Jobs that were just submitted."""
        self._held.update(jobs)

    def ask(self) -> None:
        """Ask Slurm, unless it was asked just now; where it does not answer, nothing changes."""
        if time.monotonic() < self._asked_at + ASK_EVERY_S:
            return
        command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            self._held = set(answer.stdout.split())
        self._asked_at = time.monotonic()

    def has_lost(self, job: str) -> bool:
        """Whether a job is gone for so long that its result, if it had one, would be here."""
        if job in self._held:
            self._left_at.pop(job, None)
            return False
        now = time.monotonic()
        return now > self._left_at.setdefault(job, now) + RESULT_MAY_LAG_S


def cancel(*arguments: str) -> None:
    """`scancel`; jobs that are no more are no error."""
    subprocess.run(["scancel", *arguments], capture_output=True)


def kill_children(pid: int) -> None:
    """What `cancel` is to Slurm's jobs, for the processes below one of this machine's."""
    psutil = import_module("psutil")
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            process.kill()


class RequeueableRun:
    """Runs a job; when its time is over or Slurm preempts it, it goes back to the queue as it is.

    Submitit's own handler would do so in the middle of a step: the trial writes a checkpoint first.
    """

    def __call__(self, job: WorkerJob) -> JobReturn:
        environment = import_module("submitit.core.job_environment").JobEnvironment
        warning = signal.Signals[f"SIG{environment.USR_SIG}"]
        warned: list[int] = []

        def stop(number: int, frame: FrameType | None) -> None:
            warned.append(number)
            os.kill(os.getpid(), signal.SIGTERM)

        requeue: Any = signal.signal(warning, stop)
        result = job()
        if warned:
            requeue(warned[0], None)  # which exits
        return result

    def checkpoint(self, job: WorkerJob) -> Any:
        """Submitit's own protocol."""
        return import_module("submitit").helpers.DelayedSubmission(self, job)
