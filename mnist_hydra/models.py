"""The three published architectures in plain PyTorch, without precision, devices or speed.

Every faster way to run them is tested against these. Their dropout's mask depends only on the seed,
the step and the layer, so a resumed run needs no generator state: nothing here may keep a state
between two steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10
_MASK64 = (1 << 64) - 1


class Model1(nn.Module):
    """The first architecture, 6,984 parameters; its 16 pooled channels are the class scores.

    Args:
        dropout: rate after the first convolution and at the end of each block, 0 <= dropout < 1.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_block(1, 8, dropout),  # 8x14x14
            *_block(8, 12, dropout),  # 12x7x7
            *_block(12, 16, dropout),  # 16x3x3
            nn.AvgPool2d(3),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 1, 28, 28], normalised -> log-probabilities float32 [B, 10].

        The softmax runs over all 16 scores, as published, and the first ten are returned, so a row
        of probabilities sums to a little less than one.
        """
        return log_probabilities(self.layers(images))


class Model2(nn.Module):
    """The second architecture, 7,236 parameters; a last 1x1 convolution makes the class scores.

    Args:
        dropout: rate after each BatchNorm, 0 <= dropout < 1.
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv_relu_norm(1, 12, dropout),  # 12x26x26
            *_conv_relu_norm(12, 16, dropout),  # 16x24x24
            nn.Conv2d(16, 10, 1, bias=False),
            nn.MaxPool2d(2),  # 10x12x12
            *_conv_relu_norm(10, 12, dropout),  # 12x10x10
            *_conv_relu_norm(12, 12, dropout),  # 12x8x8
            *_conv_relu_norm(12, 12, dropout),  # 12x6x6
            *_conv_relu_norm(12, 12, dropout, padding=1),  # 12x6x6
            nn.AvgPool2d(6),
            nn.Conv2d(12, CLASSES, 1, bias=False),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images: float [B, 1, 28, 28], normalised -> log-probabilities float32 [B, 10]."""
        return log_probabilities(self.layers(images))


class Model3(Model2):
    """The third architecture: the second with dropout 0.04, under the name that people look for."""

    def __init__(self, dropout: float = 0.04) -> None:
        super().__init__(dropout)


def log_probabilities(scores: Tensor) -> Tensor:
    """scores: float [B, 10 or more] -> log-probabilities float32 [B, 10] of a softmax over all."""
    return F.log_softmax(scores.float(), dim=1).narrow(1, 0, CLASSES)


def _block(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.01),
        Dropout(dropout),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(0.01),
        nn.MaxPool2d(2),
        Dropout(dropout),
    ]


def _conv_relu_norm(inputs: int, outputs: int, dropout: float, padding: int = 0) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(outputs),
        Dropout(dropout),
    ]


class Dropout(nn.Module):
    """Sets each element to zero with probability `p` and scales the others by `1 / (1 - p)`.

    The mask depends only on the two words of `key` (see `set_dropout_step`) and on the element's
    place, counted batch, row, column, channel, whatever the memory format, device or dtype.
    In evaluation mode, or where `p` is zero, the output is the input.

    Args:
        p: the rate, at least 0 and less than 1. It is kept as a number of 65,536ths (`threshold`),
            and the scale follows what is kept, so that the expectation is exact.

    Raises:
        ValueError: `p` is out of range.
    """

    key: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"the dropout rate is {p}; it must be at least 0 and less than 1")
        self.p = p
        self.threshold = min(round(p * 65536), 65535)
        self.scale = 65536 / (65536 - self.threshold)
        self.register_buffer("key", torch.zeros(2, dtype=torch.int32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, C, H, W] or [B, ...] -> the same shape, dtype and memory format."""
        if not self.training or self.threshold == 0:
            return x
        return torch.where(self.keep(x), x * self.scale, 0.0)

    def keep(self, x: Tensor) -> Tensor:
        """The mask for `x`, bool in its shape; False is dropped."""
        if x.dim() != 4:
            return keep_mask(self.key, x.numel(), self.threshold).view(x.shape)
        b, c, h, w = x.shape
        return keep_mask(self.key, x.numel(), self.threshold).view(b, h, w, c).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def set_dropout_step(model: nn.Module, seed: int, step: int) -> None:
    """Gives every `Dropout` of `model` that drops anything the key of this training step.

    A model without such layers is not changed. Call it before each training step. The layers are
    numbered in the order of `model.modules()`.

    Args:
        seed: the run's seed, any integer.
        step: the global step, counted from 0 over all epochs.
    """
    layers = (module for module in model.modules() if isinstance(module, Dropout))
    for number, layer in enumerate(layers):
        if layer.threshold:
            key = torch.tensor(dropout_key(seed, step, number), dtype=torch.int32)
            layer.key.copy_(key, non_blocking=True)  # waits for no device


def dropout_key(seed: int, step: int, layer: int) -> tuple[int, int]:
    """The key of a layer at a step: two int32 words, by splitmix64 (Steele 2014)."""
    state = 0
    for value in (seed, step, layer):
        state = (state + (value & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return _signed(state & 0xFFFFFFFF), _signed(state >> 32)


def keep_mask(key: Tensor, numel: int, threshold: int) -> Tensor:
    """Which of `numel` elements are kept: bool [numel], False with probability threshold / 65536.

    One 16-bit half of the 32-bit word `i // 2` decides on element `i`. A word is a hash of its
    index and the key (the constants are those of Wellons' lowbias32).

    Args:
        key: int32 [2].
        threshold: 0..65535.
    """
    word = torch.arange((numel + 1) // 2, dtype=torch.int32, device=key.device)
    word.mul_(_signed(0x9E3779B9)).add_(key[0])
    word.bitwise_xor_((word >> 16).bitwise_and_(0xFFFF))
    word.mul_(0x7FEB352D).bitwise_xor_(key[1])
    word.bitwise_xor_((word >> 15).bitwise_and_(0x1FFFF))
    word.mul_(_signed(0x846CA68B))
    word.bitwise_xor_((word >> 16).bitwise_and_(0xFFFF))
    return word.view(torch.int16)[:numel] >= threshold - 32768


def _signed(word: int) -> int:
    """The same 32 bits as a signed number."""
    return word - (1 << 32) if word >= 1 << 31 else word
