"""Prepares a model to run the way that was chosen: as it is, compiled by torch, or by our kernel.

Every way computes what the plain PyTorch model computes; that model keeps the parameters and is
what checkpoints and exports are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_hydra.kernel.compile import Unavailable
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.runtime import Runtime

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prepared:
    """A model ready to run: images float32 [B, 1, H, W] -> log-probabilities float32 [B, 10]."""

    train: Forward
    """With gradients; changes BatchNorm's running statistics."""
    evaluate: Forward
    """Without; takes any number of images, and expects the model in evaluation mode."""
    release: Callable[[], None] = lambda: None
    """Lets go of what is only kept for the next step."""


def try_kernel(model: nn.Module, folder: Path) -> tuple[str | None, bool]:
    """Compile the kernel for `model` into `folder` (1 to 3 s the first time), or say why not.

    Returns:
        Why there is no kernel, `None` where there is one; and whether it uses several threads.
    """
    try:
        return None, Fused(model, folder).kernel.parallel
    except Unavailable as error:
        return str(error), False


def prepare(model: nn.Module, chosen: Runtime, folder: Path) -> Prepared:
    """Make `model` ready to run as `chosen`; mixed precision is the caller's.

    Raises:
        Unavailable: a kernel was chosen that this machine cannot have.
    """
    if chosen.kernel:
        fused = Fused(model, folder)
        return Prepared(fused, fused.evaluate, fused.idle.clear)
    forward: Forward = torch.compile(model) if chosen.compile else model
    return Prepared(forward, model)
