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
        self.scales = [*(n.weight for n in norms), *(n.bias for n in norms)]
        self.parameters = [*self.weights, *self.scales]
        self.constants = torch.tensor([0.0, 1.0])
        zero = sum(tensor.numel() for tensor in (*self.parameters, *self.running))
        self.sources, back = _weights(stages, zero)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        places = torch.arange(2 * LANES * len(stages)).view(-1, 2, LANES) + sum(
            gradient_sizes(self.shapes)
        )
        norms_back = [places[i, kind, : self.shapes[i].co] for kind in (1, 0) for i in self.normed]
        self.gradient_sources = torch.cat([back, *norms_back])
        start = sum(weight.numel() for weight in self.weights)
        vectors = []  # gamma, beta, mean, variance: where there is no BatchNorm, 1, 0, 0, 1
        for constant, beyond in (
            (zero + 1, zero),
            (zero, zero),
            (zero, zero),
            (zero + 1, zero + 1),
        ):
            for stage, shape in zip(stages, self.shapes, strict=True):
                own = torch.full((shape.co,), constant)
                if stage.norm is not None:
                    own = torch.arange(start, start + shape.co)
                    start += shape.co
                vectors.append(pad(own, (0, LANES - shape.co), value=beyond))
        self.vector_sources = torch.cat(vectors)

    def load(self, workspace: Workspace) -> None:
        """Copy weights, BatchNorm's parameters and running statistics to a workspace."""
        own = [*self.parameters, *self.running, self.constants]
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in own])
        torch.index_select(flat, 0, self.sources, out=workspace.packed)
        vectors = flat.index_select(0, self.vector_sources).view(4, -1, LANES)
        workspace.vectors[:, GAMMA], workspace.vectors[:, BETA] = vectors[:2].numpy()
        workspace.statistics.copy_(vectors[2:])

    def move_running_statistics(self, workspace: Workspace, images: int) -> None:
        """Move BatchNorm's running statistics towards those of a batch, as `nn.BatchNorm2d`."""
        counts = np.array([[images * shape.out**2] for shape in self.shapes], dtype=np.float64)
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
