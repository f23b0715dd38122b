"""The three published architectures in plain PyTorch, without precision, devices or speed.

Every faster way to run them is tested against these.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from mnist_hydra.layers import Dropout

CLASSES = 10


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
