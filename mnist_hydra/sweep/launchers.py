"""Starts a sweep's workers and watches them; it knows nothing about trials.

A worker is the sweep's own command with more overrides, so any engine that runs commands can run
workers, and one that dies does not disturb the others. This project's launchers are the files of
`hydra_plugins`, each a subclass of `CommandLauncher`; other projects' work as they are.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, read_write

from mnist_hydra.cli.commands import config_words
from mnist_hydra.cli.config_files import PLUGINS
from mnist_hydra.config import Count, Number, SweepConfig
from mnist_hydra.errors import BAD_INPUT, UserError, did_you_mean, first_line, shown
from mnist_hydra.stopping import OF_SIGNAL
from mnist_hydra.tracking import store
from mnist_hydra.typed import check_setting

POLL_S = 0.2
STOPPED = (OF_SIGNAL + signal.SIGINT, OF_SIGNAL + signal.SIGTERM)
"""Exit codes of a worker that was asked to stop, not by the ledger, and wrote a checkpoint."""


@dataclass(frozen=True)
class Ended:
    """How a worker's command ended."""

    code: int | None
    """Its exit code, negative for a signal; `None` if its machine is gone. 0 means that no trial
    was left for it, or that the ledger asked it to stop.
    """
    last_line: str = ""
    """The last line that it printed."""

    def __str__(self) -> str:
        if self.code is None:
            return self.last_line
        if self.code >= 0:
            return f"exit code {self.code}: {self.last_line}".removesuffix(": ")
        named = -self.code in set(signal.Signals)  # those of real time are not
        how = signal.Signals(-self.code).name if named else f"signal {-self.code}"
        return f"{how}; it last wrote: {self.last_line}" if self.last_line else how


class CommandLauncher(Launcher):
    """Runs one command for each list of overrides, side by side, until all have ended.

    Args:
        workers: how many to run at most; `None` asks the engine.
        restarts: how many dead workers are started again in a launch, for each worker that it has.
    """

    config: DictConfig
    log_folder: str
    """Where the output of workers is kept that are processes of this machine."""
    on_this_machine = False
    """Whether the workers run on the sweeper's machine and use its devices."""

    def __init__(self, workers: Count | None, restarts: Number) -> None:
        self.workers, self.restarts = workers, restarts
        self.stopping = threading.Event()
        """Once it is set, no worker is started and running ones are asked to stop."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra before anything else."""
        self.config = config
        self.log_folder = f"{config.output_dir}/workers"

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a command for each list of overrides; returns when the last has ended.

        A result is FAILED if the command's input was bad, or if it died, or was stopped by others,
        more often than `restarts` allows and no other worker found that no trial is left.
        """
        jobs = dict(enumerate(job_overrides, start=initial_job_idx))
        ends = self._watch({number: self.command(job) for number, job in jobs.items()})
        over = self.stopping.is_set() or any(end.code == 0 for end in ends.values())
        never = Ended(None, "it was not started")
        return [_returned(job, ends.get(number, never), over) for number, job in jobs.items()]

    def _watch(self, commands: Mapping[int, tuple[list[str], list[str]]]) -> dict[int, Ended]:
        """Start the commands, and dead ones again; returns how each ended in the end."""
        ends: dict[int, Ended] = {}
        restarts = self.restarts * len(commands)
        # A worker ends with code 0 when no trial is left, so none needs to be started after that.
        over = False
        running: dict[int, Any] = {}
        try:
            running |= self.start(commands)
            while running:
                time.sleep(POLL_S)
                for number, handle in list(running.items()):
                    end = self.ended(number, handle)
                    if end is None:
                        continue
                    del running[number]
                    ends[number] = end
                    stopped = end.code in STOPPED
                    if end.code in (0, BAD_INPUT) or (stopped and self.stopping.is_set()):
                        continue
                    again = restarts > 0 and not over
                    what = "was stopped" if stopped else "died"
                    what += " and is started again" if again else ""
                    print(f"worker {number} {what}: {end}", file=sys.stderr)
                    if again:
                        restarts -= 1
                        try:
                            running |= self.start({number: commands[number]})
                        except (UserError, OSError) as error:  # the others go on all the same
                            why = first_line(error)
                            print(f"worker {number} cannot be started: {why}", file=sys.stderr)
                if not over and (self.stopping.is_set() or any(e.code == 0 for e in ends.values())):
                    over = True
                    self.drop_waiting(running.values())
                if self.stopping.is_set():
                    self.ask_to_stop(running.values())
        finally:
            self.close(running.values())
        return ends

    def command(self, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
        """A worker's command: the arguments of `python` with Hydra's flags, then the overrides."""
        hydra = self.config.hydra
        words = ["-m", "mnist_hydra.train", *config_words(hydra)]
        replaced = ("hydra.mode=", "hydra.searchpath=")
        kept = [o for o in hydra.overrides.hydra if not o.lstrip("+").startswith(replaced)]
        kept.append("hydra.mode=RUN")  # a file may make a sweep of every command
        return words, [*kept, *overrides, "++sweep.ends_with_stdin=true"]

    @abstractmethod
    def room(self) -> int:
        """How many workers the engine has room for; raises `UserError` without the engine."""

    @abstractmethod
    def start(self, commands: Mapping[int, tuple[list[str], list[str]]]) -> Mapping[int, Any]:
        """Start a worker for each command, by number, and return a handle for each."""

    @abstractmethod
    def ended(self, number: int, handle: Any) -> Ended | None:
        """How a worker ended; `None` while it is queued or running."""

    def drop_waiting(self, running: Collection[Any]) -> None:
        """Remove workers that have not begun from the engine's queue, if it has one."""

    def ask_to_stop(self, running: Collection[Any]) -> None:
        """Ask workers to write a checkpoint and end, if the engine can; the ledger asks too."""

    def close(self, running: Collection[Any]) -> None:
        """Release the engine; workers that still run, after an exception, are killed."""


