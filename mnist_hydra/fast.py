"""Chooses the fastest way to run a model that this machine has, and prepares it.

Every way computes what the plain PyTorch model computes; that model keeps the parameters and is
what checkpoints and exports are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_hydra.fused import Fused
from mnist_hydra.kernel import Unavailable

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    """How a model is run; nothing in it is `auto`."""

    kernel: bool
    """Through the compiled kernel, in float32 on the CPU."""
    compile: bool
    """Through `torch.compile`."""
    precision: str
    note: str = ""
    """What to tell the user once: why training is slower than it could be."""


@dataclass(frozen=True)
class Prepared:
    """A model ready to run: images float32 [B, 1, H, W] -> log-probabilities float32 [B, 10]."""

    train: Forward
    """With gradients; changes BatchNorm's running statistics."""
    evaluate: Forward
    """Without; takes any number of images, and expects the model in evaluation mode."""


def why_no_kernel(model: nn.Module, folder: Path) -> str | None:
    """Compile the kernel for `model` into `folder` (1 to 2 s the first time), or say why not.

    Returns:
        `None` when the kernel is there.
    """
    try:
        Fused(model, folder)
    except Unavailable as error:
        return str(error)
    return None


def plan(
    device: str, precision: str, compile_: bool | str, *, fast_bf16: bool, no_kernel: str | None
) -> Plan:
    """Settle precision and compile, a pure decision.

    On the CPU the kernel is taken where there is one, unless another precision than float32 or
    `compile` was asked for; else bfloat16 where the device multiplies it natively.

    Args:
        device: `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        compile_: `auto`, True for `torch.compile`, or False for neither that nor the kernel.
        fast_bf16: the device has bfloat16 multiplication.
        no_kernel: from `why_no_kernel`; of no account on another device than the CPU.
    """
    note = ""
    if device == "cpu" and compile_ == "auto" and precision in ("auto", "fp32"):
        if no_kernel is None:
            return Plan(kernel=True, compile=False, precision="fp32")
        note = f"training without the compiled kernel, at plain PyTorch's speed: {no_kernel}"
    if precision == "auto":
        precision = "bf16" if fast_bf16 else "fp32"
    return Plan(kernel=False, compile=compile_ is True, precision=precision, note=note)


def prepare(model: nn.Module, chosen: Plan, folder: Path) -> Prepared:
    """Make `model` ready to run as `chosen`; mixed precision is the caller's.

    Raises:
        Unavailable: a kernel was chosen, say by a checkpoint, that this machine cannot have.
    """
    if chosen.kernel:
        fused = Fused(model, folder)
        return Prepared(fused, fused.evaluate)
    forward: Forward = torch.compile(model) if chosen.compile else model
    return Prepared(forward, model)
