"""Prepares a model to run the way that was chosen: as it is, compiled by torch, or by our kernel.

Every way computes what the plain PyTorch model computes; that model keeps the parameters and is
what checkpoints and exports are made of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_hydra.kernel.compile import Unavailable
from mnist_hydra.kernel.fused import Fused
from mnist_hydra.runtime import Runtime

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Runnable:
    """A model ready to run: images float32 [B, 1, H, W] -> log-probabilities float32 [B, 10]."""

    train: Forward
    """With gradients; changes BatchNorm's running statistics."""
    evaluate: Forward
    """Without; takes any number of images, and expects the model in evaluation mode."""
    release: Callable[[], None] = lambda: None
    """Lets go of what is only kept for the next step."""


def kernel_for(model: nn.Module, folder: Path) -> Fused | None:
    """The model's kernel, compiled into `folder` (1 to 3 s the first time).

    `None` where it cannot be had; why is printed once.
    """
    try:
        fused = Fused(model, folder)
    except Unavailable as error:
        _say_once(f"training at plain PyTorch's speed: {error}")
        return None
    if not fused.kernel.parallel:
        _say_once("training on one thread: the C compiler has no OpenMP")
    return fused


def runnable(model: nn.Module, chosen: Runtime, fused: Fused | None) -> Runnable:
    """Make `model` ready to run as `chosen`; mixed precision is the caller's.

    Args:
        fused: its kernel, where `chosen.kernel`.
    """
    if fused is not None:
        return Runnable(fused, fused.evaluate, fused.idle.clear)
    forward: Forward = torch.compile(model) if chosen.compile else model
    return Runnable(forward, model)


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)
