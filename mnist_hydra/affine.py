"""What albumentations' geometric steps draw at random, as plain ranges read from their arguments.

It knows the language (names, defaults, limits) and never imports torch or albumentations, so that
a configuration can be checked before either is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnist_hydra.errors import UserError, did_you_mean, wrong_value

Range = tuple[float, float]

# OpenCV's numbers for what stands outside the image; 3, BORDER_WRAP, has no batched form.
CONSTANT, REPLICATE, REFLECT, REFLECT_101 = 0, 1, 2, 4
LINEAR = 1


@dataclass(frozen=True)
class Affine:
    """One random affine step: every value is drawn uniformly from its closed range."""

    p: float
    """The probability that an image is changed at all."""
    rotate: Range = (0.0, 0.0)
    """Degrees, counter-clockwise."""
    scale_x: Range = (1.0, 1.0)
    scale_y: Range = (1.0, 1.0)
    keep_ratio: bool = False
    """The factor drawn for x serves y too."""
    shear_x: Range = (0.0, 0.0)
    shear_y: Range = (0.0, 0.0)
    translate_x: Range = (0.0, 0.0)
    translate_y: Range = (0.0, 0.0)
    translate_in_pixels: bool = False
    """Whole pixels, both ends included; otherwise fractions of the size, cut to whole pixels."""
    border: int = CONSTANT
    fill: float = 0.0
    """Grey level (0..255) outside the image where `border` is CONSTANT."""


# Arguments that only concern masks, boxes and key points: checked, then of no effect here.
_ELSEWHERE: dict[str, Any] = {
    "mask_interpolation": 0,
    "fill_mask": 0,
    "rotate_method": "largest_box",
}
_LOOKUP: dict[str, Any] = {"interpolation": LINEAR, "border_mode": CONSTANT, "fill": 0}

#: Steps with a batched form, and albumentations' own defaults for their arguments.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ShiftScaleRotate": {
        "shift_limit": (-0.0625, 0.0625),
        "scale_limit": (-0.1, 0.1),
        "rotate_limit": (-45, 45),
        "shift_limit_x": None,
        "shift_limit_y": None,
        "p": 0.5,
        **_LOOKUP,
        **_ELSEWHERE,
    },
    "Affine": {
        "scale": (1.0, 1.0),
        "translate_percent": None,
        "translate_px": None,
        "rotate": 0.0,
        "shear": (0.0, 0.0),
        "fit_output": False,
        "keep_ratio": False,
        "balanced_scale": False,
        "p": 0.5,
        **_LOOKUP,
        **_ELSEWHERE,
    },
    "Rotate": {"limit": (-90, 90), "crop_border": False, "p": 0.5, **_LOOKUP, **_ELSEWHERE},
    "HorizontalFlip": {"p": 0.5},
    "VerticalFlip": {"p": 0.5},
}


def read(name: str, given: Mapping[str, Any], key: str) -> Affine | None:
    """Read the arguments of one step of `DEFAULTS` as albumentations 2.0.8 would.

    Returns `None` where the arguments are right but ask for something that has no exact batched
    form (another interpolation, a wrapping border, an output of another size, balanced scales).

    Args:
        name: a key of `DEFAULTS`.
        given: the arguments as they stand in the configuration.
        key: where they stand in it, for messages: `aug.steps.0.Rotate`.

    Raises:
        UserError: an argument that the step does not have, or a value outside its range.
    """
    defaults = DEFAULTS[name]
    for argument in given:
        if argument not in defaults:
            raise UserError(
                f"{key}: {name} has no argument {argument!r}{did_you_mean(argument, defaults)}; "
                f"right: {', '.join(sorted(defaults))}"
            )
    args = _Arguments({**defaults, **given}, key)
    p = args.number("p", 0.0, 1.0)
    if name == "HorizontalFlip":
        return Affine(p, scale_x=(-1.0, -1.0))
    if name == "VerticalFlip":
        return Affine(p, scale_y=(-1.0, -1.0))

    args.choice("mask_interpolation", range(5))
    args.choice("rotate_method", ("largest_box", "ellipse"))
    exact = args.choice("interpolation", range(5)) == LINEAR
    border = args.choice("border_mode", range(5))
    exact &= border in (CONSTANT, REPLICATE, REFLECT, REFLECT_101)
    fill = args.fill("fill")
    args.fill("fill_mask")
    exact &= fill is not None
    for flag in ("fit_output", "balanced_scale", "crop_border"):
        exact &= flag not in defaults or not args.flag(flag)

    step = {"ShiftScaleRotate": _shift_scale_rotate, "Affine": _affine, "Rotate": _rotate}[name]
    ranges = step(args)  # read in any case: a wrong value is an error, batched or not
    return Affine(p, border=border, fill=fill or 0.0, **ranges) if exact else None




def _shift_scale_rotate(args: _Arguments) -> dict[str, Any]:
    both = args.symmetric("shift_limit", -1.0, 1.0)
    x, y = (
        both if args.missing(name) else args.symmetric(name, -1.0, 1.0)
        for name in ("shift_limit_x", "shift_limit_y")
    )
    low, high = args.symmetric("scale_limit", -1.0, math.inf)
    scale = (1.0 + low, 1.0 + high)
    return {
        "rotate": args.symmetric("rotate_limit"),
        "scale_x": scale,
        "scale_y": scale,
        "translate_x": x,
        "translate_y": y,
    }


def _affine(args: _Arguments) -> dict[str, Any]:
    if not args.missing("translate_percent") and not args.missing("translate_px"):
        raise UserError(
            f"{args.key} has both translate_percent and translate_px; right: one of them"
        )
    in_pixels = not args.missing("translate_px")
    if in_pixels:
        x, y = args.per_axis("translate_px", absent=0.0, whole=True)
    elif not args.missing("translate_percent"):
        x, y = args.per_axis("translate_percent", absent=0.0)
    else:
        x = y = (0.0, 0.0)
    scale_x, scale_y = args.per_axis("scale", absent=1.0)
    keep_ratio = args.flag("keep_ratio")
    if keep_ratio and scale_x != scale_y:
        raise UserError(
            f"{args.key}.scale gives x {scale_x} and y {scale_y}; right: the same for both, or "
            "keep_ratio=false"
        )
    shear_x, shear_y = args.per_axis("shear", absent=1.0)  # 1 degree: albumentations' own default
    return {
        "rotate": args.fixed_or_range("rotate"),
        "scale_x": scale_x,
        "scale_y": scale_y,
        "keep_ratio": keep_ratio,
        "shear_x": shear_x,
        "shear_y": shear_y,
        "translate_x": x,
        "translate_y": y,
        "translate_in_pixels": in_pixels,
    }


def _rotate(args: _Arguments) -> dict[str, Any]:
    return {"rotate": args.symmetric("limit")}


class _Arguments:
    """The arguments of one step, each checked as it is taken out."""

    def __init__(self, values: Mapping[str, Any], key: str) -> None:
        self.values = values
        self.key = key

    def missing(self, name: str) -> bool:
        return self.values[name] is None

    def number(self, name: str, low: float, high: float) -> float:
        value = self.values[name]
        if not _is_number(value) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def choice(self, name: str, choices: Sequence[Any]) -> Any:
        value = self.values[name]
        if isinstance(value, bool) or value not in choices:
            raise self._wrong(name, value, "one of " + ", ".join(map(str, choices)))
        return value

    def flag(self, name: str) -> bool:
        value = self.values[name]
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def fill(self, name: str) -> float | None:
        """Read a grey level, or `None` for a list of them, which is albumentations' to judge."""
        if _is_list(self.values[name]):
            return None
        return self.number(name, 0.0, 255.0)

    def symmetric(self, name: str, low: float = -math.inf, high: float = math.inf) -> Range:
        """Read one number for -number..number, or a pair."""
        value = self.values[name]
        if _is_number(value):
            value = (-value, value)
        return self._pair(name, value, low, high)

    def fixed_or_range(self, name: str) -> Range:
        """Read one number for exactly that number, or a pair."""
        value = self.values[name]
        return self._pair(name, (value, value) if _is_number(value) else value)

    def per_axis(self, name: str, absent: float, whole: bool = False) -> tuple[Range, Range]:
        """Read a number or pair for both axes, or a mapping of `x` and `y` to such."""
        value = self.values[name]
        if not isinstance(value, Mapping):
            value = {"x": value, "y": value}
        elif not value or not set(value) <= {"x", "y"}:
            raise self._wrong(name, dict(value), "a mapping with the keys x and y")
        ranges = []
        for axis in ("x", "y"):
            one = value.get(axis, absent)
            pair = self._pair(name, (one, one) if _is_number(one) else one)
            if whole and not (pair[0].is_integer() and pair[1].is_integer()):
                raise self._wrong(name, one, "whole numbers of pixels")
            ranges.append(pair)
        return ranges[0], ranges[1]

    def _pair(self, name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> Range:
        if not _is_list(value) or len(value) != 2 or not all(map(_is_number, value)):
            raise self._wrong(name, value, "a number or a pair of numbers")
        first, second = sorted(map(float, value))
        if first < low or second > high:
            bound = f"from {low:g} to {high:g}" if math.isfinite(high) else f"at least {low:g}"
            raise self._wrong(name, self.values[name], bound)
        return first, second

    def _wrong(self, name: str, value: Any, right: str) -> UserError:
        return wrong_value(f"{self.key}.{name}", value, right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
