"""The pictures of a run, each returned as a matplotlib figure.

They use neither pyplot nor any other global state, so any thread may draw, and depend on their
arguments alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator
from numpy.typing import NDArray

from mnist_hydra import canvas
from mnist_hydra.canvas import BLUE, GREEN, GREY, INK, PALE, VERMILLION

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
Integers = NDArray[np.integer[Any]]

PANELS = {  # of each what stands beside it, and which metrics it shows
    "loss": ("loss", {split: f"{split}/loss" for split in ("train", "val", "test")}),
    "accuracy": ("accuracy (%)", {split: f"{split}/acc" for split in ("train", "val", "test")}),
    "learning rate": ("at the epoch's first step", {"lr": "lr"}),
}
LINE_STYLES = {  # colour, dash and marker: apart without any colour, too
    "train": {"color": BLUE, "linestyle": "-", "marker": "o"},
    "val": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "test": {"color": VERMILLION, "linestyle": "-.", "marker": "^"},
    "lr": {"color": BLUE, "linestyle": "-", "marker": "o"},
}
MOST_MISTAKES = 60
MOST_IMAGES = 12


def learning_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Draw loss, accuracy and learning rate against the epochs.

    What was not recorded is left out: a panel without any value is not drawn, and an epoch that
    lacks a metric has no point on its line. A value that is not finite breaks the line and is
    marked by a cross at the panel's foot. Where best and worst lie far apart, loss is spaced by
    its logarithm and accuracy by that of the error, so that the last epochs can be told apart.

    Args:
        history: one record an epoch, in order: `<split>/loss`, `<split>/acc` (a share, 0 to 1)
            and `lr`, whichever there are; other keys are ignored. The first record is epoch 1
            unless the records have an `epoch`.
    """
    panels: dict[str, dict[str, tuple[Floats, Floats]]] = {}
    for kind, (_, keys) in PANELS.items():
        lines = {name: _series(history, key) for name, key in keys.items()}
        lines = {name: line for name, line in lines.items() if line[0].size}
        if lines:
            panels[kind] = lines
    if not panels:
        return canvas.only_words("Learning curves", "No epoch was recorded.")
    subtitle = "1 epoch" if len(history) == 1 else f"{len(history)} epochs"
    subtitle += "; beside each name its last value"
    if any(np.isnan(values).any() for lines in panels.values() for _, values in lines.values()):
        subtitle += "; × is a value that is not finite"
    figure = canvas.blank(4.5 * len(panels) + 0.3, 4.4, "Learning curves", subtitle)
    for column, (kind, lines) in enumerate(panels.items()):
        axes = canvas.axes_at(figure, 4.5 * column + 0.85, 0.62, 3.55, 2.6)
        _curves(axes, kind, lines)
        _epoch_axis(axes, np.concatenate([epochs for epochs, _ in lines.values()]))
    return figure


