"""The three published experiments as their notebooks define them, in plain PyTorch and
albumentations. Nothing here may come from mnist_hydra: it is what mnist_hydra is compared with."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.1307, 0.3081
BATCH_SIZE = 512
SEED = 14596


class Model1(nn.Module):
    """6,984 parameters; its 16 pooled channels are the scores.

    images: float32 [B, 1, 28, 28] -> log-probabilities [B, 16].
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 8), (8, 12), (12, 16)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.01),
                *_dropout(dropout),
                nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.01),
                nn.MaxPool2d(2),
                *_dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(self.layers(images), dim=1)


class Model2(nn.Module):
    """7,236 parameters; with dropout 0.04 it is Model3.

    images: float32 [B, 1, 28, 28] -> log-probabilities [B, 10].
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, padding: int = 0) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False),
                nn.ReLU(),
                nn.BatchNorm2d(outputs),
                *_dropout(dropout),
            ]

        self.layers = nn.Sequential(
            *block(1, 12),
            *block(12, 16),
            nn.Conv2d(16, 10, 1, bias=False),
            nn.MaxPool2d(2),
            *block(10, 12),
            *block(12, 12),
            *block(12, 12),
            *block(12, 12, padding=1),
            nn.AvgPool2d(6),
            nn.Conv2d(12, 10, 1, bias=False),
            nn.Flatten(),
        )

    def forward(self, images: Tensor) -> Tensor:
        return F.log_softmax(self.layers(images), dim=1)


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate else []


@dataclass(frozen=True)
class Recipe:
    """One experiment: what to build, and how it is trained."""

    model: Callable[[], nn.Module]
    augmented: bool
    onecycle: bool
    max_lr: float = 0.15
    """Of OneCycleLR."""

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        """SGD as published; under OneCycleLR the schedule takes its learning rate over."""
        return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.95, weight_decay=0.0005)

    def scheduler(
        self, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """A schedule that is stepped once a batch."""
        if not self.onecycle:
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.max_lr,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            pct_start=0.3,
            div_factor=25,
            final_div_factor=175,
        )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "model1": Model1,
    "model2": Model2,
    "model3": partial(Model2, dropout=0.04),
}
RECIPES = {
    "exp1": Recipe(Model1, augmented=False, onecycle=False),
    "exp2": Recipe(Model2, augmented=False, onecycle=True),
    "exp3": Recipe(lambda: Model2(0.04), augmented=True, onecycle=True),
}


def transform(augmented: bool) -> Callable[..., dict[str, Any]]:
    """Per-image albumentations: image uint8 [28, 28] -> `image` float32 [1, 28, 28]."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    steps: list[Any] = [A.Normalize(mean=(MEAN,), std=(STD,)), ToTensorV2()]
    if augmented:
        steps.insert(
            0,
            A.ShiftScaleRotate(
                shift_limit=0.0625, scale_limit=0.05, rotate_limit=7, border_mode=0, p=0.25
            ),
        )
    return A.Compose(steps)


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One of MNIST's halves, an image at a time.

    Args:
        root: folder that holds `MNIST/raw`.
        train: the training half, else the test half.
        augmented: whether the training recipe's augmentation is applied.
    """

    def __init__(self, root: Path, train: bool, augmented: bool) -> None:
        prefix = Path(root) / "MNIST" / "raw" / ("train" if train else "t10k")
        self.images = np.fromfile(f"{prefix}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 28, 28)
        self.labels = np.fromfile(f"{prefix}-labels-idx1-ubyte", np.uint8)[8:].astype(np.int64)
        self.transform = transform(augmented)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(image=self.images[index])["image"], int(self.labels[index])
