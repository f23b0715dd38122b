"""White figures with a title, and sheets of images, on which all pictures are drawn.

They use neither pyplot nor any other global state. Colours are those of Okabe and
Ito (2008), which can be told apart with any colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

INK, GREY, PALE = "#222222", "#666666", "#d9d9d9"
BLUE, GREEN, VERMILLION = "#0072B2", "#009E73", "#D55E00"
DPI = 150
ROUND = (1.0, 2.0, 5.0)


def blank(width: float, height: float, title: str, subtitle: str) -> Figure:
    """Make an empty white figure (inches) with its title; it draws by Agg on any machine."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left, top = 0.24 / width, 1 - 0.2 / height
    figure.text(left, top, title, fontsize=14, fontweight="bold", color=INK, va="top")
    figure.text(left, top - 0.29 / height, subtitle, fontsize=9.5, color=GREY, va="top")
    return figure


def only_words(title: str, words: str) -> Figure:
    """Make a figure that holds words alone, where there is nothing to draw."""
    return blank(5.2, 1.0, title, words)


def axes_at(
    figure: Figure, left: float, bottom: float, wide: float, high: float, **more: Any
) -> Axes:
    """New axes, measured in inches from the figure's lower left: two lines and a pale grid."""
    width, height = figure.get_size_inches()
    place = (left / width, bottom / height, wide / width, high / height)
    axes = figure.add_axes(place, facecolor="none", axisbelow=True, **more)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.grid(axis="y", color=PALE, linewidth=0.6)
    axes.tick_params(color=GREY, labelcolor=INK, labelsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=INK, fontsize=9.5)
    return axes


def no_frame(axes: Axes) -> None:
    """Hide the lines around the axes and their grid."""
    axes.spines[:].set_visible(False)
    axes.grid(False)


def count_epochs(axes: Axes) -> None:
    """Let whole epochs stand along the axes."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes.set_xlabel("epoch")


def label_round_numbers(axis: Axis) -> None:
    """Name 1, 2 and 5 of each power of ten, on an axis that goes by ratio."""
    axis.set_major_locator(LogLocator(subs=ROUND))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def name_axes(axes: Axes, name: str, **more: Any) -> None:
    """Write above the axes, at their left."""
    axes.set_title(name, loc="left", fontsize=11, color=INK, **more)


def sheet(
    images: Sequence[NDArray[np.uint8]],
    columns: int,
    title: str,
    subtitle: str,
    *,
    captions: Sequence[tuple[str, str]] = (),
    headers: Sequence[str] = (),
    marked: Sequence[bool] = (),
) -> Figure:
    """Draw images, at least one, in rows: dark ink on white, their range always 0 to 255.

    They are magnified by a whole number, so that each of their pixels is a sharp square. Measures
    are in the figure's own pixels from the top left.

    Args:
        images: uint8 [H, W] each, of one size.
        columns: images in a row.
        captions: of each image what stands below it, in ink at its left and in red at its right.
        headers: what stands above each column; the first column is set apart then.
        marked: of each image whether it has a blue frame.
    """
    times = max(1, round(112 / max(images[0].shape)))
    high, wide = (times * side for side in images[0].shape)
    left, gap, apart = 36, 16, 28 if headers else 0
    top = 166 if headers else 132
    row_height = high + gap + (30 if captions else 0)
    width = 2 * left + columns * (wide + gap) - gap + apart
    width = max(width, 1020)  # room for the title
    height = top + -(-len(images) // columns) * row_height - gap + 30
    figure = blank(width / DPI, height / DPI, title, subtitle)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)  # which no image that is drawn changes any more
    axes.set_ylim(height, 0)
    for place, pixels in enumerate(images):
        row, column = divmod(place, columns)
        x, y = left + column * (wide + gap) + apart * (column > 0), top + row * row_height
        axes.imshow(
            pixels,
            cmap="gray_r",
            vmin=0,
            vmax=255,
            extent=(x, x + wide, y + high, y),
            origin="upper",
            interpolation="nearest",
            aspect="auto",
        )
        colour, line_width = (BLUE, 1.8) if marked and marked[place] else (PALE, 1.0)
        frame = Rectangle((x, y), wide, high, fill=False, edgecolor=colour, linewidth=line_width)
        axes.add_patch(frame)
        if headers and row == 0:
            centred: dict[str, Any] = {"ha": "center", "va": "bottom"}
            axes.text(x + wide / 2, y - 9, headers[column], fontsize=9, color=INK, **centred)
        if captions:
            below: dict[str, Any] = {"y": y + high + 6, "va": "top", "fontsize": 8.5}
            axes.text(x, s=captions[place][0], ha="left", color=INK, **below)
            axes.text(x + wide, s=captions[place][1], ha="right", color=VERMILLION, **below)
    return figure
