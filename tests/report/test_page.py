"""The report's page and pictures, drawn from plain values."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from matplotlib.colors import to_hex, to_rgb

from mnist_hydra.canvas import blank
from mnist_hydra.report import page, plots
from mnist_hydra.report.questions import Layout
from mnist_hydra.report.results import TrialRecord
from mnist_hydra.report.statistics import summary
from mnist_hydra.report.wording import short

STYLE = (files("mnist_hydra.report") / "page.html").read_text()
PAPERS = re.findall("--paper: (#[0-9a-f]{6})", STYLE)
SHADES = [to_hex(plots.RAMP(place / 8)) for place in range(9)]


@pytest.mark.parametrize("colour", [*plots.SERIES, *SHADES])
def test_lines_and_points_stand_out_on_a_light_and_on_a_dark_page(colour: str) -> None:
    assert len(PAPERS) == 2
    assert min(contrast(colour, paper) for paper in PAPERS) >= 3


def test_the_parallel_plot_is_drawn_in_these_colours() -> None:
    trials = [
        TrialRecord({"lr": lr}, [], "finished", reached, lr)
        for lr, reached in (("0.1", 0.9), ("0.2", 0.8))
    ]
    layout = Layout({"lr": ("0.1", "0.2")}, None, None, None, ())
    figure = plots.parallel_coordinates(trials, layout, "val/acc", False)
    [lines] = figure.axes[0].collections
    drawn = [to_hex(colour) for colour in lines.get_edgecolor()]
    assert drawn == [colour.lower() for colour in plots.WORST_TO_BEST], "the best on top"
    assert lines.get_alpha() is None


def test_a_picture_on_the_page_leaves_its_title_to_the_heading() -> None:
    figure = blank(5, 2, "A title", "and what is below it")
    drawn = page.svg(figure, "mine")
    assert "A title" not in drawn and "and what is below it" in drawn
    assert 'viewBox="0 28 360 116"' in drawn
    assert figure.texts[0].get_visible(), "as a file of its own it has one"


def test_the_ids_of_two_pictures_are_apart() -> None:
    effects = {"lr": {"0.1": summary([0.9, 0.8]), "0.2": summary([0.7, 0.6])}}
    figure = plots.main_effects(effects, {"lr": 0.9, "seed": 0.1}, "val/acc", {})
    drawn = [re.findall(' id="([^"]*)"', page.svg(figure, name)) for name in ("one", "two")]
    assert drawn[0] and not set(drawn[0]) & set(drawn[1])


def test_a_cell_whose_bad_trial_failed_looks_no_better_for_that() -> None:
    reached = {"0.9": 0.9, "0.95": 0.5}
    scores = {
        (lr, dropout, momentum): {"1": reached[momentum]}
        for lr in ("0.1", "0.3")
        for dropout in ("0.0", "0.1")
        for momentum in reached
        if (lr, dropout, momentum) != ("0.3", "0.0", "0.95")
    }
    values = {"lr": ("0.1", "0.3"), "dropout": ("0.0", "0.1"), "momentum": ("0.9", "0.95")}
    layout = Layout(values, "lr", "dropout", None, ("momentum",), {})
    drawn = plots.heat_map(scores, tuple(values), layout, "val/acc").axes[0]
    assert {text.get_text() for text in drawn.texts} == {"90.00"}


def test_a_value_with_one_seed_has_no_bar_of_no_length() -> None:
    effects = {"lr": {"0.1": summary([0.9, 0.8]), "0.2": summary([0.7])}}
    [bars] = plots.main_effects(effects, {}, "val/acc", {}).axes[0].containers
    [drawn, none] = bars[2][0].get_segments()
    assert len(drawn) == 2 and not len(none)


@pytest.mark.parametrize("setting", ["1000001", "-1000002", "0.1", "model3"])
def test_what_is_no_long_fraction_is_shown_as_it_is(setting: str) -> None:
    assert short(setting) == setting and short("0.07312345") == "0.07312"


@pytest.mark.parametrize("epochs, told", [(5, False), (6, True)])
def test_first_epochs_that_are_left_out_are_said(epochs: int, told: bool) -> None:
    one = plots.curve("mine", [{1: 0.2} | {epoch: 0.9 for epoch in range(2, epochs + 1)}])
    two = plots.curve("other", [{epoch: 0.91 for epoch in range(1, epochs + 1)}])
    figure = plots.trial_curves([one, two], "val/acc")
    low, high = figure.axes[0].get_ylim()
    assert (low > 20) == told and high > 91
    assert ("the first epochs lie below the picture" in figure.texts[1].get_text()) == told


def test_columns_of_numbers_alone_stand_at_the_right() -> None:
    rows = [
        ["1", "model1", "98.68 %", "3 of 4", "−0.01 to 0.21", "< 0.0001", "0.01, may be chance"],
        ["2", "2", "-", "4", "", "1e-05", "0.02, may be chance"],
    ]
    assert page.Table(list("abcdefg"), rows).numeric == {0, 2, 3, 4, 5}


def test_the_style_is_light_on_paper_and_keeps_a_digit_on_one_sheet() -> None:
    assert re.findall("@media[^{]*dark[^{]*", STYLE) == [
        "@media screen and (prefers-color-scheme: dark) "
    ]
    printed = STYLE.partition("@page { margin: 15mm; }")[2]
    assert re.search(r"\.digits li \{ break-inside: avoid; \}", printed)


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
