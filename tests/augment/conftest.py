"""Real digits to augment."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_hydra.targets import LET_IN
from tests.augment.steps import OWN


@pytest.fixture(scope="module")
def digits(mnist: Path) -> torch.Tensor:
    """The first 2,000 training images, uint8 [2000, 1, 28, 28]."""
    pixels = np.fromfile(
        mnist / "MNIST" / "raw" / "train-images-idx3-ubyte", np.uint8, 2000 * 784, offset=16
    )
    return torch.from_numpy(pixels).view(-1, 1, 28, 28)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_augmentation.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(LET_IN, "modules", ["own_augmentation", "no_such_module"])
    monkeypatch.delitem(sys.modules, "own_augmentation", raising=False)
