"""The report's pictures, as matplotlib figures in the style of `canvas.py`; they read no store."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mnist_hydra.canvas import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    VERMILLION,
    Sheet,
    blank,
    no_frame,
    share,
)
from mnist_hydra.report.answer import is_share
from mnist_hydra.report.questions import Layout
from mnist_hydra.report.read import short
from mnist_hydra.report.statistics import Scores, Summary, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CELLS = 12
"""A heat map of more rows or columns than this is drawn as points."""
MOST_CURVES = 500
"""Trials in the parallel coordinates, the best and the rest evenly chosen."""
ON_DARK, ON_LIGHT = "#fffffe", "#222223"
"""Text in a cell of a heat map, the same in light and dark; so not the canvas's own colours."""
FEW_EPOCHS = 5
"""Of learning curves no longer than this all is shown."""
SERIES = (BLUE, VERMILLION, GREEN, "#CC79A7", "#A87400", "#7A6FD0")
LINES = ("#8C8C8C", BLUE)
"""The worst trial's and the best one's. As all of `SERIES`, of contrast 3 on both pages' paper."""
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Curve:
    """A metric by epoch, over seeds."""

    name: str
    epochs: tuple[int, ...]
    means: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


def curve(name: str, histories: Sequence[Sequence[tuple[int, float]]]) -> Curve:
    """The mean, least and most over runs of what they have at each epoch that all of them have."""
    by_epoch: dict[int, list[float]] = {}
    for history in histories:
        for epoch, value in history:
            by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(epoch for epoch, values in by_epoch.items() if len(values) == len(histories))
    columns = [by_epoch[epoch] for epoch in epochs]
    return Curve(
        name,
        tuple(epochs),
        tuple(statistics.fmean(column) for column in columns),
        tuple(min(column) for column in columns),
        tuple(max(column) for column in columns),
    )


