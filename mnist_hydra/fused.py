"""Runs a model's layers through the compiled kernel, forward and backward, in float32.

The plain PyTorch model stays the reference and keeps the parameters; nothing is remembered here
from one step to the next, and the answer does not depend on the number of threads.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mnist_hydra.kernel import CHUNK, LANES, Shape, Task, load
from mnist_hydra.models import log_probabilities
from mnist_hydra.stages import Stage, stages

EVALUATION_BATCH = 128
"""Images that an evaluation takes at a time: what lies between the stages stays in the cache."""


class Fused:
    """One of our models, faster on a CPU: the same values and gradients up to rounding.

    Args:
        model: on the CPU, in float32; its parameters and BatchNorm buffers are used where they lie.
        folder: where compiled kernels are kept.

    Raises:
        Unavailable: there is no kernel for this model on this machine.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self.stages = stages(model)
        self.shapes = [stage.shape for stage in self.stages]
        self.forward_calls, self.backward_calls = load(self.shapes, folder)
        self.weights = [stage.conv.weight for stage in self.stages if stage.conv is not None]
        norms = [stage.norm for stage in self.stages if stage.norm is not None]
        self.parameters = [*self.weights, *(p for norm in norms for p in (norm.weight, norm.bias))]
        self.pack, self.unpack = _packing(self.stages, self.shapes)
        self.idle: list[Workspace] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Train on images: float32 [B, 1, 28, 28] -> log-probabilities float32 [B, 10]."""
        apply: Any = _Scores.apply
        return log_probabilities(apply(images, self, torch.is_grad_enabled(), *self.parameters))

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """images: float32 [B, 1, 28, 28] -> log-probabilities float32 [B, 10], without gradient."""
        scores = []
        for part in torch.split(images, EVALUATION_BATCH):
            workspace = self.workspace(len(part), backward=False)
            scores.append(self.forward(part, workspace, training=False))
            self.idle.append(workspace)
        return log_probabilities(torch.cat(scores))

    def workspace(self, count: int, backward: bool) -> Workspace:
        """An idle workspace that is large enough, or a new one; its user puts it back."""
        for workspace in self.idle:
            if workspace.capacity >= count and workspace.backward >= backward:
                self.idle.remove(workspace)
                return workspace
        return Workspace(self.shapes, [stage.norm for stage in self.stages], count, backward)

    def forward(self, images: Tensor, workspace: Workspace, training: bool) -> Tensor:
        """Scores float32 [B, 10 or 16]; the workspace holds what `backward` needs."""
        workspace.images = images.contiguous()
        weights = [weight.reshape(-1) for weight in self.weights]
        flat = torch.cat([*weights, torch.tensor([0.0, 1.0])])
        torch.index_select(flat, 0, self.pack, out=workspace.packed)
        count, threads = len(images), torch.get_num_threads()
        for i, (stage, task) in enumerate(zip(self.stages, workspace.tasks, strict=True)):
            task.images, task.n, task.threads = workspace.images.data_ptr(), count, threads
            task.threshold = 0
            if stage.dropout is not None and training:
                task.threshold, task.scale = stage.dropout.threshold, stage.dropout.scale
                task.key[:] = stage.dropout.key.tolist()
            workspace.sums.fill(0)
            self.forward_calls[i](task)
            workspace.after_forward(i, training)
        return workspace.y[-1][:count].flatten(1, 2).mean(1)[:, : self.shapes[-1].co]

    def backward(self, gradient: Tensor, workspace: Workspace) -> list[Tensor]:
        """Gradients of `parameters` from that of the scores, float32 [B, 10 or 16]."""
        shape, count = self.shapes[-1], len(gradient)
        area = shape.out**2
        incoming = workspace.gradients[len(self.shapes) % 2][: count * area].view(
            count, area, LANES
        )
        incoming[:, :, : shape.co] = gradient[:, None] / area
        incoming[:, :, shape.co :] = 0
        norms: list[Tensor] = []
        for i in reversed(range(len(self.shapes))):
            workspace.sums.fill(0)
            workspace.gweights[i].fill(0)
            self.backward_calls[i](workspace.tasks[i])
            if i and self.stages[i - 1].norm is not None:
                norms[:0] = workspace.after_backward(i - 1)
        packed = np.concatenate([gweight.sum(0).reshape(-1) for gweight in workspace.gweights])
        flat = torch.from_numpy(packed).index_select(0, self.unpack)
        parts = torch.split(flat, [weight.numel() for weight in self.weights])
        return [*(p.view(w.shape) for p, w in zip(parts, self.weights, strict=True)), *norms]


class Workspace:
    """What one forward pass leaves for its backward pass, for up to `capacity` images.

    It is kept for the next step, since fresh memory of this size costs more than filling it.
    """

    def __init__(
        self,
        shapes: list[Shape],
        norms: list[nn.BatchNorm2d | None],
        capacity: int,
        backward: bool,
    ) -> None:
        self.shapes, self.norms, self.capacity, self.backward = shapes, norms, capacity, backward
        chunks = -(-capacity // CHUNK)
        self.images = torch.empty(0)
        self.y = [torch.empty(capacity, shape.out, shape.out, LANES) for shape in shapes]
        self.packed = torch.empty(sum(_sizes(shapes)))
        self.sums: NDArray[np.float64] = torch.empty(chunks, 2, LANES, dtype=torch.float64).numpy()
        # per stage: a, b and mean of its BatchNorm; what 1, y and gy count for in the way back
        self.affine: NDArray[np.float32] = torch.zeros(len(shapes), 6, LANES).numpy()
        for affine, shape in zip(self.affine, shapes, strict=True):
            affine[[0, 5], : shape.co] = 1
        largest = max(y.numel() // LANES for y in self.y) if backward else 0
        self.gradients = [torch.zeros(largest, LANES) for _ in range(2)]
        self.gweights: list[NDArray[np.float32]] = []
        self.rstd: list[NDArray[np.float64]] = [np.empty(0)] * len(shapes)
        self.tasks = [Task() for _ in shapes]
        starts = [0, *accumulate(_sizes(shapes))]
        for i, (task, shape) in enumerate(zip(self.tasks, shapes, strict=True)):
            taps = shape.k**2 * shape.ci if backward else 0
            gweight = torch.zeros(chunks, taps, LANES)
            self.gweights.append(gweight.numpy())
            task.x, task.y = self.y[i - 1].data_ptr(), self.y[i].data_ptr()
            task.weight = self.packed[starts[2 * i] :].data_ptr()
            task.flipped = self.packed[starts[2 * i + 1] :].data_ptr()
            task.before, task.after = (self.affine[j].ctypes.data for j in (i - 1, i))
            task.gy, task.gx = (self.gradients[(i + j) % 2].data_ptr() for j in (1, 0))
            task.gweight = gweight.data_ptr()
            task.sums = self.sums.ctypes.data

    def after_forward(self, i: int, training: bool) -> None:
        """Turn the sums of stage i's output into BatchNorm's factors, as `nn.BatchNorm2d` does."""
        norm, co = self.norms[i], self.shapes[i].co
        if norm is None:
            return
        mean, var = _array(norm.running_mean), _array(norm.running_var)
        if training:
            count = self.tasks[i].n * self.shapes[i].out ** 2
            mean, squares = self.sums.sum(0)[:, :co] / count
            var = np.maximum(squares - mean * mean, 0)
            _move(norm.running_mean, mean, norm.momentum)
            _move(norm.running_var, var * (count / (count - 1)), norm.momentum)
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
        self.rstd[i] = rstd = 1 / np.sqrt(var + norm.eps)
        a = _array(norm.weight) * rstd
        self.affine[i, :3, :co] = a, _array(norm.bias) - mean * a, mean

    def after_backward(self, i: int) -> tuple[Tensor, Tensor]:
        """Turn the sums of stage i's gradient into those of BatchNorm's weight and bias."""
        co, rstd = self.shapes[i].co, self.rstd[i]
        count = self.tasks[i].n * self.shapes[i].out ** 2
        total, products = self.sums.sum(0)[:, :co]
        a, _, mean = self.affine[i, :3, :co].astype(np.float64)
        slope = -a * rstd * rstd * products / count
        self.affine[i, 3:, :co] = -a * total / count - slope * mean, slope, a
        weight, bias = torch.from_numpy(products * rstd), torch.from_numpy(total)
        return weight.float(), bias.float()


class _Scores(torch.autograd.Function):
    """From images to scores, as one step of autograd."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, fused: Fused, training: bool, *parameters: Tensor
    ) -> Tensor:
        workspace = fused.workspace(len(images), backward=True)
        scores = fused.forward(images, workspace, training=True)
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


