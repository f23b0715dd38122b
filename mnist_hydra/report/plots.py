"""The report's pictures, as matplotlib figures in the style of `canvas.py`; they read no store."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from mnist_hydra import canvas
from mnist_hydra.canvas import BLUE, GREEN, GREY, INK, PALE, VERMILLION
from mnist_hydra.report.hard import HardImage
from mnist_hydra.report.questions import MAX_CELLS, Layout
from mnist_hydra.report.results import TrialRecord
from mnist_hydra.report.statistics import Scores, Summary, number
from mnist_hydra.report.wording import is_share, short

MOST_CURVES = 500
"""Trials in the parallel coordinates, the best and the rest evenly chosen."""
ON_DARK, ON_LIGHT = "#fffffe", "#222223"
"""Text in a cell of a heat map, the same in light and dark; so not the canvas's own colours."""
FEW_EPOCHS = 5
"""Of learning curves no longer than this all is shown."""
SERIES = (BLUE, VERMILLION, GREEN, "#CC79A7", "#A87400", "#7A6FD0")
WORST_TO_BEST = ("#8C8C8C", BLUE)
"""The worst trial's and the best one's. As all of `SERIES`, of contrast 3 on both pages' paper."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DOTS: dict[str, Any] = {"markersize": 5.5, "linewidth": 1.2, "elinewidth": 1.4, "capsize": 3}
"""Means and their intervals."""
RAMP = LinearSegmentedColormap.from_list("lines", list(WORST_TO_BEST))
FILL = colormaps["viridis"]
"""Of a heat map's cells: the most is bright, on a white page and on a dark one."""
Cells = dict[tuple[str, str], list[float]]
"""The means of the configurations in a heat map's cell, by its column and row."""


@dataclass(frozen=True)
class Curve:
    """A metric by epoch, over seeds."""

    name: str
    epochs: list[int]
    values: NDArray[np.float64]
    """float64 [seeds, epochs]."""


def curve(name: str, histories: Sequence[Mapping[int, float]]) -> Curve:
    """What runs, at least one, have at each epoch that all of them have."""
    epochs = sorted(set.intersection(*(set(history) for history in histories)))
    return Curve(name, epochs, np.array([[one[epoch] for epoch in epochs] for one in histories]))