def confusion_matrix(counts: Integers) -> Figure:
    """Draw which class test images were taken for, with every count written out.

    Only mistakes are coloured by their number, since the right answers outnumber them a hundred
    to one. A class that never occurs has no recall and one never predicted no precision: a dash.

    Args:
        counts: integers [C, C], a row for each true class, a column for each predicted one.
    """
    counts = np.asarray(counts)
    classes = len(counts)
    right, total = int(np.trace(counts)), int(counts.sum())
    mistakes = np.ma.masked_array(counts, np.eye(classes, dtype=bool))
    worst = max(int(mistakes.filled(0).max(initial=0)), 1)
    white_to_red = LinearSegmentedColormap.from_list("mistakes", ["#ffffff", "#f6b48c", VERMILLION])

    cell = 0.58
    side = cell * (classes + 1)
    subtitle = f"{right:,} of {total:,} test images right ({_share_text(right, total, 2)})"
    figure = canvas.blank(side + 1.95, side + 1.7, "Confusion matrix", subtitle)
    axes = canvas.axes_at(figure, 0.9, 0.25, side, side)
    edges = np.arange(classes + 1) - 0.5
    heat = axes.pcolormesh(
        edges,
        edges,
        mistakes,
        cmap=white_to_red.with_extremes(bad="#cfe3f1"),  # of the diagonal
        vmin=0,
        vmax=worst,
        edgecolors=PALE,
        linewidth=0.7,
    )
    axes.set_xlim(-0.5, classes + 0.5)
    axes.set_ylim(classes + 0.5, -0.5)

    def write(column: int, row: int, text: str, **style: Any) -> None:
        axes.text(column, row, text, ha="center", va="center", **style)

    for (row, column), count in np.ndenumerate(counts):
        size = 10 if count < 10_000 else 8 if count < 1_000_000 else 6
        if row == column:
            write(column, row, str(count), fontsize=size, color=INK, fontweight="bold")
        elif count:
            colour = "white" if count > 0.8 * worst else INK
            write(column, row, str(count), fontsize=size, color=colour)
    for of_class, (found, occurs, predicted) in enumerate(
        zip(np.diag(counts), counts.sum(axis=1), counts.sum(axis=0), strict=True)
    ):
        write(classes, of_class, _share_text(found, occurs, 1), fontsize=8.5, color=GREY)
        write(of_class, classes, _share_text(found, predicted, 1), fontsize=8.5, color=GREY)

    names = [str(index) for index in range(classes)]
    axes.set_xticks(range(classes), names, fontsize=10)
    axes.set_yticks(range(classes), names, fontsize=10)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.text(classes, -0.65, "recall", ha="center", fontsize=8.5, color=GREY)
    axes.text(-0.65, classes, "precision", ha="right", va="center", fontsize=8.5, color=GREY)
    axes.tick_params(length=0)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    canvas.no_frame(axes)

    beside = canvas.axes_at(figure, side + 1.05, 0.25 + cell, 0.15, cell * classes)
    bar = figure.colorbar(heat, cax=beside, ticks=MaxNLocator(integer=True, nbins=8))
    bar.set_label("mistakes")
    beside.tick_params(color=PALE)
    canvas.no_frame(beside)
    return figure


def misclassified_grid(
    images: Pixels, true: Integers, predicted: Integers, confidence: Floats
) -> Figure:
    """Draw the test images that were taken for another class, the most confident mistakes first.

    At most 60 are drawn, and the title says of how many; with none it says so. A confidence that
    is not finite is a dash and comes last.

    Args:
        images: uint8 [K, H, W].
        true: integers [K].
        predicted: integers [K].
        confidence: float [K], the probability (0 to 1) that the model gave to its prediction.
    """
    mistakes, title = len(images), "Misclassified test images"
    if not mistakes:
        return canvas.only_words(title, "Every image was classified correctly.")
    order = np.argsort(-np.nan_to_num(confidence, nan=-1.0), kind="stable")[:MOST_MISTAKES]
    shown = len(order)
    of = f"{shown} of " * (shown < mistakes)
    count = f"{of}{mistakes:,} mistake" + "s" * (mistakes > 1)
    captions = [
        (f"{true[i]}→{predicted[i]}", f"{100 * sure:.0f} %" if np.isfinite(sure) else "–")
        for i, sure in zip(order, confidence[order].tolist(), strict=True)
    ]
    return canvas.sheet(
        list(images[order]),
        min(max(shown, 5), 10),
        title,
        f"{count}, the most confident first: true class → prediction, and its confidence",
        captions=captions,
    )


def augmentation_grid(before: Pixels, after: Pixels) -> Figure:
    """Draw what the augmentation does: each original, and to its right what became of it.

    A draw that differs from its original has a blue frame; the title counts them. At most 12
    originals are drawn.

    Args:
        before: uint8 [K, H, W], the original images.
        after: uint8 [K, R, H, W], R draws of the augmentation for each of them.
    """
    before, after = before[:MOST_IMAGES], after[:MOST_IMAGES]
    title = "What the augmentation does"
    if not len(before):
        return canvas.only_words(title, "There is no image to show.")
    changed = (after != before[:, None]).any(axis=(2, 3))
    marked = np.pad(changed, ((0, 0), (1, 0)))  # an original never is
    return canvas.sheet(
        [image for row in zip(before, after, strict=True) for image in (row[0], *row[1])],
        marked.shape[1],
        title,
        f"blue frame: changed, {changed.sum()} of {changed.size} draws",
        headers=["original", *(f"draw {number + 1}" for number in range(changed.shape[1]))],
        marked=marked.ravel().tolist(),
    )


