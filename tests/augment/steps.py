"""Augmentation steps as this project makes them and as albumentations does, to be compared."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch

from mnist_hydra.augment import Augmentation, affine
from mnist_hydra.augment.affine import Affine
from mnist_hydra.augment.pipeline import build_augmentation

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: E402, N812 - its usual name


def pipeline(*steps: Any) -> dict[str, Any]:
    return {"name": "test", "steps": list(steps)}


def built(*steps: Any) -> Augmentation:
    made = build_augmentation(pipeline(*steps))
    assert made is not None
    return made


def batched(name: str, **given: Any) -> Affine:
    step = affine.read_step(name, given)
    assert step is not None
    return step


def original(name: str, **given: Any) -> Any:
    """albumentations' own transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(A, name)(**given)


def albumentations_result(transforms: list[Any], images: torch.Tensor) -> torch.Tensor:
    compose = A.Compose(transforms)
    pixels = [compose(image=image)["image"] for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


OWN = """
import albumentations
import numpy as np

class Roll(albumentations.ImageOnlyTransform):
    def __init__(self, most=3, p=0.5):
        super().__init__(p=p)
        self.most = most
    def get_params(self):
        return {"by": self.py_random.randint(1, self.most)}
    def apply(self, img, by, **params):
        return np.roll(img, by, 0)

class Blank(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        img[:] = 0
        return img

class Restless(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        return np.roll(img, np.random.randint(28), 0)

class Broken(albumentations.ImageOnlyTransform):
    def apply(self, img, **params):
        raise RuntimeError("no such luck")

def function():
    pass
"""
