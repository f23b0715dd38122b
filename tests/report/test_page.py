"""The report's page and pictures, drawn from plain values."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

from mnist_hydra.report import plots

PAPERS = re.findall(
    "--paper: (#[0-9a-f]{6})", (files("mnist_hydra.report") / "page.html").read_text()
)
RAMP = LinearSegmentedColormap.from_list("ramp", plots.LINES)
SHADES = [to_hex(RAMP(place / 8)) for place in range(9)]


@pytest.mark.parametrize("colour", [*plots.SERIES, *SHADES])
def test_lines_and_points_stand_out_on_a_light_and_on_a_dark_page(colour: str) -> None:
    assert len(PAPERS) == 2
    assert min(contrast(colour, paper) for paper in PAPERS) >= 3


def test_the_parallel_plot_is_drawn_in_these_colours() -> None:
    figure = plots.parallel_coordinates(
        ["lr"], [["0.1"], ["0.2"]], [0.9, 0.8], {"lr": ["0.1", "0.2"]}, "val/acc", False
    )
    [lines] = figure.axes[0].collections
    drawn = [to_hex(colour) for colour in lines.get_edgecolor()]
    assert drawn == [colour.lower() for colour in plots.LINES], "the best on top"
    assert lines.get_alpha() is None


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in to_rgb(colour)
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))
