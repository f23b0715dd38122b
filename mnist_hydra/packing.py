"""Carries parameters to where the compiled kernel wants them, and gradients back.

One gather each way: many small copies would cost more than the arithmetic.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mnist_hydra.kernel import LANES
from mnist_hydra.stages import Stage
from mnist_hydra.workspace import BETA, GAMMA, RSTD, Workspace, gradient_sizes


class Packing:
    """The way between a model's own tensors and a workspace."""

    def __init__(self, stages: list[Stage]) -> None:
        self.shapes = [stage.shape for stage in stages]
        self.normed = [i for i, stage in enumerate(stages) if stage.norm is not None]
        self.weights = [stage.conv.weight for stage in stages if stage.conv is not None]
        norms = [stage.norm for stage in stages if stage.norm is not None]
        self.running: list[Tensor] = [n.running_mean for n in norms if n.running_mean is not None]
        self.running += [n.running_var for n in norms if n.running_var is not None]
        self.tracked = [n.num_batches_tracked for n in norms if n.num_batches_tracked is not None]
        self.momentum = norms[0].momentum or 0.0
        self.parameters = [*self.weights, *(n.weight for n in norms), *(n.bias for n in norms)]
        self.own = [*self.parameters, *self.running]
        zero = sum(tensor.numel() for tensor in self.own)
        self.flat = torch.cat([torch.zeros(zero), torch.tensor([0.0, 1.0])])
        places = torch.split(self.flat[:zero], [tensor.numel() for tensor in self.own])
        self.places = [p.view(own.shape) for p, own in zip(places, self.own, strict=True)]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.sources, weights_back = _weights(stages, zero)
        self.vector_sources = _vectors(stages, sum(weight.numel() for weight in self.weights), zero)
        sums = torch.arange(2 * LANES * len(stages)).view(-1, 2, LANES)
        sums += sum(gradient_sizes(self.shapes))
        norms_back = [sums[i, kind, : self.shapes[i].co] for kind in (1, 0) for i in self.normed]
        self.gradient_sources = torch.cat([weights_back, *norms_back])

    def load(self, workspace: Workspace) -> None:
        """Copy weights, BatchNorm's parameters and running statistics to a workspace."""
        torch._foreach_copy_(self.places, self.own)
        torch.index_select(self.flat, 0, self.sources, out=workspace.packed)
        vectors = self.flat.index_select(0, self.vector_sources).view(4, -1, LANES)
        workspace.vectors[:, GAMMA], workspace.vectors[:, BETA] = vectors[:2].numpy()
        workspace.statistics.copy_(vectors[2:])

    def move_running_statistics(self, workspace: Workspace, images: int) -> None:
        """Move BatchNorm's running statistics towards those of a batch, as `nn.BatchNorm2d`."""
        counts = np.array([[images * shape.out**2] for shape in self.shapes], dtype=np.float64)
        with np.errstate(invalid="ignore"):  # a loss that is not finite is noticed elsewhere
            mean, squares = workspace.sums[:, 0].swapaxes(0, 1) / counts
            var = np.maximum(squares - mean * mean, 0) * (counts / (counts - 1))
        workspace.statistics.copy_(torch.from_numpy(np.stack([mean, var])))
        torch._foreach_lerp_(self.running, workspace.batch_statistics, self.momentum)
        torch._foreach_add_(self.tracked, 1)

    def gradients(self, workspace: Workspace) -> list[Tensor]:
        """The gradients of `parameters` after a backward pass."""
        # the way back through stage i + 1 leaves the sums of stage i's BatchNorm
        totals = workspace.sums[1:, 0].astype(np.float32)
        totals[:, 1] *= workspace.vectors[:-1, RSTD]
        flat = torch.cat([workspace.gweight[0], torch.from_numpy(totals).view(-1)])
        parts = torch.split(flat.index_select(0, self.gradient_sources), self.sizes)
        weights = zip(parts, self.weights, strict=False)
        return [*(p.view(w.shape) for p, w in weights), *parts[len(self.weights) :]]


def _weights(stages: list[Stage], zero: int) -> tuple[Tensor, Tensor]:
    """Where each packed weight comes from, and where each weight's gradient stands.

    The first index is into all weights, one after another, with a zero and a one at `zero`; the
    second into `[k, k, ci, 16]` of every stage, one after another.
    """
    there, back, weights, taps = [], [], 0, 0
    for stage in stages:
        s = stage.shape
        if stage.conv is not None:
            own = torch.arange(weights, weights + s.co * s.ci * s.k**2).view(s.co, s.ci, s.k, s.k)
            weights += own.numel()
            places = torch.arange(taps, taps + s.k**2 * s.ci * LANES).view(s.k, s.k, s.ci, LANES)
            back.append(places[..., : s.co].permute(3, 2, 0, 1).flatten())
        else:
            own = (zero + torch.eye(s.co, dtype=torch.int64)).view(s.co, s.ci, 1, 1)
        taps += s.k**2 * s.ci * LANES
        turned = own.flip(2, 3).permute(2, 3, 0, 1)
        for index, channels in ((own.permute(2, 3, 1, 0), s.co), (turned, s.ci)):
            there.append(pad(index, (0, LANES - channels), value=zero).flatten())
    return torch.cat(there), torch.cat(back)


def _vectors(stages: list[Stage], start: int, zero: int) -> Tensor:
    """Where gamma, beta, mean and variance of every stage come from, in that order.

    They begin at `start`; a stage without BatchNorm has 1, 0, 0 and 1, by the constants at `zero`.
    """
    found, one = [], zero + 1
    for constant, beyond in ((one, zero), (zero, zero), (zero, zero), (one, one)):
        for stage in stages:
            channels = stage.shape.co
            own = torch.full((channels,), constant)
            if stage.norm is not None:
                own = torch.arange(start, start + channels)
                start += channels
            found.append(pad(own, (0, LANES - channels), value=beyond))
    return torch.cat(found)
