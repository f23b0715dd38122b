"""White figures with a title, and sheets of images, on which all pictures are drawn.

They use neither pyplot nor any other global state. Colours are those of Okabe and
Ito (2008), which can be told apart with any colour vision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

INK, GREY, PALE = "#222222", "#666666", "#d9d9d9"
BLUE, GREEN, VERMILLION = "#0072B2", "#009E73", "#D55E00"
DPI = 150


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


def name_axes(axes: Axes, name: str, **more: Any) -> None:
    """Write above the axes, at their left."""
    axes.set_title(name, loc="left", fontsize=11, color=INK, **more)


class Sheet:
    """A figure of equal images in rows and columns, measured in its own pixels from the top left.

    Images are magnified by a whole number, so that each of their pixels is a sharp square.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        shape: Sequence[int],
        title: str,
        subtitle: str,
        *,
        header: int = 0,
        caption: int = 0,
        apart: int = 0,
    ) -> None:
        """Lay out the sheet; `header`, `caption` and `apart` (after column 0) are in pixels."""
        self.times = max(1, round(112 / max(shape)))
        self.height, self.width = shape[0] * self.times, shape[1] * self.times
        self.left, self.gap, self.apart = 36, 16, apart
        self.top = 132 + header
        self.row_height = self.height + self.gap + caption
        wide = 2 * self.left + columns * (self.width + self.gap) - self.gap + apart
        wide = max(wide, 1020)  # room for the title
        high = self.top + rows * self.row_height - self.gap + 30
        self.figure = blank(wide / DPI, high / DPI, title, subtitle)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.axes.set_xlim(0, wide)  # which no image that is drawn changes any more
        self.axes.set_ylim(high, 0)

    def image(
        self, row: int, column: int, pixels: NDArray[np.uint8], *, marked: bool = False
    ) -> None:
        """Draw uint8 [H, W] as dark ink on white, its range always 0 to 255."""
        x, y = self._place(row, column)
        self.axes.imshow(
            pixels,
            cmap="gray_r",
            vmin=0,
            vmax=255,
            extent=(x, x + self.width, y + self.height, y),
            origin="upper",
            interpolation="nearest",
            aspect="auto",
        )
        colour, line_width = (BLUE, 1.8) if marked else (PALE, 1.0)
        frame = Rectangle((x, y), self.width, self.height, fill=False)
        frame.set(edgecolor=colour, linewidth=line_width)
        self.axes.add_patch(frame)

    def caption(
        self, row: int, column: int, text: str, side: Literal["left", "right"], colour: str
    ) -> None:
        """Write below an image, at its left or right side."""
        x, y = self._place(row, column)
        if side == "right":
            x += self.width
        self.axes.text(x, y + self.height + 6, text, ha=side, va="top", fontsize=8.5, color=colour)

    def header(self, column: int, text: str) -> None:
        """Write above a column."""
        x, y = self._place(0, column)
        self.axes.text(
            x + self.width / 2, y - 9, text, ha="center", va="bottom", fontsize=9, color=INK
        )

    def _place(self, row: int, column: int) -> tuple[int, int]:
        x = self.left + column * (self.width + self.gap) + (self.apart if column else 0)
        return x, self.top + row * self.row_height


def captioned_sheet(
    images: Sequence[NDArray[np.uint8]],
    captions: Sequence[tuple[str, str]],
    columns: int,
    title: str,
    subtitle: str,
) -> Figure:
    """Draw images, at least one, each with a caption at its left in ink and one at its right.

    Args:
        images: uint8 [H, W] each, of one size.
        captions: of each image the two.
        columns: images in a row.
    """
    rows = -(-len(images) // columns)
    sheet = Sheet(rows, columns, images[0].shape, title, subtitle, caption=30)
    for place, (pixels, (left, right)) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        sheet.image(row, column, pixels)
        sheet.caption(row, column, left, "left", INK)
        sheet.caption(row, column, right, "right", VERMILLION)
    return sheet.figure
