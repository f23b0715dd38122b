"""Steps that albumentations itself carries out, image by image, and steps of a user's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mnist_hydra.augment.per_image import PerImage
from mnist_hydra.augment.pipeline import build_augmentation
from mnist_hydra.augment.warp import Warp
from mnist_hydra.errors import UserError
from tests.augment.steps import albumentations_result, built, original, pipeline


def test_batches_that_albumentations_changes_draw_apart(digits: torch.Tensor) -> None:
    same = digits[:1].expand(64, 1, 28, 28)
    change = built({"RandomBrightnessContrast": {"p": 0.5}}).plan((128, 1, 28, 28), seed=3)
    first, second = change(same, 0), change(same, 64)
    assert not torch.equal(first, second)
    assert torch.equal(change(same, 64), second)


def test_anything_else_runs_through_albumentations_in_order(digits: torch.Tensor) -> None:
    steps = [("GaussianBlur", {"sigma_limit": [1, 1], "blur_limit": [3, 3]}), ("InvertImg", {})]
    ours = built(*({name: {**given, "p": 1}} for name, given in steps))
    assert not ours.on_device
    theirs = albumentations_result([original(n, **g, p=1) for n, g in steps], digits[:50])
    assert torch.equal(ours(digits[:50], seed=0), theirs)


def test_steps_with_equal_p_choose_their_images_independently(digits: torch.Tensor) -> None:
    images = digits[:1000]
    ours = built({"InvertImg": {"p": 0.5}}, {"VerticalFlip": {"p": 0.5}})
    changed = ours(images, seed=0)
    both = (changed == 255 - images.flip(-2)).flatten(1).all(1)
    neither = (changed == images).flatten(1).all(1)
    assert abs(both.float().mean() - 0.25) < 0.06 and abs(neither.float().mean() - 0.25) < 0.06


def test_one_of_several_steps_can_be_chosen(digits: torch.Tensor) -> None:
    choice = [{"InvertImg": {"p": 1}}, {"VerticalFlip": {"p": 1}}]
    images = digits[:400]
    changed = built({"OneOf": {"transforms": choice, "p": 1}})(images, seed=0)
    inverted = (changed == 255 - images).flatten(1).all(1)
    flipped = (changed == images.flip(-2)).flatten(1).all(1)
    assert (inverted | flipped).all() and 0.4 < inverted.float().mean() < 0.6


@pytest.mark.usefixtures("own")
def test_a_step_of_ones_own_works_beside_those_of_albumentations(digits: torch.Tensor) -> None:
    images = digits[:200]
    step = {"_target_": "own_augmentation.Roll", "most": 2, "p": 1}
    changed = built(step, {"HorizontalFlip": {"p": 0}})(images, seed=0)
    rolled = [(changed == images.roll(by, 2)).flatten(1).all(1) for by in (1, 2)]
    assert (rolled[0] ^ rolled[1]).all() and 0.3 < rolled[0].float().mean() < 0.7


@pytest.mark.usefixtures("own")
def test_a_step_that_writes_into_its_image_leaves_the_data_alone(digits: torch.Tensor) -> None:
    images = digits[:20].clone()
    changed = built({"_target_": "own_augmentation.Blank", "p": 1})(images, seed=0)
    assert not changed.any() and torch.equal(images, digits[:20])


def test_a_step_that_fails_on_the_data_itself_is_found_before_training() -> None:
    colour = np.zeros((2, 3, 8, 8), np.uint8)
    crop = {"RandomCrop": {"height": 20, "width": 20}}
    with pytest.raises(UserError, match="aug.steps.0.RandomCrop"):
        build_augmentation(pipeline(crop), sample=colour)
    made = build_augmentation(pipeline({"ToGray": {}}), sample=colour)
    assert isinstance(made, PerImage) and isinstance(built({"Rotate": None}), Warp)
