"""Divides an architecture into the stages that the compiled kernel knows; computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from mnist_hydra.kernel.compile import Shape, Unavailable
from mnist_hydra.layers import Dropout
from mnist_hydra.models import Model1, Model2, Model3

SIDE = 28


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
