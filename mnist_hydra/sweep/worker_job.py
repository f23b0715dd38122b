"""One worker job as it travels to the process that runs it, whichever engine starts that process.

It knows nothing of trials: it hands the task function its configuration, as Hydra would.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from mnist_hydra.errors import UserError
from mnist_hydra.sweep.config_files import Folders, unpack


class WorkerFailed(Exception):
    """A worker ended by an exception; the message is its traceback."""


class WorkerDied(Exception):
    """A worker's process, or the machine under it, is gone; the message says what is known."""


@dataclass(frozen=True)
class WorkerJob:
    """A task function, its overrides, and all of the sweeper's process that it needs elsewhere."""

    number: int
    overrides: tuple[str, ...]
    context: HydraContext
    config: DictConfig
    task: TaskFunction
    environment: dict[str, str] = field(default_factory=dict)
    """Set before anything heavy is imported."""
    config_files: Folders = field(default_factory=dict)
    """The folders of `--config-dir`, for machines that do not share the sweeper's disk."""
    singletons: dict[Any, Any] = field(default_factory=Singleton.get_state)
    folder: str = field(default_factory=os.getcwd)
    search_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    def placed(self, environment: dict[str, str]) -> WorkerJob:
        """The same job with an environment for its process."""
        return replace(self, environment=environment)

    def ended(self, status: JobStatus, error: BaseException | None = None) -> JobReturn:
        """What stands for this job's result where its task function gave none."""
        ended = JobReturn(overrides=list(self.overrides), status=status)
        ended.return_value = error
        return ended

    def __call__(self) -> JobReturn:
        """Run the task function here; whatever it raises comes back as a failed result."""
        os.environ.update(self.environment)
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path.extend(entry for entry in self.search_path if entry not in sys.path)
        leave_ctrl_c_to_the_sweeper()
        try:
            result = self._run()
        except BaseException as error:  # noqa: B036  not even an exit ends the engine
            result = self.ended(JobStatus.FAILED, error)
        if result.status is JobStatus.FAILED:
            result.return_value = _portable(result._return_value)
        return result

    def _run(self) -> JobReturn:
        setup_globals()
        Singleton.set_state(self.singletons)  # which scans for plugins once more
        import_module("hydra_plugins.mnist_hydra.registration").register()
        loader = self.context.config_loader
        global_loader = GlobalHydra.instance().config_loader()
        moved = unpack(self.config_files, [*loader.get_sources(), *global_loader.get_sources()])
        config = loader.load_sweep_config(self.config, list(self.overrides))
        with open_dict(config):
            config.hydra.job.id = str(self.number)
            config.hydra.job.num = self.number
            for source in config.hydra.runtime.config_sources:
                source.path = moved.get(source.path, source.path)
        HydraConfig.instance().set_config(config)
        return run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )


def _portable(error: BaseException) -> Exception:
    """The same news in an exception that any process can unpickle."""
    if isinstance(error, UserError):
        return UserError(str(error))
    return WorkerFailed("".join(traceback.format_exception(error)).rstrip())


@contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Processes started in here do not see Ctrl-C until their job has said what it does with it.

    A Ctrl-C meanwhile reaches this process at the end.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def leave_ctrl_c_to_the_sweeper() -> None:
    """Ignore SIGINT, which a terminal sends to workers too; the sweeper tells them to stop."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
