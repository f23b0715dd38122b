"""Workers as one array of Slurm jobs, by submitit; or as processes that submitit starts here.

Whether a job lives is not asked of submitit: it asks `sacct`, which a cluster without accounting
refuses, and would then wait for a dead job for ever.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.slurm_queue import (
    RequeueableRun,
    SlurmQueue,
    cancel,
    executor,
    kill_children,
)
from mnist_hydra.sweep.worker_job import WorkerDied, WorkerJob, ctrl_c_held
from mnist_hydra.sweep.worker_launcher import POLL_S, WorkerLauncher

LARGEST_ARRAY = 64


class SlurmLauncher(WorkerLauncher):
    """Jobs that begin as the cluster has room for them.

    Args:
        cluster: `slurm`, or `local` for processes of this machine.
        folder: for job files, logs and results; every machine of the cluster must see it.
        max_requeues: how often a job that reached its time limit goes back to the queue.
        parameters: what submitit's `AutoExecutor.update_parameters` takes.
    """

    def __init__(
        self,
        cluster: str,
        folder: str,
        max_requeues: int,
        workers: int | None,
        restarts: int,
        **parameters: Any,
    ) -> None:
        super().__init__(workers, restarts)
        self.on_this_machine = cluster != "slurm"
        self.cluster, self.folder, self.max_requeues = cluster, folder, max_requeues
        self.parameters = parameters
        self._queue = SlurmQueue()
        self._dropped = False

    def room(self) -> int:
        """Jobs may wait in Slurm's queue, so there is room for many."""
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("squeue")):
            raise UserError(
                "hydra/launcher=slurm finds no sbatch and squeue on this machine: start the sweep "
                "where jobs may be submitted, or use hydra/launcher=joblib"
            )
        self._executor()
        return (os.cpu_count() or 1) if self.on_this_machine else LARGEST_ARRAY

    def _executor(self) -> Any:
        return executor(self.folder, self.cluster, self.max_requeues, self.parameters)

    def start(self, jobs: Sequence[WorkerJob]) -> list[Any]:
        """Submit the jobs as one array."""
        threads = {"OMP_NUM_THREADS": str(self.parameters.get("cpus_per_task") or 1)}
        with ctrl_c_held():
            placed = [job.placed(threads) for job in jobs]
            try:
                handles: list[Any] = self._executor().map_array(RequeueableRun(), placed)
            except import_module("submitit.core.utils").FailedJobError as error:
                why = str(error).splitlines()[0]
                raise UserError(f"Slurm refuses the workers' jobs: {why}") from None
        self._queue.add(handle.job_id for handle in handles)
        return handles

    def ended(self, running: Collection[Any]) -> list[Any]:
        """Jobs with a result, and those that are gone without one."""
        time.sleep(POLL_S)
        if self.on_this_machine:
            return [handle for handle in running if handle.done()]
        self._queue.ask()
        return [
            handle
            for handle in running
            if handle.paths.result_pickle.exists() or self._queue.has_lost(handle.job_id)
        ]

    def result(self, handle: Any, job: WorkerJob) -> JobReturn:
        """What the job wrote before it ended."""
        if handle.paths.result_pickle.exists():
            try:
                result: JobReturn = handle.result()
            except Exception as error:  # submitit's has the traceback between two rules
                trace = [part for part in str(error).split("-" * 22) if part.strip()]
                raise WorkerDied(trace[:2][-1].strip().splitlines()[-1]) from error
            return result
        if self._dropped and not handle.paths.stdout.exists():
            return job.ended(JobStatus.UNKNOWN)
        said = " ".join((handle.stdout() or "it wrote no log").strip().splitlines()[-1:])
        raise WorkerDied(f"{said} (job {handle.job_id}, log in {handle.paths.stdout})")

    def drop_unbegun(self, running: Collection[Any]) -> None:
        """Cancel what still waits in Slurm's queue."""
        self._dropped = True
        if running and not self.on_this_machine:
            cancel("--state=PENDING", *{handle.job_id.split("_")[0] for handle in running})

    def close(self, running: Collection[Any]) -> None:
        """Cancel what still runs, which there is only when the launch itself was interrupted."""
        for handle in running:
            if not self.on_this_machine:
                cancel(handle.job_id)
            else:
                kill_children(int(handle.job_id))
