"""Any picture of a digit, made as MNIST's own were made; pure functions of pixels."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnist_hydra.data.idx import opened

BOX = 20
"""The longer side of an MNIST digit, in pixels."""
INK_LEVEL = 32
"""Grey levels from which on a pixel is no background."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

Grey = npt.NDArray[np.uint8]


class Unreadable(Exception):
    """A file holds no images."""


def files_in(words: list[str]) -> Iterator[Path]:
    """The files that words name; of a folder the pictures and IDX files in it, sorted."""
    for word in words:
        path = Path(word)
        if not path.is_dir():
            yield path
            continue
        for inner in sorted(p for p in path.rglob("*") if p.is_file()):
            if inner.suffix.lower() in PICTURES or "idx3-ubyte" in inner.name:
                yield inner


def read_pictures(path: Path, side: int) -> Iterator[tuple[str, Grey]]:
    """Each image of a file with its name: light on dark, uint8 [side, side].

    Raises:
        Unreadable: it is neither a picture nor an IDX file of images.
    """
    try:
        if "idx3-ubyte" in path.name:
            yield from ((f"{path}#{i}", fit(grey, side)) for i, grey in enumerate(_idx(path)))
        else:
            yield str(path), fit(_picture(path), side)
    except (OSError, EOFError, ValueError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unreadable(f"{path}: no image ({reason})") from None


def fit(grey: Grey, side: int) -> Grey:
    """A grey image, whatever its size and polarity, as MNIST has it: uint8 [side, side].

    One of that size already only gets its polarity. Any other is cut to its ink, scaled so that the
    longer side of that takes 20 pixels of 28, and put where its centre of mass is in the middle, as
    MNIST's own page describes: http://yann.lecun.com/exdb/mnist/
    """
    light = light_on_dark(grey)
    if light.shape == (side, side):
        return light
    rows, columns = (np.flatnonzero((light >= INK_LEVEL).any(axis=axis)) for axis in (1, 0))
    canvas = np.zeros((side, side), np.uint8)
    if len(rows) == 0:
        return canvas
    ink = light[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX * side / 28 / max(ink.shape)
    small = _resized(ink, [max(1, round(length * scale)) for length in ink.shape])
    small = (small * (255 / max(int(small.max()), 1))).astype(np.uint8)
    weight = small.astype(float) / small.sum()
    corner = [
        round((side - 1) / 2 - float((weight.sum(axis=1 - axis) * np.arange(length)).sum()))
        for axis, length in enumerate(small.shape)
    ]
    top, left = (
        min(max(at, 0), side - length) for at, length in zip(corner, small.shape, strict=True)
    )
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def light_on_dark(grey: Grey) -> Grey:
    """The same image with a dark background, which is what most of its border is."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return 255 - grey if np.median(border) > 127 else grey


def _resized(grey: Grey, shape: list[int]) -> Grey:
    from PIL import Image

    height, width = shape
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.LANCZOS))


def _picture(path: Path) -> Grey:
    from PIL import Image

    with Image.open(path) as image:
        if "A" in image.getbands() or "transparency" in image.info:  # what shines through is paper
            paper = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(paper, image.convert("RGBA"))
        return np.asarray(image.convert("L"))


def _idx(path: Path) -> Grey:
    """The images of an IDX file, plain or gzipped: uint8 [N, height, width]."""
    with opened(path) as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16))
        content = stream.read()
    if magic != 0x803 or len(content) != count * height * width:
        raise ValueError("it is no whole IDX file of uint8 images")
    return np.frombuffer(content, np.uint8).reshape(count, height, width)
