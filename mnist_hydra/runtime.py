"""What `auto` means on this machine: a run's device, precision, way of computing and threads.

The choice is recorded in every checkpoint, so that a run goes on as it began.
"""

from __future__ import annotations

import inspect
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mnist_hydra.config import Config
from mnist_hydra.cores import usable_cores
from mnist_hydra.errors import UserError

DEFAULT_THREADS = torch.get_num_threads()
"""How many threads torch takes by itself; a run of this process before may have set another."""


@dataclass(frozen=True)
class Capability:
    """What a choice depends on, of what a machine has."""

    cuda_devices: int
    cuda_bf16: bool
    mps: bool
    cpu_bf16: bool
    """The CPU multiplies bfloat16 natively (AVX-512 BF16 or AMX)."""
    cores: int


@dataclass(frozen=True)
class Runtime:
    """Where and how a run computes; nothing in it is `auto`."""

    device: str
    precision: str
    compile: bool
    """Through `torch.compile`."""
    kernel: bool
    """Through the compiled kernel (`kernel/`), in float32 on the CPU."""
    replay: bool
    """As a recording of the step on a GPU (`replay.py`)."""
    threads: int
    deterministic: bool


def capability(device: str) -> Capability:
    """Ask torch what this machine has.

    Args:
        device: as the configuration names it. For `cpu` no GPU is looked at: even that takes time
            and some of its memory.
    """
    cuda = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    # no public name; where these are missing, plain float32 it is
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return Capability(
        cuda_devices=cuda,
        cuda_bf16=cuda > 0 and torch.cuda.is_bf16_supported(including_emulation=False),
        mps=torch.backends.mps.is_available(),
        cpu_bf16=bool(has()) or bool(has_amx()),
        cores=usable_cores(),
    )


def choose(
    config: Config,
    machine: Capability,
    recorded: dict[str, Any] | None = None,
    *,
    kernel: bool = True,
    replay: bool = True,
) -> Runtime:
    """Replace every `auto`: by what a checkpoint recorded if there is one, else by the machine.

    A device that the checkpoint names and this machine lacks is chosen anew. On the CPU the kernel
    is taken, unless another precision than float32 or `compile` was asked for or a checkpoint's run
    went without. Without it the precision is bfloat16 where the device multiplies it natively. On a
    GPU the step is replayed, unless something was said of `compile`.

    Args:
        kernel: whether one can be had.
        replay: whether the step can be replayed.

    Raises:
        UserError: for a device or precision that this machine does not have.
    """
    recorded = recorded or {}
    device = _device(config, machine, recorded)
    kind = device.partition(":")[0]
    kernel = (
        kernel
        and kind == "cpu"
        and config.compile == "auto"
        and config.precision in ("auto", "fp32")
        and bool(recorded.get("kernel", True))
    )
    precision: str = "fp32" if kernel else config.precision
    if precision == "auto":
        fast = {"cuda": machine.cuda_bf16, "cpu": machine.cpu_bf16}.get(kind, False)
        precision = str(recorded.get("precision", "bf16" if fast else "fp32"))
    if precision == "fp16" and kind == "cpu":
        raise UserError("precision=fp16 does not train on device=cpu; right: auto, bf16 or fp32")
    threads = config.threads
    if threads == "auto":
        threads = min(int(recorded.get("threads", DEFAULT_THREADS)), machine.cores)
    replay = replay and kind == "cuda" and config.compile == "auto"
    compiled, deterministic = config.compile is True, config.deterministic
    return Runtime(device, precision, compiled, kernel, replay, int(threads), deterministic)


def apply(runtime: Runtime) -> None:
    """Set torch's process-wide switches."""
    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = not runtime.deterministic
    torch.backends.cudnn.deterministic = runtime.deterministic
    if runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if runtime.device.startswith("cuda:"):
        torch.cuda.set_device(runtime.device)
    if runtime.compile:
        torch.use_deterministic_algorithms(runtime.deterministic, warn_only=True)
    else:
        _spare_dynamo()
        if runtime.device != "cpu":  # a CPU's kernels are deterministic already
            # As above, but without importing torch's compiler, which takes 1 to 8 s.
            torch.set_deterministic_debug_mode("warn" if runtime.deterministic else "default")
    # Else torch fills every new tensor with NaN, which helps to find mistakes but takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def without_dynamo(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """One of torch's optimizers, whose step does not import torch's compiler (1.1 s, 200 MiB).

    Their own `step` imports torch._dynamo to hide itself from it; what is inside is the same.
    """
    step = inspect.unwrap(optimizer.step)
    own = {"step": torch.no_grad()(step), "__module__": optimizer.__module__}
    return type(optimizer.__name__, (optimizer,), own)


def device_name(device: torch.device) -> str:
    """A device and the name of its GPU or CPU: `cpu (AMD EPYC 9B14)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    name = platform.machine()  # the architecture, where the system does not tell the CPU's name
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{device} ({name})"


def _spare_dynamo() -> None:
    """Keep eager optimizers from importing torch._dynamo: 1.1 s and 150 MiB for nothing.

    Four methods are wrapped to hide them from the compiler, and the wrapper imports it to do so
    unless this attribute says that it was done already. `runtime.compile` never comes here.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if method is not None and not hasattr(method, "__dynamo_disable"):
            vars(method)["__dynamo_disable"] = method


def _device(config: Config, machine: Capability, recorded: dict[str, Any]) -> str:
    """The device that is asked for, else the checkpoint's if it is there, else the fastest kind."""
    if config.device != "auto":
        if not _has_device(config.device, machine):
            there = ["auto", "cpu"] + [f"cuda:{i}" for i in range(machine.cuda_devices)]
            there += ["mps"] if machine.mps else []
            right = ", ".join(there)
            raise UserError(f"device={config.device} is not on this machine; right: {right}")
        return config.device
    before = str(recorded.get("device", ""))
    if before and _has_device(before, machine):
        return before
    return "cuda" if machine.cuda_devices else "mps" if machine.mps else "cpu"


def _has_device(device: str, machine: Capability) -> bool:
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return int(index or 0) < machine.cuda_devices
    return kind == "cpu" or (kind == "mps" and machine.mps)
