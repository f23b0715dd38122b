"""Workers as processes of this machine: which GPU and how many CPU threads each gets.

It never imports torch: a worker's environment must be settled before torch is loaded there.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from mnist_hydra.config import Count, Number
from mnist_hydra.cores import usable_cores
from mnist_hydra.sweep.launchers import CommandLauncher, Ended, last_line, start_process

MPS = "mps"
"""Stands for the GPU of an Apple machine, which has only one."""
LOG_TAIL = 8_192
"""Bytes at the end of what a worker wrote among which the last line is looked for."""


class JoblibLauncher(CommandLauncher):
    """One worker a core, or `trials_per_gpu` a GPU where the trials may use one."""

    on_this_machine = True

    def __init__(
        self, workers: Count | None = None, restarts: Number = 3, trials_per_gpu: Count = 1
    ) -> None:
        super().__init__(workers, restarts)
        self.trials_per_gpu = trials_per_gpu
        self._count = 0
        self._begins: dict[int, int] = {}
        """Where in its log each worker's own lines begin; those of earlier ones stand before."""

    def room(self) -> int:
        """Room on the GPUs; without any, the cores that this process may use."""
        return len(self.gpus) * self.trials_per_gpu or usable_cores()

    @cached_property
    def gpus(self) -> list[str]:
        """The GPUs for the workers."""
        return visible_gpus(str(self.config.device), os.environ)

    def start(
        self, commands: Mapping[int, tuple[list[str], list[str]]]
    ) -> dict[int, subprocess.Popen[bytes]]:
        """Start a process for each command."""
        self._count = max(self._count, len(commands))
        started = {}
        for number, (head, rest) in commands.items():
            place = placement(number, self._count, gpus=self.gpus, cores=usable_cores())
            log = self._log(number)
            log.parent.mkdir(parents=True, exist_ok=True)
            try:
                with log.open("ab") as file:
                    self._begins[number] = file.tell()
                    started[number] = start_process([*head, *rest], file, place)
            except OSError as error:  # those that run do all of the work
                if not started:
                    raise
                print(f"worker {number} cannot be started: {error.strerror}", file=sys.stderr)
        return started

    def ended(self, number: int, handle: subprocess.Popen[bytes]) -> Ended | None:
        """Its exit code and the last line that it wrote into its log."""
        code = handle.poll()
        if code is None:
            return None
        said = "its log is gone"
        with suppress(OSError), self._log(number).open("rb") as file:
            file.seek(max(self._begins[number], file.seek(0, os.SEEK_END) - LOG_TAIL))
            said = last_line(file.read().decode(errors="replace"))
        return Ended(code, f"{said} ({self._log(number)})" if code < 0 else said)

    def ask_to_stop(self, running: Collection[subprocess.Popen[bytes]]) -> None:
        """Close their standard input, which asks them to stop."""
        for process in running:
            assert process.stdin is not None
            process.stdin.close()

    def close(self, running: Collection[subprocess.Popen[bytes]]) -> None:
        """Kill workers that still run, which is so only if the launch itself was interrupted."""
        for process in running:
            process.kill()
        self._count = 0

    def _log(self, number: int) -> Path:
        return Path(self.log_folder, f"worker-{number}.log")


def placement(worker: int, workers: int, *, gpus: Sequence[str], cores: int) -> dict[str, str]:
    """The environment variables that give a worker its GPU and its number of CPU threads.

    Workers take GPUs in turn, by their number. Cores are divided evenly, and every worker has at
    least one thread. With one GPU or none, no GPU is named.

    Args:
        worker: the worker's number, from 0.
        workers: how many there are, at least 1.
        gpus: the ids of the visible GPUs, as `CUDA_VISIBLE_DEVICES` takes them.
        cores: CPU cores of the machine.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    if len(gpus) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    return environment


def visible_gpus(device: str, environment: Mapping[str, str]) -> list[str]:
    """The ids of the GPUs that trials with `device=` may use on this machine; none for `cpu`.

    Args:
        device: the configuration's `device`; `cuda:N` is the N-th visible one, and only that.
        environment: the process's; what `CUDA_VISIBLE_DEVICES` hides is not seen.
    """
    if device == MPS or (device == "auto" and platform.system() == "Darwin"):
        return [MPS] if platform.machine() == "arm64" else []
    if device != "auto" and not device.startswith("cuda"):
        return []
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = _installed_gpus() if listed is None else _gpus_in(listed)
    if device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        return gpus[number : number + 1]
    return gpus


def _gpus_in(text: str) -> list[str]:
    """The entries of `CUDA_VISIBLE_DEVICES`; as in CUDA, the first bad one ends the list."""
    entries = (part.strip() for part in text.split(","))
    return list(takewhile(lambda e: e.isdigit() or ("-" in e and e[0] != "-"), entries))


def _installed_gpus() -> list[str]:
    """The UUIDs of NVIDIA's GPUs in this machine; none where its tool is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()
