"""albumentations' geometric steps, read as the ranges that albumentations draws from."""

from __future__ import annotations

import inspect
from typing import Any

import albumentations as A  # noqa: E402, N812 - its usual name
import pytest

from mnist_hydra.augment import affine
from mnist_hydra.augment.per_image import PerImage
from tests.augment.steps import batched, built, original


@pytest.mark.parametrize("name", sorted(affine.DEFAULTS))
def test_the_arguments_and_their_defaults_are_those_of_albumentations(name: str) -> None:
    theirs = {
        argument: parameter.default
        for argument, parameter in inspect.signature(getattr(A, name)).parameters.items()
        if argument != "self"
    }
    if name.endswith("Flip"):
        theirs = {"p": 0.5}
    assert affine.DEFAULTS[name] == theirs


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shift_limit": 0.1, "scale_limit": 0.5, "rotate_limit": 10},
        {"shift_limit": [0.1, -0.2], "scale_limit": [-0.3, 0.1], "rotate_limit": [-3, 20]},
        {"shift_limit_x": 0.2, "shift_limit_y": [0, 0.5]},
        {"shift_limit": 0.3, "shift_limit_y": 0},
        {"shift_limit": -0.1, "rotate_limit": -10},
    ],
)
def test_shift_scale_rotate_reads_its_limits_as_albumentations_does(given: Any) -> None:
    step, theirs = batched("ShiftScaleRotate", **given), original("ShiftScaleRotate", **given)
    assert (step.scale_x, step.scale_y) == (theirs.scale["x"], theirs.scale["y"])
    shift = theirs.translate_percent
    assert (step.translate_x, step.translate_y) == (shift["x"], shift["y"])
    assert step.rotate == tuple(sorted(theirs.rotate))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"scale": 0.8, "rotate": -7, "shear": 5, "translate_percent": 0.1},
        {"scale": [1.2, 0.8], "rotate": [-3, 20], "shear": [-5, 5], "translate_px": 2},
        {"scale": {"x": 0.9}, "shear": {"x": [1, 2]}, "translate_px": {"y": [-1, 3]}},
        {"scale": [0.5, 2], "keep_ratio": True, "translate_percent": {"x": [-0.2, 0.1]}},
    ],
)
def test_affine_reads_its_ranges_as_albumentations_does(given: Any) -> None:
    step, theirs = batched("Affine", **given), original("Affine", **given)
    assert {"x": step.scale_x, "y": step.scale_y} == theirs.scale
    assert {"x": step.shear_x, "y": step.shear_y} == theirs.shear
    assert step.rotate == theirs.rotate
    move = theirs.translate_px if theirs.translate_percent is None else theirs.translate_percent
    assert {"x": step.translate_x, "y": step.translate_y} == move
    assert step.keep_ratio == theirs.keep_ratio


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ShiftScaleRotate", {"interpolation": 2}),
        ("ShiftScaleRotate", {"border_mode": 3}),
        ("Affine", {"fit_output": True}),
        ("Affine", {"balanced_scale": True}),
        ("Rotate", {"crop_border": True}),
        ("Rotate", {"fill": [0]}),
    ],
)
def test_what_has_no_exact_batched_form_is_left_to_albumentations(name: str, given: Any) -> None:
    assert affine.read_step(name, given) is None


@pytest.mark.parametrize(
    "step",
    [
        {"Rotate": {"p": True}},
        {"Rotate": {"fill": 256}},
        {"Affine": {"translate_px": 0.5}},
    ],
)
def test_an_odd_value_that_albumentations_accepts_is_left_to_albumentations(step: Any) -> None:
    assert isinstance(built(step), PerImage)
