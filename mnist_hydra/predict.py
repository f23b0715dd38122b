"""The command `python -m mnist_hydra.predict`: which digit each image shows, as CSV on stdout.

Any picture of a digit is made as MNIST's own were made (`fit`).
"""

from __future__ import annotations

import csv
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.data.idx import opened
from mnist_hydra.errors import UserError, first_line

HEAD = ("image", "digit", "probability", "runner_up", "runner_up_probability")
PRINTED_AT_ONCE = 100
"""Images between which the lines are printed and the bar moves."""
BOX = 20
"""The longer side of an MNIST digit, in pixels."""
INK_LEVEL = 32
"""Grey levels from which on a pixel is no background."""
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

Grey = npt.NDArray[np.uint8]


class Unreadable(Exception):
    """A file holds no images, or an image no digit."""


class Blank(Unreadable):
    """An image shows no digit."""


def predict(cfg: DictConfig, name: str | None, words: list[str]) -> int:
    """Print a line for each image of the files and folders that `words` name.

    Args:
        name: what the user calls the model.

    Returns:
        The exit code: 0, or 1 if a file could not be read or an image is blank, each of which is
        said on stderr.

    Raises:
        UserError: no model, or no image at all.
    """
    files = list(files_in(words))
    if not files:
        there = f" in {' '.join(words)}" if words else ""
        raise UserError(f"images: none{there}; right: files or folders of images")
    from rich.console import Console
    from rich.progress import Progress

    from mnist_hydra.exported import find_model

    model = find_model(name, entry.place_of(cfg))
    console = Console(stderr=True)
    skipped: list[Unreadable] = []

    def skip(problem: Unreadable) -> None:
        skipped.append(problem)
        # Above the bar, and in one line however narrow the terminal is.
        console.print(problem, soft_wrap=True, markup=False, highlight=False, emoji=False)

    images = _images(files, model.side, skip)
    lines = csv.writer(sys.stdout, lineterminator="\n")
    quiet = not sys.stderr.isatty()
    with Progress(console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("images", total=sum(map(count_of, files)))
        done = 0
        while some := list(islice(images, PRINTED_AT_ONCE)):
            rows = model(np.stack([image for _, image in some]))
            if not quiet:  # stdout may be the same terminal
                bar.stop()
            if not done:
                lines.writerow(HEAD)
            for (image, _), row in zip(some, rows, strict=True):
                first, second = row.argsort()[::-1][:2]
                lines.writerow([image, first, f"{row[first]:.4f}", second, f"{row[second]:.4f}"])
            done += len(some)
            if not quiet:
                bar.start()
            bar.update(task, completed=done + len(skipped))
    if not done and not any(isinstance(problem, Blank) for problem in skipped):
        right = "PNG, JPEG or IDX files, or folders of them"
        raise UserError(f"no image of a digit was found; right: {right}")
    return 1 if skipped else 0


def _images(
    files: list[Path], side: int, skip: Callable[[Unreadable], None]
) -> Iterator[tuple[str, Grey]]:
    """The images of files with their names; of what shows no digit `skip` hears why."""
    for path in files:
        try:
            for name, image in read_pictures(path, side):
                if image.min() < image.max():
                    yield name, image
                else:
                    skip(Blank(f"{name}: no digit (it is blank)"))
        except Unreadable as problem:
            skip(problem)


def files_in(words: list[str]) -> Iterator[Path]:
    """The files that words name; of a folder the pictures and IDX files in it, sorted."""
    for path in map(Path, words):
        yield from sorted(_in_folder(path)) if os.path.isdir(path) else [path]


def _in_folder(folder: Path) -> list[Path]:
    """Its files, and what must be said of it: links that lead nowhere, folders nobody may read."""
    found: list[Path] = []
    for parent, _, names in os.walk(folder, onerror=lambda e: found.append(Path(e.filename))):
        inner = (Path(parent, name) for name in names)
        files = (p for p in inner if p.suffix.lower() in PICTURES or is_idx(p))
        found.extend(p for p in files if p.is_file() or not p.exists())
    return found


def count_of(path: Path) -> int:
    """How many images a file holds, by its first bytes: 1, or what an IDX file says."""
    if not is_idx(path):
        return 1
    try:
        with opened(path) as stream:
            return int(struct.unpack(">4I", stream.read(16))[1])
    except (OSError, EOFError, zlib.error, struct.error):
        return 1


def read_pictures(path: Path, side: int) -> Iterator[tuple[str, Grey]]:
    """Each image of a file with its name: light on dark, uint8 [side, side].

    A blank one is of one grey.

    Raises:
        Unreadable: it is neither a picture nor an IDX file of images, or holds none.
    """
    try:
        images = _idx(path) if is_idx(path) else _picture(path)[None]
        if images.size == 0:
            raise ValueError("it is empty")
    except Exception as error:  # whatever Pillow raises for a damaged file
        raise Unreadable(f"{path}: no image ({first_line(error)})") from None
    for number, grey in enumerate(images):
        if not is_idx(path):
            yield str(path), fit(grey, side)
        else:  # which has them as a model takes them, where they are of its size
            whole = grey.shape == (side, side)
            yield f"{path}#{number}", grey if whole else fit(grey, side)


def is_idx(path: Path) -> bool:
    """Whether a file is taken for an IDX file of images, by its name."""
    return "idx3-ubyte" in path.name


def fit(grey: Grey, side: int) -> Grey:
    """A grey image, whatever its size and polarity, as MNIST has it: uint8 [side, side].

    The ink is what stands out from the border. One of that size already only gets its polarity, and
    its paper made black. Any other is cut to its ink, scaled so that the longer side of that takes
    20 pixels of 28, and put where its centre of mass is in the middle, as MNIST's own page
    describes: http://yann.lecun.com/exdb/mnist/
    """
    light, border = grey, float(np.median(np.r_[grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    if border - int(grey.min()) > int(grey.max()) - border:  # its ink is darker than its paper
        light, border = 255 - grey, 255 - border
    paper = int(border)
    above = np.maximum(light.astype(np.int16) - paper, 0)
    canvas = np.zeros((side, side), np.uint8)
    if above.max() < INK_LEVEL:
        return canvas
    if paper or light.shape != (side, side):
        light = (above * (255 / above.max())).astype(np.uint8)
    if light.shape == (side, side):
        return light
    from scipy.ndimage import center_of_mass  # type: ignore[import-untyped]

    rows, columns = (np.flatnonzero((light >= INK_LEVEL).any(axis=axis)) for axis in (1, 0))
    ink = light[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX * side / 28 / max(ink.shape)
    small = _resized(ink, [max(1, round(length * scale)) for length in ink.shape])
    if not small.any():  # specks too far apart to be seen at this size
        return canvas
    small = (small * (255 / small.max())).astype(np.uint8)
    top, left = (
        min(max(round((side - 1) / 2 - float(middle)), 0), side - length)
        for middle, length in zip(center_of_mass(small), small.shape, strict=True)
    )
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def _resized(grey: Grey, shape: list[int]) -> Grey:
    from PIL import Image

    height, width = shape
    return np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.LANCZOS))


def _picture(path: Path) -> Grey:
    """A picture in 256 greys, as people see it: upright, and what shines through is white paper."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd in a file that can be read
        with Image.open(path) as opened_image:
            image = ImageOps.exif_transpose(opened_image)
        if image.mode[0] in "IF":  # of more than 256 greys, which Pillow would cut off
            return _in_256_greys(np.asarray(image, np.float64))
        if "A" in image.getbands() or "transparency" in image.info:
            paper, above = Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            image = Image.alpha_composite(paper, above).convert("L")
            if image.getextrema() == (255, 255):  # white ink, which only another paper shows
                image = above.getchannel("A")
        return np.asarray(image.convert("L"))


def _in_256_greys(values: npt.NDArray[np.float64]) -> Grey:
    """Numbers of any range, from black for the least to white for the most.

    What differs by less than ink does from paper is all black.
    """
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("it holds what is no finite number")
    if high - low <= max(abs(low), abs(high)) * INK_LEVEL / 255:
        return np.zeros(values.shape, np.uint8)
    grey: Grey = ((values - low) * (255 / (high - low))).astype(np.uint8)
    return grey


def _idx(path: Path) -> Grey:
    """The images of an IDX file, plain or gzipped: uint8 [N, height, width]."""
    with opened(path) as stream:
        magic, count, height, width = struct.unpack(">4I", stream.read(16))
        content = stream.read()
    if magic != 0x803 or len(content) != count * height * width:
        raise ValueError("it is no whole IDX file of uint8 images")
    return np.frombuffer(content, np.uint8).reshape(count, height, width)


if __name__ == "__main__":
    name, arguments = entry.take_value(sys.argv[1:], "model")
    words, sys.argv[1:] = entry.take_words(arguments)
    entry.start("predict", lambda cfg: predict(cfg, name, words))