def _array(tensor: Tensor | None) -> NDArray[np.float32]:
    assert tensor is not None
    array: NDArray[np.float32] = tensor.detach().numpy()
    return array


def _move(tensor: Tensor | None, value: NDArray[np.float64], momentum: float | None) -> None:
    array = _array(tensor)
    assert momentum is not None
    array += (momentum * (value - array)).astype(np.float32)


def _sizes(shapes: list[Shape]) -> list[int]:
    """Floats of each stage's weights as `forward` and as `backward` want them."""
    return [shape.k**2 * channels * LANES for shape in shapes for channels in (shape.ci, shape.co)]


def _packing(found: list[Stage], shapes: list[Shape]) -> tuple[Tensor, Tensor]:
    """Where each number of the packed weights comes from, and each gradient's place among them.

    The first index is into all weights, one after another, followed by a zero and a one; the
    second into `[k, k, ci, 16]` of every stage, one after another.
    """
    zero = sum(stage.conv.weight.numel() for stage in found if stage.conv is not None)
    pack, unpack, weights, taps = [], [], 0, 0
    for stage, s in zip(found, shapes, strict=True):
        if stage.conv is not None:
            own = torch.arange(s.co * s.ci * s.k**2).view(s.co, s.ci, s.k, s.k) + weights
            places = torch.arange(s.k**2 * s.ci * LANES).view(s.k, s.k, s.ci, LANES) + taps
            unpack.append(places[..., : s.co].permute(3, 2, 0, 1).flatten())
            weights += own.numel()
        else:
            own = (zero + torch.eye(s.co, dtype=torch.int64)).view(s.co, s.ci, 1, 1)
        taps += s.k**2 * s.ci * LANES
        turned = own.flip(2, 3).permute(2, 3, 0, 1)
        for index, channels in ((own.permute(2, 3, 1, 0), s.co), (turned, s.ci)):
            pack.append(nn.functional.pad(index, (0, LANES - channels), value=zero).flatten())
    return torch.cat(pack), torch.cat(unpack)
