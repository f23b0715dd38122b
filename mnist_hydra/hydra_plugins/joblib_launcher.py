"""Workers as processes of this machine, by joblib's own process pool (loky).

Every worker has a pool of its own, because loky ends a whole pool when one of its processes dies:
the neighbours of a trial that always runs out of memory would be taken along each time.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import resource_tracker
from typing import Any, TypeAlias

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from mnist_hydra.sweep.placement import place, room, visible_gpus
from mnist_hydra.sweep.worker_job import WorkerDied, WorkerJob, ctrl_c_held
from mnist_hydra.sweep.worker_launcher import POLL_S, WorkerLauncher

Handle: TypeAlias = "Future[JobReturn]"


class JoblibLauncher(WorkerLauncher):
    """One worker a core, or `trials_per_gpu` a GPU where the trials may use one."""

    on_this_machine = True

    def __init__(
        self, workers: int | None = None, restarts: int = 3, trials_per_gpu: int = 1
    ) -> None:
        super().__init__(workers, restarts)
        self.trials_per_gpu = trials_per_gpu
        self._pools: dict[Handle, Any] = {}
        self._gpus: list[str] | None = None
        self._count = 0

    def room(self) -> int:
        """Cores that this process may use, container limits included, or room on the GPUs."""
        return room(self.gpus(), trials_per_gpu=self.trials_per_gpu, cores=_cores())

    def gpus(self) -> list[str]:
        """The GPUs that are shared out, looked up once."""
        if self._gpus is None:
            device = str(OmegaConf.select(self.config, "device", default="auto"))
            self._gpus = visible_gpus(device, os.environ)
        return self._gpus

    def start(self, jobs: Sequence[WorkerJob]) -> list[Handle]:
        """Start a process for each job."""
        loky = import_module("joblib.externals.loky")
        self._count = max(self._count, len(jobs))
        placed = [
            place(job.number, self._count, gpus=self.gpus(), cores=_cores()) for job in jobs
        ]
        pools = [loky.ProcessPoolExecutor(max_workers=1, env=each.environment) for each in placed]
        resource_tracker.ensure_running()  # its start would let Ctrl-C through again
        with ctrl_c_held():
            handles = [
                pool.submit(_run, job.placed(each.environment), os.getpid())
                for pool, job, each in zip(pools, jobs, placed, strict=True)
            ]
        self._pools.update(zip(handles, pools, strict=True))
        return handles

    def ended(self, running: Collection[Handle]) -> Collection[Handle]:
        """Wait for the next processes that come back or die."""
        return wait(running, POLL_S, FIRST_COMPLETED).done

    def result(self, handle: Handle, job: WorkerJob) -> JobReturn:
        """What the process sent back before it ended."""
        try:
            return handle.result()
        except BrokenProcessPool as error:
            raise WorkerDied(_cause(error)) from error
        finally:
            self._pools.pop(handle).shutdown(wait=True)

    def close(self, running: Collection[Handle]) -> None:
        """End what still runs; there is something only when the launch itself was interrupted."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, kill_workers=True)
        self._pools.clear()
        self._count = 0


def _cores() -> int:
    return int(import_module("joblib").cpu_count())


def _cause(error: BaseException) -> str:
    """The exit code, `{SIGKILL(-9)}`, out of loky's long message."""
    found = re.search(r"exit codes of the workers are (\{.*?\})", str(error))
    return found.group(1) if found else str(error).strip().splitlines()[0]


def _run(job: WorkerJob, sweeper: int) -> JobReturn:
    """The job, in its process: where the sweeper's is gone, it writes a checkpoint and ends."""
    threading.Thread(target=_stop_without, args=(sweeper,), daemon=True).start()
    result = job()
    if os.getppid() != sweeper:  # loky would wait for its next order for ever
        os._exit(1)
    return result


def _stop_without(sweeper: int) -> None:
    while os.getppid() == sweeper:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
