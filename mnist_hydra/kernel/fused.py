"""Runs a model's layers through the compiled kernel, forward and backward, in float32.

The plain PyTorch model is the reference and keeps the parameters. It is divided into `stages` that
the kernel knows, and each pass has its memory in a `Workspace`. No state is kept here between two
steps, and the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mnist_hydra.kernel.compile import CHANNELS, Shape, Task, Unavailable, load_kernel
from mnist_hydra.models import Dropout, Model1, Model2, Model3, log_probabilities

IMAGES_PER_THREAD = 32
"""Images a thread that an evaluation takes at a time: what lies between two stages stays cached."""
SIDE = 28
A, B, MEAN, VAR, RSTD, GAMMA, BETA, C0, C1, C2, DGAMMA, DBETA, ROWS = range(13)
"""The rows of a stage's table, as in kernel.c."""


@dataclass
class Stage:
    """A convolution, what is done to its input, and the BatchNorm that its output goes into."""

    conv: nn.Conv2d | None
    """`None` for a stage that passes its channels on unchanged."""
    channels: int
    """Channels of the input."""
    raw: int
    """Side of the input in pixels; `inner` is the side after pooling."""
    inner: int
    dropout: Dropout | None
    slope_in: float
    slope_out: float = 1.0
    norm: nn.BatchNorm2d | None = None

    @property
    def shape(self) -> Shape:
        conv, slopes = self.conv, (self.slope_in, self.slope_out)
        if conv is None:
            same = (self.channels, self.channels)
            return Shape(1, 0, *same, self.raw, self.inner, self.inner, *slopes)
        k, pad = conv.kernel_size[0], int(conv.padding[0])
        out = self.inner + 2 * pad - k + 1
        return Shape(k, pad, self.channels, conv.out_channels, self.raw, self.inner, out, *slopes)


def stages(model: nn.Module) -> list[Stage]:
    """The stages of one of our architectures, in order.

    The average pool becomes a mean after the last stage: it commutes with Model2's 1x1 convolution
    to the scores; Model1, which has none, gets a stage that changes nothing.

    Raises:
        Unavailable: the model is none of ours.
    """
    if type(model) not in (Model1, Model2, Model3):
        made_for = "the compiled kernel is made for Model1, Model2 and Model3"
        raise Unavailable(f"{made_for}, not {type(model).__name__}")
    layers: Any = model.layers
    found: list[Stage] = []
    channels, side, pool, slope = 1, SIDE, 1, 1.0
    dropout: Dropout | None = None
    for layer in layers:
        if isinstance(layer, nn.Conv2d) or (isinstance(layer, nn.Flatten) and found[-1].norm):
            conv = layer if isinstance(layer, nn.Conv2d) else None
            found.append(Stage(conv, channels, side, side // pool, dropout, slope))
            shape = found[-1].shape
            channels, side, pool, slope, dropout = shape.co, shape.out, 1, 1.0, None
        elif isinstance(layer, nn.BatchNorm2d):
            found[-1].norm = layer
        elif isinstance(layer, nn.LeakyReLU):
            slope = layer.negative_slope
        elif isinstance(layer, nn.ReLU):
            found[-1].slope_out = 0.0
        elif isinstance(layer, nn.MaxPool2d):
            pool = 2
        elif isinstance(layer, Dropout):
            dropout = layer
    return found


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

    def _grouped(self, samples: Tensor) -> Tensor:
        """[B, ...] -> [groups, lanes, ...]; the places after the last sample are zero."""
        missing = -len(samples) % self.lanes
        if missing:
            samples = torch.cat([samples, samples.new_zeros(missing, *samples.shape[1:])])
        return samples.view(-1, self.lanes, *samples.shape[1:])


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
        return [gradient.clone() for gradient in workspace.found]

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
