"""What every launcher of ours does: start a sweep's workers, watch them, start dead ones again.

A launcher never knows of trials. A worker that dies costs nobody else anything, and `launch` raises
only where no worker can be started at all.
"""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.worker_job import WorkerDied, WorkerJob

POLL_S = 1.0
"""How long `ended` may take to notice that it is to stop."""


class WorkerLauncher(Launcher):
    """Runs identical jobs side by side until each came back.

    Args:
        workers: how many there is room for; `None` lets the engine say.
        restarts: how often, per worker and launch, one that died is started again.
    """

    hydra_context: HydraContext
    task_function: TaskFunction
    config: DictConfig
    on_this_machine = False
    """Whether the workers run on the sweeper's own machine, so that its devices are theirs."""

    def __init__(self, workers: int | None, restarts: int) -> None:
        self.workers = workers
        self.restarts = restarts
        self._stopping = threading.Event()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's own call, before anything else."""
        self.hydra_context = hydra_context
        self.task_function = task_function
        self.config = config

    def slots(self) -> int:
        """How many workers there is room for now; connects to the engine where that is needed.

        Raises:
            UserError: where the engine is not installed or cannot be reached.
        """
        room = self.room()
        return room if self.workers is None else self.workers

    def stop(self) -> None:
        """Start no worker any more: neither dead ones again nor those that still wait in a queue.

        Any thread and any signal handler may call it. Running workers are left alone.
        """
        self._stopping.set()

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run one worker for each list of overrides, and return when the last has come back.

        A result's status is FAILED where the worker raised, or died more often than `restarts`
        allows. It is UNKNOWN where another came back, so that nothing was left to do, while it was
        dead or not begun.
        """
        self.slots()
        jobs = [
            WorkerJob(number, tuple(overrides), self.hydra_context, self.config, self.task_function)
            for number, overrides in enumerate(job_overrides, start=initial_job_idx)
        ]
        results: dict[int, JobReturn] = {}
        deaths: dict[int, WorkerDied] = {}
        running: dict[Any, WorkerJob] = {}
        lives = self.restarts * len(jobs)
        over = False
        try:
            running.update(zip(self.start(jobs), jobs, strict=True))
            while running:
                for handle in self.ended(running):
                    job = running.pop(handle)
                    try:
                        results[job.number] = self.result(handle, job)
                        continue
                    except WorkerDied as death:
                        deaths[job.number] = death
                    again = not over and lives > 0 and self.takes_one_more(running)
                    fate = "died and is started again" if again else "died"
                    say(f"worker {job.number} {fate}: {deaths[job.number]}")
                    if again:
                        lives -= 1
                        with suppress(UserError):  # then it stays dead
                            running.update(zip(self.start([job]), [job], strict=True))
                # A worker comes back when nothing is left for it, so none needs to begin then.
                if not over and (_any_came_back(results) or self._stopping.is_set()):
                    over = True
                    self.drop_unbegun(running)
        finally:
            self.close(running)
        status = JobStatus.UNKNOWN if _any_came_back(results) else JobStatus.FAILED
        return [
            results.get(job.number) or job.ended(status, deaths[job.number]) for job in jobs
        ]

    @abstractmethod
    def room(self) -> int:
        """How many workers the engine has room for; raises `UserError` without the engine."""

    @abstractmethod
    def start(self, jobs: Sequence[WorkerJob]) -> Sequence[Any]:
        """Start the jobs and return a handle for each, in order."""

    @abstractmethod
    def ended(self, running: Collection[Any]) -> Collection[Any]:
        """Wait until at least one of the handles has ended, but no longer than `POLL_S`."""

    @abstractmethod
    def result(self, handle: Any, job: WorkerJob) -> JobReturn:
        """The result of an ended handle; raises `WorkerDied` where there is none."""

    def takes_one_more(self, running: Collection[Any]) -> bool:
        """Whether a worker started now would begin, besides the running ones."""
        return True

    def drop_unbegun(self, running: Collection[Any]) -> None:
        """Take those that have not begun out of the engine's queue, where it has one."""

    def close(self, running: Collection[Any]) -> None:
        """Let the engine go; what still runs, after an exception, is ended at once."""


def _any_came_back(results: Mapping[int, JobReturn]) -> bool:
    return any(result.status is JobStatus.COMPLETED for result in results.values())


def say(line: str) -> None:
    """Tell the person at the terminal."""
    print(line, file=sys.stderr, flush=True)