def _returned(overrides: Sequence[str], end: Ended, over: bool) -> JobReturn:
    """How a command ended, as Hydra's launchers return it."""
    returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    if end.code == BAD_INPUT:
        returned.status = JobStatus.FAILED
        returned.return_value = UserError(end.last_line.removeprefix("error: "))
    elif end.code != 0:
        returned.status = JobStatus.UNKNOWN if over else JobStatus.FAILED
        returned.return_value = ChildProcessError(str(end))
    return returned


def start_process(
    arguments: Sequence[str],
    output: IO[bytes] | int,
    environment: Mapping[str, str],
    folder: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start a worker on this machine, with a pipe as its standard input.

    It has its own session, so that a terminal's Ctrl-C does not reach it. It writes a checkpoint
    and ends once its standard input is closed, which also happens when this process dies.

    Args:
        arguments: `python`'s.
        output: where it prints to.
        environment: variables on top of this process's own.
        folder: its working folder; this process's own if there is no such folder.
    """
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        cwd=folder if folder is not None and os.path.isdir(folder) else None,
        start_new_session=True,
    )


def followed(worker: subprocess.Popen[bytes]) -> Ended:
    """Print what a worker prints until it ends; returns how it ended.

    Args:
        worker: started with `output=subprocess.PIPE`.
    """
    said: deque[str] = deque(maxlen=20)
    assert worker.stdout is not None
    for line in worker.stdout:
        said.append(line.decode(errors="replace"))
        print(said[-1], end="", flush=True)
    return Ended(worker.wait(), last_line("".join(said)))


def last_line(text: str) -> str:
    """The last error in a command's output, else its last line that is not empty."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def make_launcher(context: HydraContext, task: TaskFunction, config: DictConfig) -> Launcher:
    """The launcher that `hydra/launcher=` names.

    Raises:
        UserError: its package is not installed, or one of its settings is not valid; names what
            mends it.
    """
    target = str(config.hydra.launcher._target_)
    try:
        if target.startswith(PLUGINS):
            module, _, name = target.rpartition(".")
            ours = getattr(import_module(module), name, None)
            if isinstance(ours, type) and issubclass(ours, Launcher):
                _settle(config.hydra.launcher, ours)
                Plugins.instance().register(ours)
        return Plugins.instance().instantiate_launcher(context, task, config)
    except (ImportError, RuntimeError, HydraException, AssertionError) as error:
        chosen = config.hydra.runtime.choices.get("hydra/launcher")
        package = target.removeprefix("hydra_plugins.").partition(".")[0].replace("_", "-")
        raise UserError(
            f"hydra/launcher={chosen} cannot be used ({' '.join(str(error).split())}); "
            f"right: pip install {package}"
        ) from None


def _settle(settings: DictConfig, ours: type[Launcher]) -> None:
    """Make each setting what one of our launchers takes, or raise a `UserError` for it."""
    known = inspect.signature(ours, eval_str=True).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())  # as its engine does
    of_hydra = {"_target_", "_convert_", "_recursive_", "_partial_"}
    for key in sorted(set(map(str, settings)) - of_hydra):
        if key in known:
            value = check_setting(f"hydra.launcher.{key}", settings[key], known[key].annotation)
            with read_write(settings):
                settings[key] = value  # a number where text is wanted is text from here on
        elif not takes_any:
            what = f"hydra.launcher.{key}={shown(settings[key])} is no setting of this launcher"
            raise UserError(f"{what}{did_you_mean(key, known)}; right: one of {', '.join(known)}")


def in_process(launcher: Launcher) -> bool:
    """Whether trials are trained in the sweeper's own process, one after another."""
    # By name, since Hydra's scan for plugins makes its classes anew.
    return any(kind.__name__ == "BasicLauncher" for kind in type(launcher).__mro__)


def trains_here(launcher: Launcher) -> bool:
    """Whether trials are trained on this machine, with its devices."""
    if isinstance(launcher, CommandLauncher):
        return launcher.on_this_machine
    foreign = type(launcher).__name__ in ("JoblibLauncher", "LocalLauncher")
    return in_process(launcher) or foreign


def check_shared_store(launcher: Launcher, name: str, tracking_uri: str | None) -> None:
    """Check that trials on other machines would not be recorded in a file of this one.

    Args:
        name: the launcher's, as typed.
        tracking_uri: `None` for the SQLite file below `output_dir`.
    Raises:
        UserError: they would be. A SQLite file on a network disk does not work either.
    """
    if trains_here(launcher) or store.read_address(tracking_uri, Path.cwd()).path is None:
        return
    raise UserError(
        f"hydra/launcher={name} runs trials on other machines, which cannot share the SQLite "
        "file of tracking=local; right: tracking=server tracking.uri=http://HOST:5000 with a "
        "server that all of them reach, or hydra/launcher=joblib on this machine alone"
    )


def count_workers(launcher: Launcher, settings: SweepConfig) -> int:
    """How many workers are to run side by side.

    Raises:
        UserError: the launcher's engine is not installed, or cannot be reached.
    """
    if isinstance(launcher, CommandLauncher):
        room = launcher.room()  # it looks for the engine, too
        return launcher.workers or room
    return 1 if in_process(launcher) else settings.workers or 1
