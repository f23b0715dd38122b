"""Workers as tasks on a Ray cluster: one that exists, or a local one for this sweep alone.

Tasks are waited for together, so that a dead worker or node loses nobody else's result. Nothing
travels through Ray but the job and its result; a cluster's machines need the project installed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from mnist_hydra.sweep.config_files import pack
from mnist_hydra.sweep.ray_cluster import LOCAL, joined
from mnist_hydra.sweep.worker_job import WorkerDied, WorkerJob
from mnist_hydra.sweep.worker_launcher import POLL_S, WorkerLauncher


class RayLauncher(WorkerLauncher):
    """One worker per `cpus_per_worker`, or `trials_per_gpu` a GPU where the trials may use one.

    Args:
        address: `host:port` of the head; `auto` for the cluster of this machine; `None` for
            `RAY_ADDRESS` where that is set, else a local cluster that ends with the sweep.
    """

    def __init__(
        self,
        address: str | None,
        cpus_per_worker: float,
        trials_per_gpu: int,
        workers: int | None,
        restarts: int,
    ) -> None:
        super().__init__(workers, restarts)
        self.address = address or os.environ.get("RAY_ADDRESS") or LOCAL
        self.on_this_machine = self.address == LOCAL
        self.cpus_per_worker = cpus_per_worker
        self.trials_per_gpu = trials_per_gpu

    def room(self) -> int:
        """What the whole cluster takes; joins it first."""
        if gpus := self._gpus():
            return gpus * self.trials_per_gpu
        cpus = joined(self.address).cluster_resources().get("CPU", 0)
        return max(1, int(cpus // self.cpus_per_worker))

    def _gpus(self) -> int:
        device = str(OmegaConf.select(self.config, "device", default="auto"))
        if device != "auto" and not device.startswith("cuda"):
            return 0
        return int(joined(self.address).cluster_resources().get("GPU", 0))

    def start(self, jobs: Sequence[WorkerJob]) -> list[Any]:
        """Submit the jobs as tasks; each has a process of its own, which ends with it."""
        ray = joined(self.address)
        needs = {"num_cpus": self.cpus_per_worker}
        if self._gpus():
            needs["num_gpus"] = 1 / self.trials_per_gpu
        run = ray.remote(max_retries=0, max_calls=1, scheduling_strategy="SPREAD", **needs)(_run)
        files = pack(self.hydra_context.config_loader.get_sources())
        return [run.remote(replace(job, config_files=files)) for job in jobs]

    def ended(self, running: Collection[Any]) -> list[Any]:
        """Wait for the next tasks that come back or are lost."""
        ended, _ = joined(self.address).wait(list(running), num_returns=1, timeout=POLL_S)
        return list(ended)

    def result(self, handle: Any, job: WorkerJob) -> JobReturn:
        """What the task gave back."""
        ray = joined(self.address)
        try:
            result: JobReturn = ray.get(handle)
        except ray.exceptions.TaskCancelledError:
            return job.ended(JobStatus.UNKNOWN)
        except ray.exceptions.RayError as error:
            raise WorkerDied(str(error).strip().splitlines()[0]) from error
        return result

    def takes_one_more(self, running: Collection[Any]) -> bool:
        """Whether what is left of the cluster has room besides the running workers."""
        return self.room() > len(running)

    def drop_unbegun(self, running: Collection[Any]) -> None:
        """Cancel the tasks; those that have begun ignore the interrupt that Ray sends them."""
        for handle in running:
            joined(self.address).cancel(handle, force=False, recursive=False)

    def close(self, running: Collection[Any]) -> None:
        """Leave the cluster, which ends what still runs for this sweep; a local one ends too."""
        joined(self.address).shutdown()


def _run(job: WorkerJob) -> JobReturn:
    return job()
