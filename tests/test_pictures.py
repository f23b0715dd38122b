"""What the pictures show, read off the drawn figures; nothing here compares stored images."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from mnist_hydra import pictures
from tests.imports import imported_by

EPOCHS = 15
INNER = slice(1, -1)  # of an image: its frame covers part of the rim


def history(*splits: str) -> list[dict[str, float]]:
    """Records like those of a real run: accuracy from 83 % to 99.5 %, loss from 0.5 to 0.02."""
    records: list[dict[str, float]] = []
    for epoch in range(1, EPOCHS + 1):
        record = {"lr": 0.15 * (1 - epoch / 20), "images_per_s": 3e4, "epoch_s": 2.0}
        for offset, split in enumerate(splits):
            record[f"{split}/loss"] = 0.5 / epoch**1.2 + 0.01 * offset
            record[f"{split}/acc"] = 1 - 0.17 / epoch**1.3 - 0.001 * offset
        records.append(record)
    return records


def digits(count: int, seed: int = 0) -> np.ndarray:
    """Images that differ in every pixel's place: uint8 [count, 28, 28]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def mistakes(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    true = np.arange(count) % 10
    return digits(count), true, (true + 1) % 10, np.linspace(0.3, 0.9, count)


def pixels(figure: Figure) -> np.ndarray:
    """The figure as it is drawn: uint8 [H, W, 3]."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def panel(figure: Figure, name: str):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == name]
    return axes


def lines(axes) -> dict[str, np.ndarray]:
    """The drawn lines by the first word of their label: float [n, 2]."""
    return {
        str(line.get_label()).split()[0]: line.get_xydata()
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def place_of(row: int, column: int, *, top: int, row_height: int, apart: int = 0):
    """Where the sheet draws an image: the slice of the drawn pixels that it covers."""
    left = 36 + column * (112 + 16) + (apart if column else 0)
    return slice(top + row * row_height, None), slice(left, left + 112)


EVERY_PICTURE = {
    "curves": lambda: pictures.learning_curves(history("train", "val", "test")),
    "curves of one epoch": lambda: pictures.learning_curves(history("train", "test")[:1]),
    "curves of nothing": lambda: pictures.learning_curves([]),
    "confusion": lambda: pictures.confusion_matrix(np.arange(100).reshape(10, 10) * 13),
    "confusion of nothing": lambda: pictures.confusion_matrix(np.zeros((10, 10), np.int64)),
    "misclassified": lambda: pictures.misclassified_grid(*mistakes(100)),
    "one misclassified": lambda: pictures.misclassified_grid(*mistakes(1)),
    "none misclassified": lambda: pictures.misclassified_grid(*mistakes(0)),
    "augmentation": lambda: pictures.augmentation_grid(digits(8), digits(64).reshape(8, 8, 28, 28)),
    "one draw": lambda: pictures.augmentation_grid(digits(1), digits(1)[None]),
}


@pytest.mark.parametrize("name", EVERY_PICTURE)
def test_every_picture_has_a_title_and_keeps_its_words_inside_the_figure(name: str) -> None:
    figure = EVERY_PICTURE[name]()
    assert isinstance(figure, Figure)
    assert figure.texts[0].get_text()
    width, height = figure.get_size_inches()
    pixels(figure)
    drawn = figure.get_tightbbox()
    assert min(drawn.x0, drawn.y0) > -1e-6
    assert drawn.x1 < width + 1e-6 and drawn.y1 < height + 1e-6


@pytest.mark.parametrize("name", EVERY_PICTURE)
def test_every_picture_can_be_saved_as_png(name: str) -> None:
    file = io.BytesIO()
    EVERY_PICTURE[name]().savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_drawing_imports_neither_torch_nor_pyplot() -> None:
    imported = imported_by(
        "import numpy as np\n"
        "from mnist_hydra import pictures\n"
        "pictures.confusion_matrix(np.eye(10, dtype=np.int64)).canvas.draw()\n"
        "pictures.learning_curves([{'train/loss': 1.0}]).canvas.draw()"
    )
    assert not {"torch", "matplotlib.pyplot"} & imported


def test_training_and_sweeping_import_no_matplotlib_before_they_draw() -> None:
    code = "import mnist_hydra.export, mnist_hydra.run, mnist_hydra.sweep.sweeper"
    assert "matplotlib" not in imported_by(code)


def test_a_probability_is_rounded_as_its_exact_value() -> None:
    blank = np.zeros((1, 28, 28), np.uint8)
    sure = np.array([0.985], np.float32)  # 0.98500001...; in single precision 100 times it is 98.5
    figure = pictures.misclassified_grid(blank, np.array([1]), np.array([2]), sure)
    assert "99 %" in [text.get_text() for text in figure.axes[0].texts]


def test_threads_that_draw_at_once_draw_the_same_as_one() -> None:
    alone = [pixels(draw()) for draw in EVERY_PICTURE.values()]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda draw: pixels(draw()), EVERY_PICTURE.values()))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_curves_show_every_epoch_of_every_split() -> None:
    records = history("train", "val", "test")
    figure = pictures.learning_curves(records)
    for name, key, factor in (("Loss", "loss", 1), ("Accuracy", "acc", 100)):
        drawn = lines(panel(figure, name))
        assert list(drawn) == ["train", "val", "test"]
        for split, points in drawn.items():
            np.testing.assert_array_equal(points[:, 0], np.arange(1, EPOCHS + 1))
            expected = [record[f"{split}/{key}"] * factor for record in records]
            np.testing.assert_allclose(points[:, 1], expected)
    rates = panel(figure, "Learning rate").get_lines()[0].get_ydata()
    np.testing.assert_allclose(rates, [record["lr"] for record in records])


def test_curves_have_labelled_axes_and_no_colour_twice() -> None:
    figure = pictures.learning_curves(history("train", "val", "test"))
    for axes in figure.axes:
        assert axes.get_xlabel() == "epoch"
        assert axes.get_ylabel()
        colours = [line.get_color() for line in axes.get_lines()]
        dashes = [line.get_linestyle() for line in axes.get_lines()]
        assert len(set(colours)) == len(set(dashes)) == len(colours)


def test_panels_without_values_are_left_out() -> None:
    figure = pictures.learning_curves([{"test/acc": 0.9}, {"test/acc": 0.95}])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Accuracy"]


def test_a_history_of_nothing_says_so() -> None:
    assert "No epoch was recorded." in texts(pictures.learning_curves([]))
    assert "No epoch was recorded." in texts(pictures.learning_curves([{"epoch_s": 1.0}]))


def test_a_metric_of_the_last_epoch_alone_is_a_visible_point() -> None:
    records = [{"val/acc": 0.9} for _ in range(100)]
    records[-1]["test/acc"] = 0.91
    axes = panel(pictures.learning_curves(records), "Accuracy")
    drawn = lines(axes)
    np.testing.assert_allclose(drawn["test"], [[100, 91.0]])
    (line,) = [line for line in axes.get_lines() if str(line.get_label()).startswith("test")]
    assert line.get_markersize() > 0


def test_epochs_are_counted_by_the_records_where_they_say_so() -> None:
    figure = pictures.learning_curves([{"epoch": 7, "lr": 0.1}, {"epoch": 8, "lr": 0.2}])
    np.testing.assert_array_equal(figure.axes[0].get_lines()[0].get_xdata(), [7, 8])


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_breaks_the_line_and_is_marked(broken: float) -> None:
    records = history("train", "test")
    records[4]["train/loss"] = broken
    figure = pictures.learning_curves(records)
    pixels(figure)
    axes = panel(figure, "Loss")
    assert np.isnan(lines(axes)["train"][4, 1])
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == [[5]]
    assert any("not finite" in text for text in texts(figure))


def test_curves_with_nothing_finite_are_still_drawn() -> None:
    figure = pictures.learning_curves([{"train/loss": float("nan"), "train/acc": float("nan")}])
    assert pixels(figure).size


def test_ticks_of_the_epochs_are_whole_numbers() -> None:
    for count in (1, 2, 3, EPOCHS):
        figure = pictures.learning_curves(history("train")[:count])
        pixels(figure)
        ticks = figure.axes[0].get_xticks()
        assert len(ticks) >= 1
        assert all(tick == round(tick) for tick in ticks)


def test_the_last_epochs_can_be_told_apart_though_the_first_was_far_off() -> None:
    """99.2 and 99.5 % lie at least a twentieth of the panel apart, with 60 % in the same panel."""
    figure = pictures.learning_curves([{"test/acc": value} for value in (0.6, 0.98, 0.992, 0.995)])
    pixels(figure)
    axes = panel(figure, "Accuracy")
    _, height = axes.transData.transform([(3, 99.5), (3, 99.2)]).T
    assert height[0] - height[1] > axes.get_window_extent().height / 20


@pytest.mark.parametrize("accuracies", [[0.5, 0.999, 1.0], [1.0, 1.0], [1.0], [0.0, 1.0], [0.0]])
def test_every_accuracy_lies_inside_its_panel(accuracies: list[float]) -> None:
    figure = pictures.learning_curves([{"train/acc": value} for value in accuracies])
    pixels(figure)
    axes = panel(figure, "Accuracy")
    points = axes.transData.transform([(1, 100 * value) for value in accuracies])
    frame = axes.get_window_extent()
    assert np.isfinite(points).all()
    assert (points[:, 1] >= frame.y0 - 1).all() and (points[:, 1] <= frame.y1 + 1).all()
    assert axes.get_ylim()[1] <= 100


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([0.5, 0.02], False, "log"),
        ([0.5, 0.1], False, "linear"),
        ([0.5, 0.0], False, "linear"),
        ([0.5, -1.0], False, "linear"),
        ([float("nan"), 0.5], False, "linear"),
        ([], False, "linear"),
        ([83.0, 99.5], True, "log"),
        ([83.0, 99.5, 100.0], True, "log"),
        ([83.0, 100.0], True, "linear"),
        ([10.0, 60.0], True, "linear"),
    ],
)
def test_an_axis_is_spaced_by_its_values(values: list[float], percent: bool, expected: str) -> None:
    assert pictures.spacing(np.array(values, dtype=np.float64), percent=percent) == expected


def test_a_confusion_matrix_has_the_true_class_in_rows() -> None:
    counts = np.zeros((10, 10), np.int64)
    counts[3, 5] = 17
    axes = pictures.confusion_matrix(counts).axes[0]
    (cell,) = [text for text in axes.texts if text.get_text() == "17"]
    column, row = cell.get_position()
    assert (row, column) == (3, 5)
    assert axes.get_ylabel() == "true class"
    assert axes.get_xlabel() == "predicted class"
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first class is the top row"


@pytest.mark.parametrize("scale", [1, 60, 7_000])
def test_every_count_is_written_and_fits_its_cell(scale: int) -> None:
    counts = np.random.default_rng(0).integers(0, 15, (10, 10)) * scale
    np.fill_diagonal(counts, 980 * scale)
    figure = pictures.confusion_matrix(counts)
    pixels(figure)
    axes = figure.axes[0]
    written = {
        (int(text.get_position()[1]), int(text.get_position()[0])): text
        for text in axes.texts
        if text.get_position()[0] in range(10) and text.get_position()[1] in range(10)
    }
    for (row, column), count in np.ndenumerate(counts):
        if count == 0 and row != column:
            assert (row, column) not in written
            continue
        text = written[row, column]
        assert text.get_text() == str(count)
        box = text.get_window_extent().transformed(axes.transData.inverted())
        assert abs(box.x1 - box.x0) < 1
        assert text.get_fontsize() >= 6


def test_a_confusion_matrix_states_accuracy_recall_and_precision() -> None:
    counts = np.diag(np.full(10, 8))
    counts[0, 1] = 2
    shown = texts(pictures.confusion_matrix(counts))
    assert "80 of 82 test images right (97.56 %)" in shown
    assert shown.count("80.0 %") == 2  # class 0 is found 8 times of 10, and 8 of 10 ones are ones
    assert shown.count("100.0 %") == 18


def test_a_class_that_never_occurs_has_a_dash() -> None:
    assert texts(pictures.confusion_matrix(np.zeros((10, 10), np.int64))).count("–") == 20


def test_mistakes_are_drawn_as_they_are_the_most_confident_first() -> None:
    images, true, predicted, confidence = mistakes(12)
    figure = pictures.misclassified_grid(images, true, predicted, confidence)
    drawn = pixels(figure)
    order = np.argsort(-confidence)
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions[0::2] == [f"{true[i]}→{predicted[i]}" for i in order]
    assert captions[1::2] == [f"{100 * confidence[i]:.0f} %" for i in order]
    for place, index in enumerate(order):
        rows, columns = place_of(place // 10, place % 10, top=132, row_height=158)
        seen = drawn[rows, columns][2:112:4, 2::4, 0]  # one pixel of each magnified one
        np.testing.assert_allclose(seen[INNER, INNER], 255 - images[index][INNER, INNER], atol=1)


def test_no_mistakes_are_said_in_words() -> None:
    shown = texts(pictures.misclassified_grid(*mistakes(0)))
    assert "Every image was classified correctly." in shown


def test_of_many_mistakes_sixty_are_shown_and_all_counted() -> None:
    figure = pictures.misclassified_grid(*mistakes(1234))
    assert len(figure.axes[0].images) == 60
    assert any("60 of 1,234 mistakes" in text for text in texts(figure))


def test_a_confidence_that_is_not_a_number_is_a_dash_and_comes_last() -> None:
    images, true, predicted, confidence = mistakes(3)
    confidence[1] = np.nan
    figure = pictures.misclassified_grid(images, true, predicted, confidence)
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions == ["2→3", "90 %", "0→1", "30 %", "1→2", "–"]


def test_augmentation_shows_the_original_first_and_frames_what_changed() -> None:
    before = digits(3)
    after = np.repeat(before[:, None], 4, axis=1)
    after[1, 2] = digits(1, seed=9)[0]
    figure = pictures.augmentation_grid(before, after)
    drawn = pixels(figure)
    for row in range(3):
        for column in range(5):
            rows, columns = place_of(row, column, top=166, row_height=128, apart=28)
            seen = drawn[rows, columns][2:112:4, 2::4, 0]
            expected = before[row] if column == 0 else after[row, column - 1]
            np.testing.assert_allclose(seen[INNER, INNER], 255 - expected[INNER, INNER], atol=1)
    blue = [patch for patch in figure.axes[0].patches if patch.get_linewidth() > 1.5]
    assert len(blue) == 1
    assert any("1 of 12 draws" in text for text in texts(figure))
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["original", "draw 1"]


def test_the_arguments_are_not_changed() -> None:
    before, after = digits(2), digits(4).reshape(2, 2, 28, 28)
    counts = np.arange(100).reshape(10, 10)
    arrays = [before, after, counts, *mistakes(4)]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    pictures.augmentation_grid(before, after)
    pictures.confusion_matrix(counts)
    pictures.misclassified_grid(*arrays[3:])
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
