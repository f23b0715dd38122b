"""The memory of one pass through the compiled kernel, and the tasks that point into it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from mnist_hydra.kernel import CHUNK, LANES, Shape, Task
from mnist_hydra.stages import Stage

A, B, MEAN, RSTD, GAMMA, BETA, C0, C1, C2 = range(9)
"""A stage's vectors, as in kernel.c."""


class Workspace:
    """What one forward pass leaves for its backward pass, for up to `capacity` images.

    It is kept for the next step, since fresh memory of this size costs more than filling it.
    """

    def __init__(self, stages: list[Stage], capacity: int, backward: bool) -> None:
        self.stages, self.capacity, self.backward = stages, capacity, backward
        shapes = [stage.shape for stage in stages]
        chunks, count = -(-capacity // CHUNK), len(stages)
        self.images = torch.empty(0)
        self.y = [torch.empty(capacity, shape.out, shape.out, LANES) for shape in shapes]
        self.sums: NDArray[np.float64]
        self.sums = torch.zeros(count, chunks, 2, LANES, dtype=torch.float64).numpy()
        """The totals of each stage stand in its first chunk."""
        self.vectors: NDArray[np.float32] = torch.zeros(count, C2 + 1, LANES).numpy()
        for vectors, stage, shape in zip(self.vectors, stages, shapes, strict=True):
            vectors[[A, C2], : shape.co] = stage.norm is None
        self.eps = np.array([[0.0 if s.norm is None else s.norm.eps] for s in stages])
        self.packed = torch.empty(sum(weight_sizes(shapes)))
        largest = max(y.numel() // LANES for y in self.y) if backward else 0
        self.gradients = [torch.zeros(largest, LANES) for _ in range(2)]
        self.gweight = torch.zeros(chunks if backward else 0, sum(gradient_sizes(shapes)))
        self.statistics = torch.empty(2, count, LANES)
        """Mean and variance of each stage's BatchNorm: the running ones, then this batch's."""
        self.batch_statistics = [
            self.statistics[kind, i, : shapes[i].co]
            for kind in (0, 1)
            for i, stage in enumerate(stages)
            if stage.norm is not None
        ]
        self.tasks = [Task() for _ in stages]
        self._point(shapes)

    def _point(self, shapes: list[Shape]) -> None:
        """Tell each task where its numbers are."""
        weights, taps = self.packed.data_ptr(), self.gweight.data_ptr()
        sizes = iter(weight_sizes(shapes))
        for i, (task, size) in enumerate(zip(self.tasks, gradient_sizes(shapes), strict=True)):
            task.weight, task.flipped = weights, (weights := weights + 4 * next(sizes))
            weights += 4 * next(sizes)
            task.gweight, task.stride = taps, self.gweight.shape[1] // LANES
            taps += 4 * size
            task.x, task.y = self.y[i - 1].data_ptr(), self.y[i].data_ptr()
            task.before, task.after = (self.vectors[j].ctypes.data for j in (i - 1, i))
            task.gx, task.gy = (self.gradients[(i + j) % 2].data_ptr() for j in (0, 1))
            task.sums = self.sums[i].ctypes.data

    def use_dropout(self) -> None:
        """Train: BatchNorm by the batch, dropout by the keys of this step."""
        for i, (task, stage) in enumerate(zip(self.tasks, self.stages, strict=True)):
            before = self.stages[i - 1].norm if i else None
            task.eps_x = -1.0 if before is None else before.eps
            task.eps_y = -1.0 if stage.norm is None else stage.norm.eps
            task.threshold = 0 if stage.dropout is None else stage.dropout.threshold
            if stage.dropout is not None and task.threshold:
                task.scale = stage.dropout.scale
                task.key[:] = stage.dropout.key.tolist()

    def use_running_statistics(self) -> None:
        """Evaluate: BatchNorm by `statistics`, no dropout."""
        mean, var = self.statistics.numpy()
        self.vectors[:, A] = self.vectors[:, GAMMA] / np.sqrt(var + self.eps)
        self.vectors[:, B] = self.vectors[:, BETA] - mean * self.vectors[:, A]
        for task in self.tasks:
            task.threshold, task.eps_x, task.eps_y = 0, -1.0, -1.0

    def begin_forward(self, images: Tensor) -> None:
        """images: float32 [up to capacity, 1, 28, 28]."""
        self.images = images.contiguous()
        address, threads = self.images.data_ptr(), torch.get_num_threads()
        for task in self.tasks:
            task.images, task.n, task.threads = address, len(images), threads

    def begin_backward(self, gradient: Tensor) -> None:
        """gradient: of the scores, float32 [B, 10 or 16], of which each pixel gets its part."""
        count, channels = gradient.shape
        area = self.y[-1].shape[1] ** 2
        incoming = self.gradients[len(self.stages) % 2][: count * area].view(count, area, LANES)
        incoming.copy_(pad(gradient / area, (0, LANES - channels))[:, None])


def weight_sizes(shapes: list[Shape]) -> list[int]:
    """Floats of each stage's weights as they are wanted on the way there, then on the way back."""
    return [s.k**2 * channels * LANES for s in shapes for channels in (s.ci, s.co)]


def gradient_sizes(shapes: list[Shape]) -> list[int]:
    """Floats of the gradient of each stage's weights."""
    return [s.k**2 * s.ci * LANES for s in shapes]
