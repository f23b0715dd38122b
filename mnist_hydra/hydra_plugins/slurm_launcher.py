"""Workers as one array of Slurm jobs, by submitit; or as processes that submitit starts here.

Whether a job is alive is asked of `squeue`, which every Slurm has. Submitit asks `sacct`, which a
cluster without accounting refuses, and would then wait for a dead job for ever.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any

from mnist_hydra.config import Count, Number
from mnist_hydra.errors import UserError
from mnist_hydra.sweep.launchers import CommandLauncher, Ended, followed, last_line, start_process

LARGEST_ARRAY = 64
ASK_EVERY_S = 3.0
RESULT_MAY_LAG_S = 5.0
"""How long a shared disk may take to show the result of a job that has left the queue."""


class SlurmLauncher(CommandLauncher):
    """Workers as Slurm jobs, which start when the cluster has room for them.

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
        max_requeues: Number,
        workers: Count | None,
        restarts: Number,
        **parameters: Any,
    ) -> None:
        super().__init__(workers, restarts)
        self.on_this_machine = cluster != "slurm"
        self.cluster, self.folder, self.max_requeues = cluster, folder, max_requeues
        self.parameters = parameters
        self._dropped = False
        self._asked_at = 0.0
        self._queued: dict[str, float] = {}
        """When each job was last seen in Slurm's queue, by id: `12_0` in an array."""
        self._reasons = {"None"}
        """Why jobs wait in the queue, as far as that was said; `None` is Slurm's word, too."""

    def room(self) -> int:
        """Jobs may wait in Slurm's queue, so there is room for many."""
        if self.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("squeue")):
            raise UserError(
                "hydra/launcher=slurm finds no sbatch and squeue on this machine: start the sweep "
                "where jobs may be submitted, or use hydra/launcher=joblib"
            )
        if self.cluster == "slurm" and (answer := _queue()).returncode != 0:
            why = last_line(answer.stderr)
            raise UserError(
                f"hydra/launcher=slurm: squeue gets no answer on this machine ({why}); right: "
                "start the sweep where it does, or use hydra/launcher=joblib"
            )
        self._executor()
        return (os.cpu_count() or 1) if self.on_this_machine else LARGEST_ARRAY

    def _executor(self) -> Any:
        try:
            submitit = import_module("submitit")
            made = submitit.AutoExecutor(
                self.folder, self.cluster, slurm_max_num_timeout=self.max_requeues
            )
            made.update_parameters(**self.parameters)
        except ImportError as error:
            mend = "pip install 'mnist_hydra[slurm]'"
            raise UserError(f"hydra/launcher=slurm needs submitit ({error}): {mend}") from None
        except (AssertionError, NameError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).splitlines()[:1])
            raise UserError(f"hydra.launcher: submitit refuses its settings: {why}") from None
        return made

    def start(self, commands: Mapping[int, tuple[list[str], list[str]]]) -> dict[int, Any]:
        """Submit the workers as one array."""
        threads = {"OMP_NUM_THREADS": str(self.parameters.get("cpus_per_task") or 1)}
        jobs = [WorkerJob([*head, *rest], threads, os.getcwd()) for head, rest in commands.values()]
        # What submitit starts here is not to see a Ctrl-C, which is for the sweeper alone.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            handles = self._executor().submit_array(jobs)
        except import_module("submitit.core.utils").FailedJobError as error:
            why = str(error).splitlines()[0]
            raise UserError(f"Slurm refuses the workers' jobs: {why}") from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._queued |= {handle.job_id: time.monotonic() for handle in handles}
        return dict(zip(commands, handles, strict=True))

    def ended(self, number: int, handle: Any) -> Ended | None:
        """The result that the job wrote, or the end of its log if it died without one."""
        if handle.paths.result_pickle.exists():
            try:
                ended: Ended = handle.result()
            except Exception as error:  # submitit's, with a traceback of the job between two rules
                return Ended(None, last_line(str(error).replace("-" * 22, "")))
            return ended
        if not self._has_left(handle):
            return None
        if self._dropped and not handle.paths.stdout.exists():
            return Ended(0)
        said = last_line(handle.stdout() or "it wrote no log")
        return Ended(None, f"{said} (job {handle.job_id}, log in {handle.paths.stdout})")

    def _has_left(self, handle: Any) -> bool:
        """Whether a job left the queue so long ago that its result, if any, would be here."""
        if self.on_this_machine:
            return bool(handle.done()) and not handle.paths.result_pickle.exists()
        now = time.monotonic()
        if now > self._asked_at + ASK_EVERY_S:
            answer = _queue()
            held = dict(line.partition(" ")[::2] for line in answer.stdout.splitlines())
            if answer.returncode != 0:
                held = dict.fromkeys(self._queued, "None")
            for job in held.keys() & self._queued.keys():  # the user may have others there
                self._queued[job] = now
                if held[job] not in self._reasons:
                    self._reasons.add(held[job])
                    print(f"workers wait in Slurm's queue: {held[job]}", file=sys.stderr)
            self._asked_at = now
        return now > self._queued[handle.job_id] + ASK_EVERY_S + RESULT_MAY_LAG_S

    def drop_waiting(self, running: Collection[Any]) -> None:
        """Cancel the jobs that still wait in Slurm's queue."""
        self._dropped = True
        if running and not self.on_this_machine:
            jobs = {handle.job_id.split("_")[0] for handle in running}
            subprocess.run(["scancel", "--state=PENDING", *jobs], capture_output=True)

    def close(self, running: Collection[Any]) -> None:
        """Cancel jobs that still run, which is so only if the launch itself was interrupted."""
        for handle in running:
            if not self.on_this_machine:
                subprocess.run(["scancel", handle.job_id], capture_output=True)
            else:
                with suppress(ProcessLookupError):
                    os.kill(int(handle.job_id), signal.SIGTERM)


def _queue() -> subprocess.CompletedProcess[str]:
    """What Slurm says of this user's jobs: the id of each, and why it waits, one a line."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %r"]
    return subprocess.run(command, capture_output=True, text=True)


class WorkerJob:
    """What submitit runs: a worker, whose job is requeued when its time is over.

    Submitit's own handler would requeue it in the middle of a step; here the worker first writes a
    checkpoint and ends. It is no dataclass, since Hydra's scan runs this file under no module name.

    Args:
        arguments: `python`'s.
        environment: variables on top of the job's own.
        folder: where the worker is started.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], folder: str) -> None:
        self.arguments, self.environment, self.folder = arguments, environment, folder

    def __call__(self) -> Ended:
        name = import_module("submitit.core.job_environment").JobEnvironment.USR_SIG
        warning = signal.Signals[f"SIG{name}"]
        # Slurm warns every process of a job, and what is ignored here is ignored by the worker.
        requeue: Any = signal.signal(warning, signal.SIG_IGN)
        worker = start_process(self.arguments, subprocess.PIPE, self.environment, self.folder)
        warned = []

        def stop(number: int, frame: FrameType | None) -> None:
            if number == warning:
                warned.append(number)
            assert worker.stdin is not None
            worker.stdin.close()

        signal.signal(warning, stop)
        signal.signal(signal.SIGTERM, stop)
        ended = followed(worker)
        if warned:
            requeue(warned[0], None)  # which exits
        return ended

    def checkpoint(self) -> Any:
        """Submitit's own protocol."""
        return import_module("submitit").helpers.DelayedSubmission(self)
