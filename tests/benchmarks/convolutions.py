"""Times a published model's convolutions alone, forward and backward, through PyTorch's own
kernels. It shares nothing with mnist_hydra and leaves out everything that is not a convolution.

    python -m tests.benchmarks.convolutions exp3 --precision bf16 --channels-last
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from torch import Tensor, nn

from tests.benchmarks.published import BATCH_SIZE, RECIPES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def convolution_inputs(model: nn.Module, batch_size: int) -> list[tuple[nn.Conv2d, Tensor]]:
    """Each convolution of `model`, in order, with an input of the shape that it gets."""
    found: list[tuple[nn.Conv2d, Tensor]] = []

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found.append((module, torch.randn_like(inputs[0])))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(torch.randn(batch_size, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return found


def seconds(
    experiment: str, precision: str, channels_last: bool, batch_size: int, repeats: int
) -> float:
    """Median seconds of all convolutions of one step: forward, and the gradients of the weights
    and, but for the first, of the inputs.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    to = {"device": device, "dtype": PRECISIONS[precision], "memory_format": layout}
    layers = []
    for place, (conv, inputs) in enumerate(
        convolution_inputs(RECIPES[experiment].model(), batch_size)
    ):
        conv = conv.to(**to)
        inputs = inputs.to(**to).requires_grad_(place > 0)
        layers.append((conv, inputs, torch.randn_like(conv(inputs))))

    def step() -> None:
        for conv, inputs, gradient in layers:
            conv.weight.grad = inputs.grad = None
            conv(inputs).backward(gradient)

    taken = []
    for _ in range(repeats + 3):
        _wait(device)
        started = time.perf_counter()
        step()
        _wait(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=RECIPES)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--repeats", type=int, default=30)
    print(json.dumps({"seconds": seconds(**vars(parser.parse_args()))}))
