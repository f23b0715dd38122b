"""An augmentation built from its configuration, and what is refused in it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mnist_hydra.augment.affine import Affine
from mnist_hydra.augment.pipeline import build_augmentation, read_steps
from mnist_hydra.errors import UserError
from tests.augment.steps import built, pipeline

CONF = Path(__file__).parents[2] / "conf" / "aug"


# the groups


def test_the_published_augmentation_runs_on_the_device_with_the_published_ranges() -> None:
    entry = OmegaConf.to_container(OmegaConf.load(CONF / "ssr.yaml"))
    (step,) = read_steps(entry["steps"], "aug.steps")  # type: ignore[arg-type]
    assert step.batched == Affine(
        p=0.25,
        rotate=(-7.0, 7.0),
        scale_x=(0.95, 1.05),
        scale_y=(0.95, 1.05),
        translate_x=(-0.0625, 0.0625),
        translate_y=(-0.0625, 0.0625),
    )
    made = build_augmentation(entry)  # type: ignore[arg-type]
    assert made is not None and made.on_device


def test_no_augmentation_is_nothing_to_call() -> None:
    entry = OmegaConf.to_container(OmegaConf.load(CONF / "none.yaml"))
    assert build_augmentation(entry) is None  # type: ignore[arg-type]


def test_a_batched_pipeline_imports_neither_albumentations_nor_opencv() -> None:
    code = (
        "import sys\n"
        "from mnist_hydra.augment.pipeline import build_augmentation, read_steps\n"
        "aug = {'name': 'x', 'steps': [{'ShiftScaleRotate': {'p': 0.5}}, {'HorizontalFlip': {}}]}\n"
        "assert all(step.batched for step in read_steps(aug['steps'], 'aug.steps'))\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "build_augmentation(aug)(torch.zeros(8, 1, 28, 28, dtype=torch.uint8), seed=0)\n"
        "assert not {'albumentations', 'cv2'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# a pure function


@pytest.mark.parametrize("name", ["ShiftScaleRotate", "CLAHE"])
def test_the_result_depends_on_images_and_seed_alone(digits: torch.Tensor, name: str) -> None:
    images = digits[:300]
    before = images.clone()
    augmentation = built({name: {"p": 0.5}}, {"Rotate": {"limit": 20, "p": 0.5}})
    first = augmentation(images, seed=2**63 - 1)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    augmentation(images[:7], seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        again = augmentation(images, seed=2**63 - 1)
        rebuilt = built({name: {"p": 0.5}}, {"Rotate": {"limit": 20, "p": 0.5}})
        assert torch.equal(rebuilt(images, seed=2**63 - 1), first)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(again, first) and torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.dtype == torch.uint8 and first.shape == images.shape
    assert not torch.equal(augmentation(images, seed=0), first)


@pytest.mark.parametrize("p", [0, 0.25, 1])
def test_only_chosen_images_are_touched_and_the_result_is_a_tensor_of_its_own(
    digits: torch.Tensor, p: float
) -> None:
    images = digits[:512]
    changed = built({"HorizontalFlip": {"p": p}})(images, seed=4)
    flipped = (changed == images.flip(-1)).flatten(1).all(1)
    kept = (changed == images).flatten(1).all(1)
    assert (flipped | kept).all()
    assert abs(flipped.float().mean() - p) < 0.08
    assert changed.data_ptr() != images.data_ptr()


def test_a_read_only_file_can_be_augmented(tmp_path: Path, digits: torch.Tensor) -> None:
    digits[:64].numpy().tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=(64, 1, 28, 28))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = torch.from_numpy(mapped)
    for step in ({"ShiftScaleRotate": {"p": 1}}, {"CLAHE": {"p": 1}}):
        assert built(step)(images, seed=0).shape == images.shape


# refusals


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"Rotat": {}}, ["aug.steps.0", "'Rotat'", "did you mean Rotate"]),
        ({"clahe": {}}, ["'clahe'", "did you mean CLAHE"]),
        ({"from_dict": {}}, ["no step 'from_dict'"]),
        ({"Rotate": {"limt": 3}}, ["aug.steps.0.Rotate", "'limt'", "did you mean limit"]),
        ({"Rotate": {"limit": "far"}}, ["aug.steps.0.Rotate", "limit='far'", "a valid number"]),
        ({"Rotate": {"limit": float("nan")}}, ["aug.steps.0.Rotate.limit=nan", "finite"]),
        ({"Rotate": {"p": 1.5}}, ["aug.steps.0.Rotate", "p=1.5", "less than or equal to 1"]),
        ({"Rotate": {"border_mode": 5}}, ["border_mode=5", "0, 1, 2, 3 or 4"]),
        ({"Rotate": {"crop_border": 1}}, ["aug.steps.0.Rotate", "same type and shape"]),
        ({"Rotate": {"rotate_method": "box"}}, ["rotate_method='box'", "largest_box"]),
        ({"ShiftScaleRotate": {"shift_limit": 1.5}}, ["shift_limit", "[-1, 1]"]),
        ({"ShiftScaleRotate": {"scale_limit": [-2, 0]}}, ["scale_limit=[-2, 0]"]),
        ({"Affine": {"shear": {"z": 1}}}, ["shear={'z': 1}", "\"x\" or key \"y\""]),
        ({"Affine": {"scale": [1, 2, 3]}}, ["scale=[1, 2, 3]"]),
        ({"Affine": {"scale": {"x": 2}, "keep_ratio": True}}, ["keep_ratio", "identical"]),
        (
            {"Affine": {"translate_px": 1, "translate_percent": 0.1}},
            ["translate_percent or translate_px"],
        ),
        ({"CLAHE": {"clip_limit": -3}}, ["aug.steps.0.CLAHE", "clip_limit=-3", ">= 1"]),
        ({"CLAHE": {"cliplimit": 3}}, ["'cliplimit'", "did you mean clip_limit"]),
        ({"OneOf": {"transforms": [{"Rotat": {}}]}}, ["aug.steps.0.OneOf.transforms.0", "Rotate"]),
        ({"Normalize": {}}, ["Normalize", "float32", "the trainer"]),
        ({"ToTensorV2": {}}, ["ToTensorV2", "Tensor"]),
        ({"Resize": {"height": 3, "width": 3}}, ["Resize", "(3, 3, 1)", "same type and shape"]),
        ({"_target_": "own_augmentation.Rol"}, ["own_augmentation.Rol"]),
        ({"_target_": "own_augmentation.Roll", "mst": 1}, ["'mst'", "did you mean most"]),
        ({"_target_": "own_augmentation.function"}, ["function", "BasicTransform"]),
        ({"_target_": "own_augmentation.Broken"}, ["aug.steps.0", "no such luck"]),
        ({"_target_": "own_augmentation.Restless"}, ["same seed", "self.py_random"]),
        ({"_target_": "os.system"}, ["os.system", "not let in"]),
        ({"_target_": "no_such_module.Roll"}, ["no_such_module"]),
        ({"_target_": 3}, ["aug.steps.0._target_=3", "dotted path"]),
        ("Rotate", ["aug.steps.0=Rotate", "a mapping of one name"]),
        ({"Rotate": {}, "CLAHE": {}}, ["a mapping of one name"]),
        ({"Rotate": 3}, ["a mapping of one name"]),
    ],
    ids=str,
)
@pytest.mark.usefixtures("own")
def test_a_wrong_step_is_refused_in_one_line_that_names_it(step: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_augmentation(pipeline(step))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_mistyped_key_or_a_list_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="aug.step=.*right: name or steps"):
        build_augmentation({"name": "x", "step": []})
    with pytest.raises(UserError, match="aug.steps=Rotate is not valid; right: a list"):
        build_augmentation({"name": "x", "steps": "Rotate"})
