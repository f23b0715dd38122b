"""The typed configuration and every range check. It never imports torch, MLflow or albumentations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Which MNIST-format data to load, from where, and how it is split."""

    name: str
    dataset: str
    """torchvision's class and folder name: `MNIST`, `FashionMNIST` or `KMNIST`."""
    mean: float
    std: float
    root: str | None = None
    offline: bool = False
    val_size: int = 0
    split_seed: int = 0
    limit: int | None = None
    sha256: dict[str, str] | None = None
    """SHA-256 (hex) of the four uncompressed files by name; `None` where they are not known."""
