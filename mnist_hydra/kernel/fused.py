"""Runs a model's layers through the compiled kernel, forward and backward, in float32.

The plain PyTorch model is the reference and keeps the parameters. No state is kept here between two
steps, and the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_hydra.kernel.compile import load_kernel
from mnist_hydra.kernel.stages import stages
from mnist_hydra.kernel.workspace import Workspace
from mnist_hydra.models import log_probabilities

IMAGES_PER_THREAD = 32
"""Images a thread that an evaluation takes at a time: what lies between two stages stays cached."""


class Fused:
    """One of our models, faster on a CPU: the same values and gradients up to rounding.

    Args:
        model: on the CPU, in float32; its parameters and BatchNorm buffers are used where they lie.
        folder: where compiled kernels are kept.
        cpu: the compiler flags that say for which CPU; `None` for this one.

    Raises:
        Unavailable: there is no kernel for this model on this machine.
    """

    def __init__(
        self, model: nn.Module, folder: Path, cpu: Sequence[str] | None = None
    ) -> None:
        self.stages = stages(model)
        self.kernel = load_kernel([stage.shape for stage in self.stages], folder, cpu)
        norms = [stage.norm for stage in self.stages if stage.norm is not None]
        weights = [stage.conv.weight for stage in self.stages if stage.conv is not None]
        self.parameters = [*weights, *(n.weight for n in norms), *(n.bias for n in norms)]
        self.running: list[Tensor] = [n.running_mean for n in norms if n.running_mean is not None]
        self.running += [n.running_var for n in norms if n.running_var is not None]
        self.tracked = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self.momentum = norms[0].momentum or 0.0
        self.idle: list[Workspace] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Train on images: float32 [B, 1, 28, 28] -> log-probabilities float32 [B, 10]."""
        apply: Any = _Scores.apply
        return log_probabilities(apply(images, self, torch.is_grad_enabled(), *self.parameters))

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """images: float32 [B, 1, 28, 28] -> log-probabilities float32 [B, 10], without gradient."""
        together = IMAGES_PER_THREAD * torch.get_num_threads()
        workspace = self.workspace(min(len(images), together), backward=False)
        workspace.load(self.parameters)
        workspace.use_statistics(self.running)
        scores = [self._forward(i, workspace) for i in torch.split(images, together)]
        self.idle.append(workspace)
        return log_probabilities(torch.cat(scores))

    def workspace(self, count: int, backward: bool) -> Workspace:
        """An idle workspace that is large enough, or a new one; the caller gives it back."""
        for workspace in self.idle:
            if workspace.capacity >= count and workspace.backward == backward:
                self.idle.remove(workspace)
                return workspace
        return Workspace(self.stages, self.kernel.lanes, count, backward)

    def forward(self, images: Tensor, workspace: Workspace) -> Tensor:
        """Scores float32 [B, 10 or 16] in training; the workspace holds what `backward` needs."""
        workspace.load(self.parameters)
        workspace.use_dropout()
        scores = self._forward(images, workspace)
        torch._foreach_lerp_(self.running, workspace.statistics, self.momentum)
        torch._foreach_add_(self.tracked, 1)
        return scores

    def backward(self, gradient: Tensor, workspace: Workspace) -> list[Tensor]:
        """Gradients of the parameters from that of the scores, float32 [B, 10 or 16]."""
        workspace.begin_backward(gradient)
        for task, call in zip(
            reversed(workspace.tasks), reversed(self.kernel.backward), strict=True
        ):
            call(task)
        return workspace.parameter_gradients()

    def _forward(self, images: Tensor, workspace: Workspace) -> Tensor:
        workspace.begin_forward(images)
        for task, call in zip(workspace.tasks, self.kernel.forward, strict=True):
            call(task)
        return workspace.scores(len(images))


class _Scores(torch.autograd.Function):
    """From images to scores, as one operation of autograd."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, fused: Fused, training: bool, *parameters: Tensor
    ) -> Tensor:
        workspace = fused.workspace(len(images), backward=True)
        scores = fused.forward(images, workspace)
        if training:
            ctx.fused, ctx.workspace = fused, workspace
        else:
            fused.idle.append(workspace)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.fused.backward(gradient, ctx.workspace)
        ctx.fused.idle.append(ctx.workspace)
        del ctx.workspace
        return (None, None, None, *gradients)
