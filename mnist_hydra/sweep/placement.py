"""Which GPU and how many CPU threads each worker of a machine gets.

It never imports torch: the sweeper's process asks it, and a worker's environment must be settled
before torch is loaded there.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MPS = "mps"
"""Stands for the one GPU of an Apple machine, which needs no choosing."""


@dataclass(frozen=True)
class Placement:
    """What one worker gets of its machine."""

    environment: dict[str, str]
    """To be set before torch, NumPy or OpenCV is loaded."""
    threads: int
    """CPU threads, at least 1."""


def room(gpus: Sequence[str], *, trials_per_gpu: int, cores: int) -> int:
    """How many workers a machine takes: `trials_per_gpu` a GPU, or one a core without any."""
    return len(gpus) * trials_per_gpu if gpus else cores


def place(worker: int, workers: int, *, gpus: Sequence[str], cores: int) -> Placement:
    """What worker number `worker` of `workers` on one machine gets.

    GPUs are dealt out in turn, so neighbours in number sit on different ones; the cores are
    divided evenly, and every worker has at least one thread. Where there is but one GPU, or none,
    nothing has to be chosen and the environment says nothing of it.

    Args:
        worker: the worker's number, from 0.
        workers: how many there are, at least 1.
        gpus: the ids of the visible GPUs, as `CUDA_VISIBLE_DEVICES` takes them.
        cores: CPU cores of the machine.
    """
    threads = max(1, cores // workers)
    environment = {"OMP_NUM_THREADS": str(threads)}
    if len(gpus) > 1:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker % len(gpus)]
    return Placement(environment, threads)


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
    gpus = _installed() if listed is None else _listed(listed)
    if device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        return gpus[number : number + 1]
    return gpus


def _listed(text: str) -> list[str]:
    """The entries of `CUDA_VISIBLE_DEVICES`; as for CUDA, the first bad one ends the list."""
    gpus: list[str] = []
    for entry in (part.strip() for part in text.split(",")):
        if not entry or entry.startswith("-") or not (entry.isdigit() or "-" in entry):
            break
        gpus.append(entry)
    return gpus


def _installed() -> list[str]:
    """The UUIDs of NVIDIA's GPUs in this machine; none where its tool is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.split()
