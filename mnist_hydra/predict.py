"""The command `python -m mnist_hydra.predict`: which digit each image shows, as CSV on stdout."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from mnist_hydra.cli import entry
from mnist_hydra.errors import UserError
from mnist_hydra.inference import digit_image

HEAD = ("image", "digit", "probability", "runner_up", "runner_up_probability")
PRINTED_AT_ONCE = 100
"""Images between which the lines are printed and the bar moves."""


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
        there = f" in {' '.join(words)}" if words else ""
        raise UserError(f"images: none{there}; right: files or folders of images")
    from rich.console import Console
    from rich.progress import Progress

    from mnist_hydra.inference.exported import find_model

    model = find_model(name, entry.place_of(cfg))
    console, unreadable = Console(stderr=True), 0

    def skip(problem: digit_image.Unreadable) -> None:
        nonlocal unreadable
        unreadable += 1
        # Above the bar, and in one line however narrow the terminal is.
        console.print(problem, soft_wrap=True, markup=False, highlight=False, emoji=False)

    images = _images(files, model.side, skip)
    lines = csv.writer(sys.stdout, lineterminator="\n")
    quiet = not sys.stderr.isatty()
    with Progress(console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("images", total=sum(map(digit_image.count_of, files)))
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
            bar.update(task, completed=done + unreadable)
    if not done:
        right = "PNG, JPEG or IDX files, or folders of them"
        raise UserError(f"no image of a digit was found; right: {right}")
    return 1 if unreadable else 0


def _images(
    files: list[Path], side: int, skip: Callable[[digit_image.Unreadable], None]
) -> Iterator[tuple[str, digit_image.Grey]]:
    """The images of files with their names; of what shows no digit `skip` hears why."""
    for path in files:
        try:
            for name, image in digit_image.read_pictures(path, side):
                if image.min() < image.max():
                    yield name, image
                else:
                    skip(digit_image.Unreadable(f"{name}: no digit (it is blank)"))
        except digit_image.Unreadable as problem:
            skip(problem)


if __name__ == "__main__":
    name, arguments = entry.take_value(sys.argv[1:], "model")
    words, sys.argv[1:] = entry.take_words(arguments)
    entry.start("predict", lambda cfg: predict(cfg, name, words))
