"""Reads albumentations' geometric steps as plain ranges, without importing albumentations (2.5 s).

It reads only steps that are certainly right and have an exact batched form. All others are left
to albumentations, which refuses them or carries them out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Range = tuple[float, float]

# OpenCV's numbers for what lies outside the image; 3, BORDER_WRAP, has no batched form.
CONSTANT, REPLICATE, REFLECT, REFLECT_101 = 0, 1, 2, 4


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
    """The factor drawn for x is used for y too."""
    shear_x: Range = (0.0, 0.0)
    shear_y: Range = (0.0, 0.0)
    translate_x: Range = (0.0, 0.0)
    translate_y: Range = (0.0, 0.0)
    translate_in_pixels: bool = False
    """Whole pixels, both ends included; otherwise fractions of the size, cut to whole pixels."""
    border: int = CONSTANT
    fill: float = 0.0
    """Grey level (0..255) outside the image where `border` is CONSTANT."""


# Arguments that have a batched form at their default only: for the first four any other is another
# result, the last three concern masks and boxes, which there are none of.
_DEFAULT_ONLY = (
    *("interpolation", "fit_output", "balanced_scale", "crop_border"),
    *("mask_interpolation", "fill_mask", "rotate_method"),
)
_OF_ALL: dict[str, Any] = {
    **{"interpolation": 1, "mask_interpolation": 0, "rotate_method": "largest_box"},  # 1: linear
    **{"border_mode": CONSTANT, "fill": 0, "fill_mask": 0, "p": 0.5},
}

#: Steps with a batched form, and albumentations' own defaults for their arguments.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ShiftScaleRotate": _OF_ALL
    | {"shift_limit": (-0.0625, 0.0625), "scale_limit": (-0.1, 0.1), "rotate_limit": (-45, 45)}
    | {"shift_limit_x": None, "shift_limit_y": None},
    "Affine": _OF_ALL
    | {"scale": (1.0, 1.0), "translate_percent": None, "translate_px": None, "rotate": 0.0}
    | {"shear": (0.0, 0.0), "fit_output": False, "keep_ratio": False, "balanced_scale": False},
    "Rotate": _OF_ALL | {"limit": (-90, 90), "crop_border": False},
    "HorizontalFlip": {"p": 0.5},
    "VerticalFlip": {"p": 0.5},
}


def read_step(name: str, given: Mapping[str, Any]) -> Affine | None:
    """Read the arguments of one step as albumentations 2.0.8 would.

    Returns `None` for a step or an argument that has no exact batched form (another interpolation,
    a wrapping border, an output of another size), and for one that is wrong.
    """
    if name not in DEFAULTS or not given.keys() <= DEFAULTS[name].keys():
        return None
    args = DEFAULTS[name] | dict(given)
    if any(args[key] != DEFAULTS[name][key] for key in _DEFAULT_ONLY if key in args):
        return None
    try:
        return Affine(_number(args["p"], 0, 1), **_READERS[name](args))
    except ValueError:
        return None


def _shift_scale_rotate(args: dict[str, Any]) -> dict[str, Any]:
    both = args["shift_limit"]
    x, y = (
        _symmetric(both if args[key] is None else args[key], -1, 1)
        for key in ("shift_limit_x", "shift_limit_y")
    )
    low, high = _symmetric(args["scale_limit"], -1)
    scale = (1.0 + low, 1.0 + high)
    rotate = _symmetric(args["rotate_limit"])
    ranges = {"rotate": rotate, "scale_x": scale, "scale_y": scale}
    return ranges | {"translate_x": x, "translate_y": y} | _outside(args)


def _affine(args: dict[str, Any]) -> dict[str, Any]:
    in_pixels = args["translate_px"] is not None
    if in_pixels and args["translate_percent"] is not None:
        raise ValueError("one of the two")
    move = args["translate_px"] if in_pixels else args["translate_percent"]
    x, y = _per_axis(0 if move is None else move, absent=0.0)
    if in_pixels and not all(value.is_integer() for value in (*x, *y)):
        raise ValueError("whole pixels")
    scale_x, scale_y = _per_axis(args["scale"], absent=1.0)
    if args["keep_ratio"] not in (True, False) or (args["keep_ratio"] and scale_x != scale_y):
        raise ValueError("the same range for x and y")
    shear_x, shear_y = _per_axis(args["shear"], absent=1.0)  # 1 degree: albumentations' own
    return {
        "rotate": _range(args["rotate"]),
        "scale_x": scale_x,
        "scale_y": scale_y,
        "keep_ratio": bool(args["keep_ratio"]),
        "shear_x": shear_x,
        "shear_y": shear_y,
        "translate_x": x,
        "translate_y": y,
        "translate_in_pixels": in_pixels,
    } | _outside(args)


_READERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ShiftScaleRotate": _shift_scale_rotate,
    "Affine": _affine,
    "Rotate": lambda args: {"rotate": _symmetric(args["limit"])} | _outside(args),
    "HorizontalFlip": lambda args: {"scale_x": (-1.0, -1.0)},
    "VerticalFlip": lambda args: {"scale_y": (-1.0, -1.0)},
}


# Each of these reads one value, or raises ValueError for one that is not certainly right.


def _outside(args: dict[str, Any]) -> dict[str, Any]:
    if args["border_mode"] not in (CONSTANT, REPLICATE, REFLECT, REFLECT_101):
        raise ValueError("no batched form")
    return {"border": int(args["border_mode"]), "fill": _number(args["fill"], 0, 255)}


def _per_axis(value: Any, absent: float) -> tuple[Range, Range]:
    """A number or pair for both axes, or a mapping of `x` and `y` to such."""
    if not isinstance(value, Mapping):
        return _range(value), _range(value)
    if not value or not value.keys() <= {"x", "y"}:
        raise ValueError("x and y")
    return _range(value.get("x", absent)), _range(value.get("y", absent))


def _symmetric(value: Any, low: float = -math.inf, high: float = math.inf) -> Range:
    """One number for -number..number, or a pair."""
    is_pair = isinstance(value, list | tuple)
    return _range(value if is_pair else (-_number(value), value), low, high)


def _range(value: Any, low: float = -math.inf, high: float = math.inf) -> Range:
    """One number for exactly that number, or a pair."""
    first, second = value if isinstance(value, list | tuple) else (value, value)
    least, most = sorted((_number(first, low, high), _number(second, low, high)))
    return least, most


def _number(value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a number")
    if not low <= value <= high:
        raise ValueError(f"from {low} to {high}")
    return float(value)
