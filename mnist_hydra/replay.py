"""Work on a GPU that is recorded once as a CUDA graph and then replayed: one launch, not hundreds.

A step of a small model takes the host longer to launch, kernel by kernel, than the GPU to compute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Calls before a recording: libraries choose their kernels and allocate in them."""


def can_be_replayed(model: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether every step launches the same kernels on the same memory, as a recording does.

    Nobody knows that of a `forward` of one's own, which may count its calls or draw in Python, nor
    of an optimizer of one's own, which may put other tensors in place of the weights.
    """
    known = ("torch.nn.", "mnist_hydra.")
    return type(optimizer).__module__.startswith("torch.optim.") and all(
        type(module).__module__.startswith(known) for module in model.modules()
    )


@dataclass(frozen=True)
class _Recording:
    """A graph with the tensors that it reads and those that it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]
    results: tuple[Tensor, ...]


class Replay:
    """Does what `work` does, with a recording of it for each number of images.

    What is returned stands until the next call, which writes it anew; the same holds for the
    parameters' gradients.

    Args:
        work: takes tensors on the GPU, computes the gradients of the model's parameters from none,
            may change the model's buffers, and returns tensors. It waits for nothing.
        model: whose parameters and buffers those are.
    """

    def __init__(self, work: Callable[..., tuple[Tensor, ...]], model: nn.Module) -> None:
        self._work, self._model = work, model
        self._parameters = list(model.parameters())
        self._recordings: dict[torch.Size, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        shape = given[0].shape
        if shape not in self._recordings:
            self._recordings[shape] = self._record(given)
        recording = self._recordings[shape]
        torch._foreach_copy_(recording.inputs, given)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.results

    def _record(self, given: tuple[Tensor, ...]) -> _Recording:
        """Record `work`; the model's buffers and the random generator stay as they are."""
        inputs = tuple(tensor.clone() for tensor in given)
        device = inputs[0].device
        buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        random_state = torch.cuda.get_rng_state(device)
        side: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        current = torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._work(*inputs)
        current.wait_stream(side)
        for buffer, before in buffers:
            buffer.copy_(before)
        torch.cuda.set_rng_state(random_state, device)
        graph = torch.cuda.CUDAGraph()
        # other threads of this process may use the GPU meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = self._work(*inputs)
        gradients = tuple(parameter.grad for parameter in self._parameters)
        return _Recording(graph, inputs, gradients, results)