def range_of_the_end(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """The range that shows the last epochs' differences where the first ones are far below.

    `None` where all epochs are to be shown: they are few, or not far apart.
    """
    values = np.sort(np.concatenate([one.values.mean(0) for one in curves]))
    low, middle, high = float(values[0]), float(values[len(values) // 3]), float(values[-1])
    if max(len(one.epochs) for one in curves) > FEW_EPOCHS and high - low > 4 * (high - middle) > 0:
        return middle - 2 * (high - middle), high + 0.35 * (high - middle)
    return None


def heat_map(scores: Scores, axes: Sequence[str], chosen: Layout, objective: str) -> Figure:
    """Draw the mean objective over the two axes that matter most, a panel for a third one's values.

    What is on no axis is averaged, over the values that every place was tried with if there are
    any, and the subtitle says so. A search's trials, and those of axes of many values, are points.

    Args:
        scores: of all configurations.
        axes: of their values.
        chosen: with two axes at least.
    """
    assert chosen.rows is not None and chosen.columns is not None
    xs, ys = chosen.values[chosen.columns], chosen.values[chosen.rows]
    panels = (None,) if chosen.panels is None else chosen.values[chosen.panels]
    means = {p: _shown(objective, statistics.fmean(seeds.values())) for p, seeds in scores.items()}
    inside: dict[str | None, Cells] = {panel: {} for panel in panels}
    x, y = axes.index(chosen.columns), axes.index(chosen.rows)
    at = None if chosen.panels is None else axes.index(chosen.panels)
    tried: dict[tuple[str | None, str, str], dict[tuple[str, ...], float]] = {}
    for point, mean in means.items():
        others = tuple(value for i, value in enumerate(point) if i not in (x, y, at))
        panel = None if at is None else point[at]
        tried.setdefault((panel, point[x], point[y]), {})[others] = mean
    by_size = {chosen.rows, chosen.columns} & set(chosen.scales)
    as_points = bool(by_size) or max(len(xs), len(ys)) > MAX_CELLS
    shared = set() if as_points else set.intersection(*map(set, tried.values()))
    for (panel, across, up), by_others in tried.items():
        inside[panel][across, up] = [by_others[each] for each in shared or by_others]
    colours = Normalize(min(means.values()), max(means.values()))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    wide = 3.3 if as_points else min(max(0.85 * len(xs), 2.2), 5.5)
    high = 2.4 if as_points else min(max(0.5 * len(ys), 1.4), 4.0)
    width = 0.95 + columns * (wide + 0.35) + 1.0
    height = 0.85 + rows * (high + 0.95)
    unit = "in %, " if is_share(objective) else ""
    many = max(len(seeds) for seeds in scores.values()) > 1
    each = "mean over seeds" if many else "one seed each"
    if as_points:
        each = f"each point is a configuration, {each}"
    averaged = f"; averaged over {', '.join(chosen.averaged)}" if chosen.averaged else ""
    title = f"{objective} over {chosen.rows} and {chosen.columns}"
    figure = canvas.blank(width, height, title, f"{unit}{each}{averaged}")
    draw = _points if as_points else _cells
    first: Axes | None = None
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left, top = 0.95 + column * (wide + 0.35), height - 1.2 - row * (high + 0.95)
        axes_ = canvas.axes_at(figure, left, top - high, wide, high, sharex=first, sharey=first)
        first = axes_ if as_points else None  # cells fill their panel
        image = draw(axes_, inside[panel], xs, ys, colours)
        for side, axis in (("x", chosen.columns), ("y", chosen.rows)):
            _by_size(axes_, side, chosen.scales.get(axis))
        canvas.no_frame(axes_)
        axes_.set_xlabel(chosen.columns)
        if panel is not None:
            canvas.name_axes(axes_, f"{chosen.panels}={short(panel)}")
        if column == 0:
            axes_.set_ylabel(chosen.rows)
        elif not as_points:
            axes_.set_yticklabels([])
    beside = canvas.axes_at(figure, width - 0.85, height - 1.2 - high, 0.13, high)
    figure.colorbar(image, cax=beside)
    beside.tick_params(labelsize=8.5, color=PALE)
    canvas.no_frame(beside)
    return figure


def main_effects(
    effects: Mapping[str, Mapping[str, Summary]],
    importance: Mapping[str, float],
    objective: str,
    scales: Mapping[str, str],
) -> Figure:
    """Draw the objective at each value of each axis, and how much each axis accounts for.

    Args:
        effects: of each axis that was varied, of each value.
        importance: share of each axis, the seed among them; the bars are left out with none.
        scales: as in `Layout`.
    """
    wide, gap = 2.3, 0.35
    bars = 1.1 + 2.2 if importance else 0.0
    width = max(0.95 + len(effects) * (wide + gap) + bars, 6.4)
    how = "dot: mean, all other axes averaged"
    over_seeds = any(found.n > 1 for values in effects.values() for found in values.values())
    how += "; bar: 95 % interval over seeds" if over_seeds else "; one seed, so no interval"
    figure = canvas.blank(width, 3.45, "What each setting does", how)
    first: Axes | None = None
    for place, (axis, values) in enumerate(effects.items()):
        axes_ = canvas.axes_at(figure, 0.95 + place * (wide + gap), 0.45, wide, 1.95, sharey=first)
        canvas.name_axes(axes_, axis)
        means = [_shown(objective, found.mean) for found in values.values()]
        widths = [found.half_width for found in values.values()]
        errors = [math.nan if half is None else _shown(objective, half) for half in widths]
        places = [float(v) for v in values] if axis in scales else range(len(values))
        if axis in scales or len(values) > MAX_CELLS:
            axes_.plot(places, means, "o", color=BLUE, markersize=3)
        else:
            style = "o" if None in map(number, values) else "o-"
            axes_.errorbar(places, means, errors, fmt=style, color=BLUE, **DOTS)
            axes_.set_xticks(places, [short(name) for name in values])
            axes_.set_xlim(-0.5, len(values) - 0.5)
        _by_size(axes_, "x", scales.get(axis))
        axes_.tick_params(labelleft=first is None)
        first = first or axes_
    if first is not None:
        first.set_ylabel(_label(objective))
    if importance:
        _bars(canvas.axes_at(figure, width - 2.45, 0.45, 2.0, 1.95), importance)
    return figure


def _bars(axes_: Axes, importance: Mapping[str, float]) -> None:
    """Draw what each axis accounts for, the most on top; the seed is grey, since it is chance."""
    names = sorted(importance, key=lambda name: importance[name])
    shares = [100 * importance[name] for name in names]
    bars = axes_.barh(names, shares, color=[GREY if name == "seed" else BLUE for name in names])
    axes_.bar_label(bars, [f"{each:.0f} %" for each in shares], fontsize=9, color=INK, padding=2)
    axes_.grid(False)
    axes_.set_xlim(0, 1.18 * max(1.0, *shares))
    axes_.set_xticks([])
    axes_.spines["bottom"].set_visible(False)
    canvas.name_axes(axes_, "share of the differences")


def trial_curves(curves: Sequence[Curve], metric: str) -> Figure:
    """Draw a metric by epoch, a line for each configuration, a band over its seeds."""
    shown = range_of_the_end(curves) if is_share(metric) else None
    subtitle = "one seed each"
    if any(len(one.values) > 1 for one in curves):
        subtitle = "line: mean over seeds; band: from the lowest to the highest seed"
    if shown is not None:
        subtitle += "; the first epochs lie below the picture"
    figure = canvas.blank(7.4, 4.3, f"{metric} by epoch", subtitle)
    axes_ = canvas.axes_at(figure, 0.85, 0.6, 3.9, 2.85)
    for place, one in enumerate(curves):
        values, style = _shown(metric, one.values), _style(place)
        name = one.name.replace(", ", ",\n") if len(one.name) > 30 else one.name
        axes_.plot(one.epochs, values.mean(0), **style, markersize=4, linewidth=1.6, label=name)
        band = {"color": style["color"], "alpha": 0.18, "linewidth": 0}
        axes_.fill_between(one.epochs, values.min(0), values.max(0), **band)
    if shown is not None:
        axes_.set_ylim(*_shown(metric, np.array(shown)))
    canvas.count_epochs(axes_)
    axes_.set_ylabel(_label(metric))
    _legend_beside(axes_)
    return figure


def against_cost(
    costs: Mapping[str, Sequence[tuple[float, float, str]]], objective: str
) -> Figure:
    """Draw the objective against what it costs: one panel for each kind of cost.

    Args:
        costs: the kind of cost, at least one, to (cost, objective, group) of each configuration; at
            most six groups get colours of their own.
    """
    wide = 2.9
    width = 0.95 + len(costs) * (wide + 0.45) + 1.5
    subtitle = "each point is a configuration, its mean"
    figure = canvas.blank(width, 3.9, "What accuracy costs", subtitle)
    for place, (kind, points) in enumerate(costs.items()):
        axes_ = canvas.axes_at(figure, 0.95 + place * (wide + 0.45), 0.65, wide, 2.35)
        for index, group in enumerate(dict.fromkeys(group for _, _, group in points)):
            mine = [(cost, _shown(objective, score)) for cost, score, g in points if g == group]
            (dots,) = axes_.plot(*zip(*mine), **_style(index), linestyle="", label=group or "all")
            dots.set(markersize=5, markeredgecolor="#ffffff", markeredgewidth=0.4)
        axes_.margins(0.08)
        axes_.set_xlabel(kind)
        axes_.locator_params(axis="x", nbins=4)
        axes_.tick_params(labelleft=place == 0)
    figure.axes[0].set_ylabel(_label(objective))
    _legend_beside(figure.axes[-1])
    return figure


def parallel_coordinates(
    records: Sequence[TrialRecord], layout: Layout, objective: str, minimize: bool
) -> Figure:
    """Draw every trial as a line through its settings to its objective, the best the strongest.

    Args:
        records: of trials that count.
        layout: all of whose axes are drawn.
    """
    values, scales = layout.values, layout.scales
    chosen = sorted(records, key=lambda record: record.score, reverse=not minimize)
    low, high = sorted([chosen[0].score, chosen[-1].score])
    if len(chosen) > MOST_CURVES:  # a tenth of them the best, the rest evenly from the others
        first = MOST_CURVES // 10
        others = np.linspace(first, len(chosen) - 1, MOST_CURVES - first).astype(int)
        chosen = [*chosen[:first], *(chosen[place] for place in others)]
    spots = {axis: _spots(of_axis, scales.get(axis)) for axis, of_axis in values.items()}
    lines = []
    for record in reversed(chosen):  # the best on top
        settings = [spots[axis][record.values[axis]] for axis in values]
        lines.append([*settings, (record.score - low) / ((high - low) or 1.0)])
    width = max(1.35 * (len(values) + 1) + 1.5, 6.4)
    subtitle = f"{len(lines)} of {len(records)} trials; the stronger the colour, the better"
    figure = canvas.blank(width, 3.9, "Every trial, setting by setting", subtitle)
    axes_ = canvas.axes_at(figure, 0.6, 0.35, width - 1.35, 2.75)
    weights = np.array([1 - line[-1] if minimize else line[-1] for line in lines])
    paths = [list(enumerate(line)) for line in lines]
    drawn = LineCollection(paths, colors=RAMP(weights), linewidths=0.4 + 1.4 * weights)
    axes_.add_collection(drawn)
    for column, (axis, of_axis) in enumerate(spots.items()):
        ticks = [(spot, short(value)) for value, spot in of_axis.items()]
        few = axis not in scales and len(ticks) <= MAX_CELLS
        _upright(axes_, column, axis, ticks if few else [ticks[0], ticks[-1]])
    ends = [(float(end), f"{_shown(objective, s):.4g}") for end, s in enumerate((low, high))]
    _upright(axes_, len(values), _label(objective), ends)
    axes_.set_xlim(-0.1, len(values) + 0.3)
    axes_.set_ylim(-0.05, 1.12)
    axes_.set_axis_off()
    return figure


def _upright(
    axes_: Axes, column: int, label: str, ticks: Sequence[tuple[float, str]]
) -> None:
    """Draw one of the parallel axes; its ticks are places from 0 to 1 with what stands there."""
    axes_.plot([column, column], [-0.03, 1.03], color=GREY, linewidth=0.9)
    axes_.text(column, 1.09, label, fontsize=9.5, color=INK, ha="center", fontweight="bold")
    paper = {"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
    for spot, text in ticks:
        axes_.text(column + 0.05, spot, text, fontsize=8.5, color=INK, va="center", bbox=paper)


def hard_sheet(images: Sequence[HardImage]) -> Figure:
    """Draw the test images that most models get wrong, at least one."""
    return canvas.sheet(
        [image.pixels for image in images],
        min(8, len(images)),
        "Test images that most models get wrong",
        f"true class → what it is taken for, and by how many of {images[0].asked} models",
        captions=[(f"{image.label} → {image.taken_for}", str(image.wrong)) for image in images],
    )


def _cells(
    axes_: Axes, means: Cells, xs: Sequence[str], ys: Sequence[str], colours: Normalize
) -> Any:
    """Fill a heat map's cells, with their values written in them.

    Args:
        xs, ys: names of the columns and of the rows.
    """
    table = np.full((len(ys), len(xs)), np.nan)
    for (x, y), inside in means.items():
        table[ys.index(y), xs.index(x)] = statistics.fmean(inside)
    image = axes_.pcolormesh(np.ma.masked_invalid(table), cmap=FILL, norm=colours)
    for (row, column), value in np.ndenumerate(table):
        text, colour = "–", GREY
        if np.isfinite(value):
            text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
            colour = ON_LIGHT if colours(value) > 0.47 else ON_DARK
        spot = (column + 0.5, row + 0.5)
        axes_.text(*spot, text, ha="center", va="center", fontsize=9, color=colour)
    axes_.set_xticks(np.arange(len(xs)) + 0.5, [short(x) for x in xs])
    axes_.set_yticks(np.arange(len(ys)) + 0.5, [short(y) for y in ys])
    axes_.tick_params(length=0)
    return image


def _points(
    axes_: Axes, means: Cells, xs: Sequence[str], ys: Sequence[str], colours: Normalize
) -> Any:
    """Draw each configuration as a point; as `_cells`.

    It lies at the number itself on an axis of nothing but numbers, else at its value's place.
    """
    points = [(x, y, mean) for (x, y), inside in means.items() for mean in inside]
    places = []
    for values, set_ticks in ((xs, axes_.set_xticks), (ys, axes_.set_yticks)):
        by_place = None in map(number, values)
        if by_place:
            set_ticks(range(len(values)), values)
        places.append({v: place if by_place else float(v) for place, v in enumerate(values)})
    across, up = [places[0][x] for x, _, _ in points], [places[1][y] for _, y, _ in points]
    return axes_.scatter(across, up, 30, [mean for *_, mean in points], cmap=RAMP, norm=colours)


def _by_size(axes_: Axes, side: str, scale: str | None) -> None:
    """Let values of one axis (`x` or `y`) lie by their size, if `linear` or `log` says how."""
    axis = axes_.xaxis if side == "x" else axes_.yaxis
    if scale == "log":
        axes_.set(**{f"{side}scale": scale})
        canvas.label_round_numbers(axis)
    elif scale is not None:
        axis.set_major_locator(MaxNLocator(nbins=4))


def _style(place: int) -> dict[str, Any]:
    """Colour and marker of one of several series."""
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)]}


def _legend_beside(axes_: Axes) -> None:
    """Name the colours, at the right of the axes."""
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0}
    axes_.legend(**place, fontsize=8.5, frameon=False, labelcolor=INK, labelspacing=0.9)


def _spots(values: Sequence[str], scale: str | None) -> dict[str, float]:
    """A place from 0 to 1 for each value: evenly, or of numbers by size, as `scale` says."""
    places: Sequence[float] = range(len(values))
    if scale is not None:
        places = [math.log(float(v)) if scale == "log" else float(v) for v in values]
    low, high = places[0], places[-1]
    return {v: (p - low) / ((high - low) or 1) for v, p in zip(values, places, strict=True)}


def _shown(metric: str, value: Any) -> Any:
    """A metric's values as they are drawn: accuracies in percent."""
    return 100.0 * value if is_share(metric) else value


def _label(metric: str) -> str:
    return f"{metric} (%)" if is_share(metric) else metric
