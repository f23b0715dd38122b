"""Random affine steps on a whole batch of images at once, on the device the batch is on.

Parameters are drawn on the CPU from a generator of its own, so they are the same for every device.
It never waits for the device and never imports albumentations. Matrices are computed with NumPy,
which takes a third of the time that PyTorch takes for so many small operations.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from mnist_hydra.augment import Augmentation, Change
from mnist_hydra.augment.affine import CONSTANT, REFLECT, REFLECT_101, REPLICATE, Affine

# OpenCV's border as grid_sample's padding_mode and align_corners. Where the padding allows either,
# align_corners=False rounds less.
_BORDERS = {
    CONSTANT: ("zeros", False),
    REPLICATE: ("border", False),
    REFLECT: ("reflection", False),
    REFLECT_101: ("reflection", True),
}


class Warp(Augmentation):
    """Affine steps applied one after another, as albumentations would, each image by its own."""

    on_device = True

    def __init__(self, steps: Sequence[Affine]) -> None:
        self.steps = tuple(steps)

    def plan(self, shape: Sequence[int], *, seed: int) -> Change:
        """See `Augmentation`; how the sequence is cut into batches makes no difference.

        All matrices are made at once: batch by batch NumPy's calls would cost more than the
        numbers do.
        """
        generator = torch.Generator().manual_seed(seed)
        count, _, height, width = shape
        drawn = []
        for step in self.steps:
            chosen = choose_images(step.p, count, generator)
            matrices = draw_matrices(step, len(chosen), height, width, generator)
            drawn.append((step, chosen, backward_maps(matrices, height, width, step.border)))
        return functools.partial(_change, drawn)


def _change(drawn: Sequence[tuple[Affine, Tensor, Tensor]], images: Tensor, first: int) -> Tensor:
    """Warp those of `images` that were chosen, one step after another.

    Each step is a warp of its own: two in one would interpolate once instead of twice, and give
    other pixels than albumentations.

    Args:
        drawn: of each step the numbers of the images that it changes, ascending, and their maps.
        images, first: see `augment.Change`.
    """
    changed, device, count = images, images.device, len(images)
    for step, chosen, back in drawn:
        numbers = chosen.numpy()
        begin, end = bisect_left(numbers, first), bisect_left(numbers, first + count)
        if begin == end:
            continue
        rows = numbers[begin:end] - first
        source = np.arange(count)
        source[rows] = np.arange(count, count + len(rows))
        part = changed.index_select(0, _to(torch.from_numpy(rows), device))
        back_here = _to(back[begin:end], device)
        warped = warp_images(part, back_here, border=step.border, fill=step.fill)
        # one gather out of both: index_copy is slow on some devices, or missing
        both = torch.cat((changed, warped))
        changed = both.index_select(0, _to(torch.from_numpy(source), device))
    return images.clone() if changed is images else changed


def choose_images(p: float, count: int, generator: torch.Generator) -> Tensor:
    """Choose which of `count` images a step changes: int64 [n], ascending, on the CPU."""
    if p >= 1.0:
        return torch.arange(count)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.from_numpy(np.flatnonzero(drawn.numpy() < p))


def draw_matrices(
    step: Affine, n: int, height: int, width: int, generator: torch.Generator
) -> Tensor:
    """Draw `n` times what `step` leaves to chance and build the matrices of it.

    Returns:
        float64 [n, 2, 3] on the CPU: where a point (x, y, 1) of the input, in pixels, goes.
    """
    x, y = step.translate_x, step.translate_y
    if step.translate_in_pixels:  # both ends included
        x, y = (x[0], x[1] + 1), (y[0], y[1] + 1)
    ranges = (step.rotate, step.scale_x, step.scale_y, step.shear_x, step.shear_y, x, y)
    low, high = np.array(ranges, dtype=np.float64).T[:, :, None]
    uniform = torch.rand(len(ranges), n, generator=generator, dtype=torch.float64).numpy()
    drawn = low + (high - low) * uniform
    if step.keep_ratio:
        drawn[2] = drawn[1]
    if step.translate_in_pixels:
        drawn[5:] = np.floor(drawn[5:])
    else:  # whole pixels toward zero, as albumentations 2.0.8 cuts them
        drawn[5:] = np.trunc(drawn[5:] * ((width,), (height,)))
    return torch.from_numpy(affine_matrices(drawn, height, width))


def affine_matrices(
    parameters: NDArray[np.float64], height: int, width: int
) -> NDArray[np.float64]:
    """Build albumentations' matrix: about the centre scale, rotate, shear, then translate.

    Args:
        parameters: [7, n]: rotation (degrees), scale x and y, shear x and y (degrees), translation
            x and y (pixels).
        height: of the images, in pixels.
        width: of the images, in pixels.

    Returns:
        [n, 2, 3].
    """
    _, scale_x, scale_y, _, _, move_x, move_y = parameters
    rotate, shear_x, shear_y = np.deg2rad(parameters[[0, 3, 4]])
    cos, sin, tan_x, tan_y = np.cos(rotate), np.sin(rotate), -np.tan(shear_x), -np.tan(shear_y)
    xx, xy = (cos - tan_x * sin) * scale_x, (sin + tan_x * cos) * scale_y
    yx, yy = (tan_y * cos - sin) * scale_x, (tan_y * sin + cos) * scale_y
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    x = centre_x + move_x - (xx * centre_x + xy * centre_y)
    y = centre_y + move_y - (yx * centre_x + yy * centre_y)
    return _matrices(xx, xy, x, yx, yy, y)


def _matrices(*entries: NDArray[np.float64]) -> NDArray[np.float64]:
    """Six times [n], row by row, to [n, 2, 3]."""
    return np.stack(entries, 1).reshape(-1, 2, 3)


def backward_maps(matrices: Tensor, height: int, width: int, border: int) -> Tensor:
    """Where each pixel of a warped image looks in the original, in `grid_sample`'s coordinates.

    As in OpenCV, with a matrix that has no inverse every pixel looks at (0, 0).

    Args:
        matrices: float64 [n, 2, 3]: input to output, in pixels.
        height, width: of the images, in pixels.
        border: OpenCV's number, as in `warp_images`.

    Returns:
        float32 [n, 2, 3]: of a pixel (x, y, 1).
    """
    _, align_corners = _BORDERS[border]
    return torch.from_numpy(_normalised(_inverse(matrices.numpy()), height, width, align_corners))


def warp_images(images: Tensor, back: Tensor, *, border: int, fill: float) -> Tensor:
    """Warp each image by its own map, as `cv2.warpAffine` with INTER_LINEAR does.

    OpenCV 5 interpolates in float32, and so does this: they agree but for a grey level in a few
    pixels of 100,000, where a value falls on the edge between two. (OpenCV 4 rounds positions to
    1/32 of a pixel.)

    Args:
        images: uint8 [n, C, H, W] on any device.
        back: float32 [n, 2, 3] on the same, from `backward_maps` with the same `border`.
        border: OpenCV's number of what stands outside the image, one of `affine`'s constants.
        fill: its grey level, 0..255, where `border` is CONSTANT.

    Returns:
        uint8 [n, C, H, W] on the same device.
    """
    height, width = images.shape[-2:]
    padding, align_corners = _BORDERS[border]
    columns = torch.arange(width, dtype=torch.float32, device=images.device)
    rows = torch.arange(height, dtype=torch.float32, device=images.device)
    across = back[:, :, 0, None, None] * columns
    down = back[:, :, 1, None, None] * rows[:, None] + back[:, :, 2, None, None]
    grid = (across + down).permute(0, 2, 3, 1)  # [n, H, W, 2]: where each output pixel looks
    level = float(round(fill)) if border == CONSTANT else 0.0  # grid_sample only knows zero
    source = images.to(torch.float32)
    if level:
        source -= level
    values = grid_sample(source, grid, "bilinear", padding, align_corners)
    if level:
        values += level
    return values.round_().to(torch.uint8)


def _inverse(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert affine maps, [n, 2, 3]; the inverse of a singular one is all zeros."""
    (a, b, x), (c, d, y) = matrices.transpose(1, 2, 0)
    determinant = a * d - b * c
    scale = np.divide(1.0, determinant, out=np.zeros_like(a), where=determinant != 0)
    a, b, c, d = d * scale, -b * scale, -c * scale, a * scale
    return _matrices(a, b, -(a * x + b * y), c, d, -(c * x + d * y))


def _normalised(
    back: NDArray[np.float64], height: int, width: int, align_corners: bool
) -> NDArray[np.float32]:
    """Scale pixel positions to grid_sample's -1..1, in float64, and round them to float32 once."""
    size = np.array(((width,), (height,)), dtype=np.float64)
    span = size - 1 if align_corners else size
    back = back * (2 / span)
    back[:, :, 2:] += (0 if align_corners else 1 / span) - 1
    return back.astype(np.float32)


def _to(small: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to the device without waiting for it."""
    return small.to(device, non_blocking=device.type == "cuda")
