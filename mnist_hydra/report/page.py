"""The report as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from mnist_hydra.canvas import GREY, INK, PALE

VARIABLES = {INK: "var(--ink)", GREY: "var(--grey)", PALE: "var(--pale)", "#ffffff": "var(--paper)"}
"""The canvas's neutral colours, which are others in a dark page."""
POINTS = 72
"""Of an inch, in SVG as matplotlib writes it."""
TITLE_POINTS = 28
"""What a title takes at a figure's top."""
ONE_NUMBER = r"[-+−]?[\d.,]+(e[-+]?\d+)?( %)?"
NUMBER = re.compile(rf"(< )?{ONE_NUMBER}( (to|±|of) {ONE_NUMBER})?( points)?|-|")
"""A cell of a number or two, or of none."""


@dataclass(frozen=True)
class Picture:
    """A picture with what it says in words."""

    name: str
    """Letters and underscores: also its file's name."""
    heading: str
    caption: str
    figure: Figure

    @property
    def svg(self) -> str:
        """As it stands on the page."""
        return svg(self.figure, self.name)


@dataclass(frozen=True)
class Table:
    """Text in rows and columns."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: str = ""
    """What is left out, as a sentence."""
    folded: str = ""
    """The column of which a cell shows its text only when it is opened."""

    @property
    def numeric(self) -> frozenset[int]:
        """The columns of numbers alone, which stand at the right."""
        return frozenset(
            place
            for place in range(len(self.header))
            if all(NUMBER.fullmatch(row[place]) for row in self.rows)
        )


def rendered(template: str, **content: Any) -> str:
    """A text of this folder, filled in.

    Args:
        template: the file's name; what goes into a page is escaped.
        content: each name that the text uses.
    """
    environment = Environment(
        loader=PackageLoader("mnist_hydra", "report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(content)


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG for this page: its neutral colours follow light and dark, its text is text.

    It has no title, since the page has its heading.

    Args:
        figure: as `canvas.blank` makes it, its title the first of its texts.
        name: of the picture; keeps its ids apart from other pictures'.
    """
    file = io.StringIO()
    title = figure.texts[0]
    title.set_visible(False)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            file, format="svg", facecolor="none", edgecolor="none", metadata={"Date": None}
        )
    title.set_visible(True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[a-zA-Z0-9_.]+"', "<g", text)  # the same in every picture
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    width, height = (POINTS * float(inches) for inches in figure.get_size_inches())
    box = f'viewBox="0 {TITLE_POINTS} {width:g} {height - TITLE_POINTS:g}"'
    text = re.sub(r'viewBox="[^"]*"', box, text, count=1)
    label = f'<svg role="img" aria-labelledby="{name}-heading" aria-describedby="{name}-caption"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    style = f' style="width: 100%; max-width: {width * 4 / 3:.0f}px; height: auto"'
    return text.replace("<svg", label + style, 1)
