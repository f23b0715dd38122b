"""The command `python -m mnist_hydra.predict`: which digit each image shows, as CSV on stdout."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.errors import UserError
from mnist_hydra.inference import digit_image

HEAD = ("image", "digit", "probability", "runner_up", "runner_up_probability")


def predict(cfg: DictConfig, name: str | None, words: list[str]) -> int:
    """Print a line for each image of the files and folders that `words` name.

    Args:
        name: what the user calls the model.

    Returns:
        The exit code: 0, or 1 if a file could not be read, each of which is said on stderr.

    Raises:
        UserError: no model, or no image at all.
    """
    files = list(digit_image.files_in(words))
    if not files:
        raise UserError(f"images: {' '.join(words) or 'none'}; right: files or folders of images")
    from mnist_hydra.inference.exported import find_model

    model = find_model(name, entry.place_of(cfg))
    lines = csv.writer(sys.stdout, lineterminator="\n")
    unreadable = 0
    shown = _followed(files)
    for number, path in enumerate(shown):
        try:
            found = list(digit_image.read_pictures(path, model.side))
        except digit_image.Unreadable as problem:
            unreadable += 1
            print(problem, file=sys.stderr)
            continue
        rows = model(np.stack([image for _, image in found]))
        if number == unreadable:  # the first that can be read
            lines.writerow(HEAD)
        for (image, _), row in zip(found, rows, strict=True):
            first, second = row.argsort()[::-1][:2]
            lines.writerow([image, first, f"{row[first]:.4f}", second, f"{row[second]:.4f}"])
    if unreadable == len(files):
        raise UserError("no image could be read; right: PNG, JPEG or IDX files, or folders of them")
    return 1 if unreadable else 0


def _followed(files: list[Path]) -> Iterable[Path]:
    """The same files, with a bar on a terminal that tells how far the work is."""
    if len(files) < 20 or not sys.stderr.isatty():
        return files
    from rich.console import Console
    from rich.progress import track

    return track(files, "images", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    name, arguments = entry.take_value(sys.argv[1:], "model")
    words, sys.argv[1:] = entry.take_words(arguments)
    entry.start("predict", lambda cfg: predict(cfg, name, words))
