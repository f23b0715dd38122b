"""The memory of one pass through the compiled kernel, and the tasks that point into it."""

from __future__ import annotations

import torch
from torch import Tensor

from mnist_hydra.kernel.compile import CHANNELS, Task
from mnist_hydra.kernel.stages import SIDE, Stage

A, B, MEAN, VAR, RSTD, GAMMA, BETA, C0, C1, C2, DGAMMA, DBETA, ROWS = range(13)
"""The rows of a stage's table, as in kernel.c."""


class Workspace:
    """The memory of one forward pass and its backward pass, for up to `capacity` images.

    It is kept for the next step, since allocating so much memory takes longer than filling it.
    """

    def __init__(self, stages: list[Stage], lanes: int, capacity: int, backward: bool) -> None:
        self.stages, self.lanes, self.capacity, self.backward = stages, lanes, capacity, backward
        groups, shapes = -(-capacity // lanes), [stage.shape for stage in stages]
        self.images = torch.zeros(groups, SIDE, 1, SIDE, lanes)
        self.y = [torch.empty(groups, s.out, s.co, s.out, lanes) for s in shapes]
        """Each stage's output, row by row, one value of every image of a group in a vector."""
        largest = max(y.numel() for y in self.y) if backward else 0
        self.gradients = [torch.zeros(largest) for _ in range(2)]
        """Gradients of a stage's output and of its input, in turns."""
        self.sums = torch.zeros(len(stages), groups, 2, CHANNELS, dtype=torch.float64)
        self.tables = torch.zeros(len(stages), ROWS, CHANNELS)
        self.weights = [torch.zeros(s.co, s.ci, s.k, s.k) for s in shapes]
        self.gweights = [torch.zeros(groups if backward else 1, *w.shape) for w in self.weights]
        """Gradients of the weights, a group of images each; the first becomes the total."""
        for stage, table, weight in zip(stages, self.tables, self.weights, strict=True):
            if stage.norm is None:
                table[[A, VAR, GAMMA, C2]] = 1
            if stage.conv is None:  # it passes its channels on
                weight.view(len(weight), -1).fill_diagonal_(1)
        self.tasks = [self._task(i) for i in range(len(stages))]
        trained = [i for i, stage in enumerate(stages) if stage.conv is not None]
        self.parameters = [self.weights[i] for i in trained] + self._rows(GAMMA, BETA)
        self.found = [self.gweights[i][0] for i in trained] + self._rows(DGAMMA, DBETA)
        """The gradients of the `parameters` after a backward pass, until the next one."""
        self.statistics = self._rows(MEAN, VAR)
        """Mean and unbiased variance for each BatchNorm: this batch's, or the running ones."""
        self.eps = torch.tensor([[0.0 if s.norm is None else s.norm.eps] for s in stages])

    def _task(self, i: int) -> Task:
        """Pointers to stage i's numbers. Stage -1 is the last one, which has no BatchNorm."""
        return Task(
            x=(self.y[i - 1] if i else self.images).data_ptr(),
            y=self.y[i].data_ptr(),
            gx=self.gradients[i % 2].data_ptr(),
            gy=self.gradients[(i + 1) % 2].data_ptr(),
            weight=self.weights[i].data_ptr(),
            gweight=self.gweights[i].data_ptr(),
            stride=self.weights[i].numel(),
            before=self.tables[i - 1].data_ptr(),
            after=self.tables[i].data_ptr(),
            sums=self.sums[i].data_ptr(),
        )

    def _rows(self, *rows: int) -> list[Tensor]:
        """These rows of the tables, for each stage that has a BatchNorm."""
        normed = [(i, s.shape.co) for i, s in enumerate(self.stages) if s.norm is not None]
        return [self.tables[i, row, :channels] for row in rows for i, channels in normed]

    def load(self, parameters: list[Tensor]) -> None:
        """Copy a model's parameters, in the order of `parameters`."""
        torch._foreach_copy_(self.parameters, parameters)

    def use_dropout(self) -> None:
        """Prepare a training step: BatchNorm by the batch's statistics, this step's dropout."""
        for i, (task, stage) in enumerate(zip(self.tasks, self.stages, strict=True)):
            before = self.stages[i - 1].norm if i else None
            task.eps_x = -1.0 if before is None else before.eps
            task.eps_y = -1.0 if stage.norm is None else stage.norm.eps
            task.threshold = 0 if stage.dropout is None else stage.dropout.threshold
            if stage.dropout is not None and task.threshold:
                task.scale = stage.dropout.scale
                task.key[:] = stage.dropout.key.tolist()

    def use_statistics(self, running: list[Tensor]) -> None:
        """Prepare an evaluation: BatchNorm with these statistics, and no dropout.

        Args:
            running: in the order of `statistics`.
        """
        torch._foreach_copy_(self.statistics, running)
        tables = self.tables
        tables[:, A] = tables[:, GAMMA] / torch.sqrt(tables[:, VAR] + self.eps)
        tables[:, B] = tables[:, BETA] - tables[:, MEAN] * tables[:, A]
        for task in self.tasks:
            task.threshold, task.eps_x, task.eps_y = 0, -1.0, -1.0

    def begin_forward(self, images: Tensor) -> None:
        """Copy the images, float32 [up to capacity, 1, 28, 28], before a forward pass."""
        count, threads = len(images), torch.get_num_threads()
        grouped = self._grouped(images[:, 0])
        self.images[: len(grouped), :, 0].copy_(grouped.permute(0, 2, 3, 1))
        for task in self.tasks:
            task.n, task.threads = count, threads

    def scores(self, count: int) -> Tensor:
        """The mean of each channel of the last stage's output: float32 [count, 10 or 16]."""
        last = self.y[-1][: -(-count // self.lanes)]
        means = last.sum(1).sum(2) / last.shape[1] ** 2
        return means.transpose(1, 2).flatten(0, 1)[:count]

    def begin_backward(self, gradient: Tensor) -> None:
        """Spread the gradient of the scores, float32 [B, 10 or 16], evenly over their pixels."""
        side = self.y[-1].shape[1]
        each = self._grouped(gradient / side**2).transpose(1, 2)[:, None, :, None]
        each = each.expand(-1, side, -1, side, -1)
        self.gradients[len(self.stages) % 2][: each.numel()].view(each.shape).copy_(each)

    def parameter_gradients(self) -> list[Tensor]:
        """The gradients of a backward pass, in the order of `parameters`."""
        return [gradient.clone() for gradient in self.found]

    def _grouped(self, samples: Tensor) -> Tensor:
        """[B, ...] -> [groups, lanes, ...]; the places after the last sample are zero."""
        missing = -len(samples) % self.lanes
        if missing:
            samples = torch.cat([samples, samples.new_zeros(missing, *samples.shape[1:])])
        return samples.view(-1, self.lanes, *samples.shape[1:])