def spacing(values: Floats, *, percent: bool) -> str:
    """Decide how an axis is spaced: `linear`, or `log` where values differ more than eightfold.

    Args:
        values: any shape; what is not finite is ignored.
        percent: the values are percentages, and it is their distance from 100 that counts.
    """
    finite = values[np.isfinite(values)]
    if percent:
        finite = 100.0 - finite
        finite = finite[finite > 0]  # 100 % has a place on the spaced axis as well
    if finite.size < 2 or finite.min() <= 0:
        return "linear"
    return "log" if finite.max() > 8 * finite.min() else "linear"


def _series(history: Sequence[Mapping[str, float]], key: str) -> tuple[Floats, Floats]:
    """Epochs and values of one metric, float64 [n] each; the value is NaN where not finite."""
    points = [
        (record.get("epoch", position), record[key])
        for position, record in enumerate(history, start=1)
        if record.get(key) is not None
    ]
    table = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    values = np.where(np.isfinite(table[:, 1]), table[:, 1], np.nan)
    return table[:, 0], values * 100.0 if key.endswith("/acc") else values


def _curves(axes: Axes, kind: str, lines: dict[str, tuple[Floats, Floats]]) -> None:
    canvas.name_axes(axes, kind.capitalize(), pad=24)
    axes.set_ylabel(PANELS[kind][0])
    _value_axis(axes, kind, np.concatenate([values for _, values in lines.values()]))
    for name, (epochs, values) in lines.items():
        style: dict[str, Any] = LINE_STYLES[name]
        axes.plot(
            epochs,
            values,
            **style,
            linewidth=1.6,
            markersize=4 if len(epochs) <= 40 or np.isnan(values).any() else 0,
            label=_with_last(name, kind, values),
            clip_on=False,
        )
        broken = epochs[np.isnan(values)]
        if broken.size:
            axes.plot(
                broken,
                np.full(len(broken), 0.025),
                "x",
                color=style["color"],
                markersize=7,
                markeredgewidth=2,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
    if kind != "learning rate":
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 0.99),
            ncols=3,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
            handlelength=2.4,
            handletextpad=0.5,
            columnspacing=1.2,
            borderaxespad=0.2,
        )


def _value_axis(axes: Axes, kind: str, values: Floats) -> None:
    finite = values[np.isfinite(values)]
    if not finite.size:
        axes.set_yticks([])
        return
    low, high = float(finite.min()), float(finite.max())
    how = "linear" if kind == "learning rate" else spacing(values, percent=kind == "accuracy")
    if how == "linear":
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        bottom = min(0.0, low) if kind == "learning rate" else low - margin
        ceiling = 100.0 if kind == "accuracy" else high + margin
        axes.set_ylim(bottom, min(high + margin, ceiling))
        return
    if kind == "loss":
        axes.set_yscale("log")
        axes.set_ylim(low / 1.25, high * 1.25)
        canvas.label_round_numbers(axes.yaxis)
    else:
        errors = 100.0 - finite
        perfect = bool((errors <= 0).any())
        # 100 % is infinitely far away on this scale: it is drawn at half the least other error.
        least = float(errors[errors > 0].min()) / (2.0 if perfect else 1.25)
        most = 1.25 * float(errors.max())

        def place(accuracy: Floats) -> Floats:
            height: Floats = -np.log10(np.maximum(100.0 - accuracy, least))
            return height

        axes.set_yscale("function", functions=(place, lambda height: 100.0 - 10.0**-height))
        axes.set_ylim(100.0 - most, 100.0 - least)
        ticks = LogLocator(subs=canvas.ROUND).tick_values(least, most)
        labelled = [100.0 - error for error in ticks if 1.2 * least < error < most]
        axes.yaxis.set_major_locator(FixedLocator(labelled + [100.0] * perfect))
        axes.yaxis.set_major_formatter("{x:g}")


def _epoch_axis(axes: Axes, epochs: Floats) -> None:
    first, last = float(epochs.min()), float(epochs.max())
    margin = max(0.03 * (last - first), 0.5 if first == last else 0.2)
    axes.set_xlim(first - margin, last + margin)
    canvas.count_epochs(axes)


def _with_last(name: str, kind: str, values: Floats) -> str:
    last = values[-1]
    if np.isnan(last):
        return name
    return f"{name} {last:.2f}" if kind == "accuracy" else f"{name} {last:.3g}"


def _share_text(part: int, whole: int, digits: int) -> str:
    return f"{100 * part / whole:.{digits}f} %" if whole else "–"