def range_of_the_end(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The range that shows the last epochs' differences where the first ones are far below.

    `None` where all epochs are to be shown: they are few, or not far apart.
    """
    values = [value for one in curves for value in one.means]
    low, high = min(values), max(values)
    middle = sorted(values)[len(values) // 3]
    if max(len(one.epochs) for one in curves) > FEW_EPOCHS and high - low > 4 * (high - middle) > 0:
        return middle - 2 * (high - middle), high + 0.35 * (high - middle)
    return None


def heat_map(scores: Scores, axes: Sequence[str], chosen: Layout, objective: str) -> Figure:
    """Draw the mean objective over the two axes that matter most, a panel for a third one's values.

    What is on no axis is averaged, and the subtitle says so. Axes of many values, as of a search,
    are drawn as points of the trials' own values.

    Args:
        scores: of all configurations.
        axes: of their values.
        chosen: with two axes at least.
    """
    assert chosen.rows is not None and chosen.columns is not None
    ys, xs = chosen.values[chosen.rows], chosen.values[chosen.columns]
    panels: tuple[str | None, ...] = (None,)
    if chosen.panels is not None:
        panels = chosen.values[chosen.panels]
    means = {point: statistics.fmean(seeds.values()) for point, seeds in scores.items()}
    low, high = min(means.values()), max(means.values())
    as_points = max(len(xs), len(ys)) > MAX_CELLS
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    wide = 3.3 if as_points else min(max(0.85 * len(xs), 2.2), 5.5)
    high_in = 2.4 if as_points else min(max(0.5 * len(ys), 1.4), 4.0)
    width = 0.95 + columns * (wide + 0.35) + 1.0
    height = 0.85 + rows * (high_in + 0.95)
    title = f"{objective} over {chosen.rows} and {chosen.columns}"
    averaged = f"; averaged over {', '.join(chosen.averaged)}" if chosen.averaged else ""
    unit = "in %, " if is_share(objective) else ""
    many = max(len(seeds) for seeds in scores.values()) > 1
    each = "each point is a trial" if as_points else "mean over seeds" if many else "one seed each"
    figure = blank(width, height, title, f"{unit}{each}{averaged}")
    colours = _colours()
    times = 100.0 if is_share(objective) else 1.0
    lowest, highest = times * low, times * high if high > low else times * low + 1e-9
    at = {axis: list(axes).index(axis) for axis in (chosen.rows, chosen.columns)}
    image: Any = None
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        box = (0.95 + column * (wide + 0.35), height - 1.2 - row * (high_in + 0.95) - high_in)
        axes_ = figure.add_axes(share((*box, wide, high_in), width, height))
        inside = {
            point: mean
            for point, mean in means.items()
            if panel is None or point[list(axes).index(str(chosen.panels))] == panel
        }
        pairs = [(point[at[chosen.columns]], point[at[chosen.rows]]) for point in inside]
        values = [times * mean for mean in inside.values()]
        if as_points:
            image = axes_.scatter(
                [_position(x, xs) for x, _ in pairs],
                [_position(y, ys) for _, y in pairs],
                c=values,
                cmap=colours,
                s=18,
                edgecolors=GREY,
                linewidths=0.3,
                vmin=lowest,
                vmax=highest,
            )
        else:
            image = _cells(axes_, pairs, values, (xs, ys), (lowest, highest), colours)
        if panel is not None:
            axes_.set_title(f"{chosen.panels}={short(panel)}", loc="left", fontsize=10, color=INK)
        _quiet(axes_, ticks=as_points)
        axes_.set_xlabel(chosen.columns, fontsize=9.5, color=INK)
        if column == 0:
            axes_.set_ylabel(chosen.rows, fontsize=9.5, color=INK)
        elif not as_points:
            axes_.set_yticklabels([])
    beside = figure.add_axes(
        share((width - 0.85, height - 1.2 - high_in, 0.13, high_in), width, height)
    )
    bar = figure.colorbar(image, cax=beside)
    bar.ax.tick_params(labelsize=8.5, color=PALE, labelcolor=INK)
    no_frame(beside)
    return figure


def main_effects(
    effects: Mapping[str, Mapping[str, Summary]],
    importance: Mapping[str, float],
    objective: str,
    seeds: int,
) -> Figure:
    """Draw the objective at each value of each axis, and how much each axis accounts for.

    Args:
        effects: of each axis that was varied, of each value.
        importance: share of each axis, the seed among them; the bars are left out with none.
        seeds: over how many the intervals are.
    """
    wide, gap = 2.3, 0.35
    bars = 1.1 + 2.2 if importance else 0.0
    width = max(0.95 + len(effects) * (wide + gap) + bars, 6.4)
    height = 3.45
    how = "dot: mean, all other axes averaged"
    how += "; bar: 95 % interval over seeds" if seeds > 1 else "; one seed, so no interval"
    figure = blank(width, height, "What each setting does", how)
    times = 100.0 if is_share(objective) else 1.0
    first: Axes | None = None
    for place, (axis, values) in enumerate(effects.items()):
        box = (0.95 + place * (wide + gap), 0.45, wide, 1.95)
        axes_ = figure.add_axes(share(box, width, height), sharey=first)
        _open(axes_)
        names = list(values)
        many = len(names) > MAX_CELLS
        where = [_position(name, names) if many else float(i) for i, name in enumerate(names)]
        heights = [times * values[name].mean for name in names]
        errors = [times * (values[name].half_width or 0.0) for name in names]
        axes_.errorbar(
            where,
            heights,
            yerr=None if many else errors,
            fmt="o" if many or any(number(name) is None for name in names) else "o-",
            color=BLUE,
            markersize=3 if many else 5.5,
            linewidth=1.2,
            elinewidth=1.4,
            capsize=0 if many else 3,
        )
        if not many:
            axes_.set_xticks(where, [short(name) for name in names])
            axes_.set_xlim(-0.5, len(names) - 0.5)
        axes_.set_title(axis, loc="left", fontsize=11, color=INK)
        if first is None:
            axes_.set_ylabel(_label(objective), fontsize=9.5, color=INK)
            first = axes_
        else:
            axes_.tick_params(labelleft=False)
    if importance:
        names = sorted(importance, key=lambda name: importance[name])
        axes_ = figure.add_axes(share((width - 2.45, 0.45, 2.0, 1.95), width, height))
        bars_ = axes_.barh(names, [100 * importance[name] for name in names], color=BLUE)
        for bar, name in zip(bars_, names, strict=True):
            if name == "seed":
                bar.set_color(GREY)
        axes_.bar_label(
            bars_, [f"{100 * importance[n]:.0f} %" for n in names], fontsize=9, color=INK, padding=2
        )
        _open(axes_, grid=False)
        axes_.set_xlim(0, 118 * max(importance.values()))
        axes_.set_xticks([])
        axes_.spines["bottom"].set_visible(False)
        axes_.set_title("share of the differences", loc="left", fontsize=11, color=INK)
    return figure


def trial_curves(curves: Sequence[Curve], metric: str) -> Figure:
    """Draw a metric by epoch, a line for each configuration, a band from least to most."""
    from matplotlib.ticker import MaxNLocator

    width, height = 7.4, 4.3
    shown = range_of_the_end(curves) if is_share(metric) else None
    subtitle = "line: mean over seeds; band: from the lowest to the highest seed"
    if shown is not None:
        subtitle += "; the first epochs lie below the picture"
    figure = blank(width, height, f"{metric} by epoch", subtitle)
    axes_ = figure.add_axes(share((0.85, 0.6, 3.9, 2.85), width, height))
    _open(axes_)
    times = 100.0 if is_share(metric) else 1.0
    for place, one in enumerate(curves):
        colour = SERIES[place % len(SERIES)]
        axes_.plot(
            one.epochs,
            [times * value for value in one.means],
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            markersize=4,
            linewidth=1.6,
            label=_folded(one.name),
        )
        axes_.fill_between(
            one.epochs,
            [times * value for value in one.lows],
            [times * value for value in one.highs],
            color=colour,
            alpha=0.18,
            linewidth=0,
        )
    if shown is not None:
        axes_.set_ylim(*(100 * limit for limit in shown))
    axes_.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    axes_.set_xlabel("epoch", fontsize=9.5, color=INK)
    axes_.set_ylabel(_label(metric), fontsize=9.5, color=INK)
    _legend(axes_)
    return figure


def against_cost(
    costs: Mapping[str, Sequence[tuple[float, float, str]]], objective: str
) -> Figure:
    """Draw the objective against what it costs: one panel for each kind of cost.

    Args:
        costs: the kind of cost to (cost, objective, group) of each configuration; at most six
            groups get colours of their own.
    """
    wide = 2.9
    width, height = 0.95 + len(costs) * (wide + 0.45) + 1.5, 3.9
    figure = blank(width, height, "What accuracy costs", "each point is a configuration, its mean")
    times = 100.0 if is_share(objective) else 1.0
    axes_: Axes | None = None
    for place, (kind, points) in enumerate(costs.items()):
        box = (0.95 + place * (wide + 0.45), 0.65, wide, 2.35)
        axes_ = figure.add_axes(share(box, width, height))
        _open(axes_)
        groups = list(dict.fromkeys(group for _, _, group in points))
        for index, group in enumerate(groups):
            mine = [(x, times * y) for x, y, named in points if named == group]
            axes_.plot(
                [x for x, _ in mine],
                [y for _, y in mine],
                linestyle="",
                marker=MARKERS[index % len(MARKERS)],
                color=SERIES[index % len(SERIES)],
                markersize=5,
                markeredgecolor="#ffffff",
                markeredgewidth=0.4,
                label=group or "all",
            )
        axes_.margins(0.08)
        axes_.set_xlabel(kind, fontsize=9.5, color=INK)
        if place == 0:
            axes_.set_ylabel(_label(objective), fontsize=9.5, color=INK)
        else:
            axes_.tick_params(labelleft=False)
        axes_.locator_params(axis="x", nbins=4)
    if axes_ is not None:
        _legend(axes_)
    return figure


def parallel_coordinates(
    axes: Sequence[str],
    points: Sequence[Sequence[str]],
    objectives: Sequence[float],
    values: Mapping[str, Sequence[str]],
    objective: str,
    minimize: bool,
) -> Figure:
    """Draw every trial as a line through its settings to its objective, the best the strongest.

    Args:
        axes: to be drawn, in order.
        points: of each trial a value for each of them.
        objectives: of each trial.
        values: of each axis, in order.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    order = np.argsort(objectives)[:: 1 if minimize else -1]
    chosen = order if len(order) <= MOST_CURVES else order[_spread(len(order), MOST_CURVES)]
    chosen = chosen[::-1]  # the best on top
    scale = np.asarray(objectives, dtype=np.float64)
    low, high = float(scale.min()), float(scale.max())
    columns = [*axes, objective]
    places = np.empty((len(chosen), len(columns)))
    for column, axis in enumerate(axes):
        spots = _spots(values[axis])
        places[:, column] = [spots[points[index][column]] for index in chosen]
    places[:, -1] = (scale[chosen] - low) / ((high - low) or 1.0)
    width, height = 1.35 * len(columns) + 1.5, 3.9
    width = max(width, 6.4)
    subtitle = f"{len(chosen)} of {len(order)} trials; the stronger the colour, the better"
    figure = blank(width, height, "Every trial, setting by setting", subtitle)
    axes_ = figure.add_axes(share((0.6, 0.35, width - 1.35, 2.75), width, height))
    weights = places[:, -1] if not minimize else 1 - places[:, -1]
    axes_.add_collection(
        LineCollection(
            [list(enumerate(line)) for line in places],
            colors=LinearSegmentedColormap.from_list("lines", LINES)(weights),
            linewidths=0.4 + 1.4 * weights,
        )
    )
    times = 100.0 if is_share(objective) else 1.0
    for column, axis in enumerate(columns):
        axes_.plot([column, column], [-0.03, 1.03], color=GREY, linewidth=0.9)
        if axis == objective:
            ticks = [(0.0, f"{times * low:.4g}"), (1.0, f"{times * high:.4g}")]
        else:
            ticks = [(spot, short(value)) for value, spot in _spots(values[axis]).items()]
            if len(ticks) > MAX_CELLS:
                ticks = [ticks[0], ticks[-1]]
        for spot, text in ticks:
            axes_.text(
                column + 0.05,
                spot,
                text,
                fontsize=8.5,
                color=INK,
                va="center",
                bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
            )
        label = _label(objective) if axis == objective else axis
        axes_.text(column, 1.09, label, fontsize=9.5, color=INK, ha="center", fontweight="bold")
    axes_.set_xlim(-0.1, len(columns) - 0.7)
    axes_.set_ylim(-0.05, 1.12)
    axes_.set_axis_off()
    return figure


def hard_images(
    images: NDArray[np.uint8], captions: Sequence[tuple[str, str]], models: int
) -> Figure:
    """Draw the test images that most models get wrong.

    Args:
        images: uint8 [K, H, W], at least one, the most often mistaken first.
        captions: of each image what stands below it, left and right.
        models: how many models were asked.
    """
    columns = min(8, len(images))
    sheet = Sheet(
        -(-len(images) // columns),
        columns,
        images.shape[1:],
        "Test images that most models get wrong",
        f"true class → what it is taken for, and by how many of {models} models",
        caption=30,
    )
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        sheet.image(row, column, image)
        sheet.caption(row, column, captions[place][0], "left", INK)
        sheet.caption(row, column, captions[place][1], "right", VERMILLION)
    return sheet.finish()


def _cells(
    axes_: Axes,
    pairs: Sequence[tuple[str, str]],
    values: Sequence[float],
    names: tuple[Sequence[str], Sequence[str]],
    limits: tuple[float, float],
    colours: Any,
) -> Any:
    """Fill a heat map's cells, with their values written in them.

    Args:
        pairs: column and row of each value, by name; several values of one cell are averaged.
        names: of the columns, and of the rows.
        limits: the least and the most of all panels.
    """
    (xs, ys), (low, high) = names, limits
    columns: dict[tuple[int, int], list[float]] = {}
    for (x, y), value in zip(pairs, values, strict=True):
        columns.setdefault((ys.index(y), xs.index(x)), []).append(value)
    table = np.full((len(ys), len(xs)), np.nan)
    for cell, inside in columns.items():
        table[cell] = statistics.fmean(inside)
    shaded = np.ma.masked_invalid(table)
    image = axes_.pcolormesh(shaded, cmap=colours, edgecolors="none", vmin=low, vmax=high)
    for (row, column), value in np.ndenumerate(table):
        if math.isfinite(value):
            spot = (value - low) / (high - low)
            colour = ON_DARK if spot > 0.55 else ON_LIGHT
            text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
        else:
            colour, text = GREY, "–"
        axes_.text(
            column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=9, color=colour
        )
    axes_.set_xticks([i + 0.5 for i in range(len(xs))], [short(x) for x in xs])
    axes_.set_yticks([i + 0.5 for i in range(len(ys))], [short(y) for y in ys])
    return image


def _colours() -> Any:
    """From nearly white to dark blue, for what is filled."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("report", ["#e8f1f8", "#6baed6", "#08306b"])


def _position(value: str, values: Sequence[str]) -> float:
    """Where a value lies on a continuous axis: the number itself, or its place."""
    found = number(value)
    return float(values.index(value)) if found is None else found


def _spots(values: Sequence[str]) -> dict[str, float]:
    """A place from 0 to 1 for each value: evenly, or by size where there are many numbers."""
    numbers = [number(value) for value in values]
    if len(values) > MAX_CELLS and None not in numbers:
        plain = [found or 0.0 for found in numbers]
        low, high = min(plain), max(plain)
        return {v: (p - low) / (high - low) for v, p in zip(values, plain, strict=True)}
    return {value: place / max(1, len(values) - 1) for place, value in enumerate(values)}


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """The first tenth of what is wanted, and the rest evenly from the others."""
    first = wanted // 10
    rest = np.linspace(first, count - 1, wanted - first).astype(np.int64)
    return np.concatenate([np.arange(first, dtype=np.int64), rest])


def _label(metric: str) -> str:
    return f"{metric} (%)" if is_share(metric) else metric


def _folded(name: str) -> str:
    """A configuration's name on lines of its own settings."""
    return name.replace(", ", ",\n") if len(name) > 30 else name


def _open(axes_: Axes, grid: bool = True) -> None:
    for side in ("top", "right"):
        axes_.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes_.spines[side].set_color(GREY)
    if grid:
        axes_.grid(axis="y", color=PALE, linewidth=0.6)
    axes_.set_axisbelow(True)
    axes_.tick_params(labelsize=9, color=GREY, labelcolor=INK)
    axes_.set_facecolor("none")


def _quiet(axes_: Axes, ticks: bool) -> None:
    no_frame(axes_)
    axes_.tick_params(length=3 if ticks else 0, labelsize=9, color=GREY, labelcolor=INK)
    axes_.set_facecolor("none")


def _legend(axes_: Axes) -> None:
    axes_.legend(
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        labelspacing=0.9,
        borderaxespad=0,
    )
