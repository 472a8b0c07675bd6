"""Every figure has a title, labelled axes, and shows the numbers it was given."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from helpers import figures
from helpers.data.labels import Labels
from helpers.monitoring.drift_reference import TESTS
from helpers.monitoring.scores import NAMES
from helpers.training.loop import EpochResult

LABELS = Labels(("cat", "dog", "car", "bus"), ("animals", "vehicles"), (0, 0, 1, 1))
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
EPOCHS = [EpochResult(epoch, 32, 4.0 - epoch, 0.1 * epoch, 0.12 * epoch, 100.0, 9.0) for epoch in (1, 2, 3)]
RELIABILITY = np.array([[0, 0, 0], [5, 0.5, 0.4], [9, 0.9, 0.8]], float)
ROWS = [
    {"Prediction Time": 0.002, "Average Prediction Time": 0.003, "Output": i, "Average Output": 1.5} for i in range(9)
]
CAPITAL = (np.arange(30), RANDOM.normal(size=(30, len(TESTS))).cumsum(axis=0).clip(-5, 5) / 5)

FIGURES = {
    "few counts": lambda: figures.plot_counts(("a", "b"), {"train": (5, 3), "test": (1, 2)}, "title"),
    "many counts": lambda: figures.plot_counts([f"c{i}" for i in range(100)], {"train": (5,) * 100}, "title"),
    "pixels": lambda: figures.plot_pixels({"train": np.ones((3, 256)), "test": np.ones((3, 256))}, "title"),
    "training": lambda: figures.plot_training(EPOCHS, "title"),
    "group accuracy": lambda: figures.plot_group_accuracy({"a": 0.2, "b": 0.9}, "title"),
    "confusion": lambda: figures.plot_confusion(np.arange(16).reshape(4, 4), LABELS, "title"),
    "reliability": lambda: figures.plot_reliability(RELIABILITY, RELIABILITY, "title"),
    "metrics": lambda: figures.plot_metrics(ROWS, "title"),
    "capital": lambda: figures.plot_capital(*CAPITAL, 800, 20, "title"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_labelled_axes_and_can_be_drawn(name):
    figure = FIGURES[name]()
    shown = [axis for axis in figure.axes if axis.axison]
    titles = [figure.get_suptitle(), *(axis.get_title() for axis in shown)]
    assert "title" in titles
    for axis in shown:
        assert axis.get_xlabel() or axis.get_ylabel()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert np.asarray(Image.open(file).convert("L")).std() > 1  # something is on it


@pytest.mark.parametrize("count", [1, len(EPOCHS)])
def test_epochs_are_marked_by_whole_numbers_however_few_they_are(count):
    figure = figures.plot_training(EPOCHS[:count], "title")
    for axis in figure.axes:
        low, high = axis.get_xlim()
        marked = [tick for tick in axis.get_xticks() if low <= tick <= high]
        assert marked
        assert all(tick == int(tick) for tick in marked)


def test_bars_are_as_long_as_the_counts():
    figure = FIGURES["few counts"]()
    assert sorted(patch.get_width() for patch in figure.axes[0].patches) == [1, 2, 3, 5]


@pytest.mark.parametrize("classes", [4, 100])
def test_bars_of_the_splits_stand_beside_each_other(classes):
    names = [f"class {number}" for number in range(classes)]
    axes = figures.plot_counts(names, {"train": (5,) * classes, "test": (1,) * classes}, "title").axes[0]
    along = (
        (lambda bar: (bar.get_y(), bar.get_height())) if classes == 4 else (lambda bar: (bar.get_x(), bar.get_width()))
    )
    places = sorted(along(bar) for bar in axes.patches)
    assert len(places) == 2 * classes
    assert all(start + width <= after + 1e-9 for (start, width), (after, _) in itertools.pairwise(places))


def test_samples_are_shown_unchanged_under_their_names():
    figure = figures.plot_samples(IMAGES, list("abcde"), "five", columns=3, notes=list("vwxyz"))
    shown = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in shown] == ["a\nv", "b\nw", "c\nx", "d\ny", "e\nz"]
    np.testing.assert_array_equal([axis.images[0].get_array() for axis in shown], IMAGES)


def test_group_accuracy_is_sorted_and_marks_the_mean():
    axes = figures.plot_group_accuracy({"low": 0.25, "high": 0.75}, "t").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["high", "low"]
    assert axes.get_legend().get_texts()[0].get_text() == "mean 50.0 %"


def test_confusion_sums_classes_into_shares_of_the_true_superclass_and_shows_the_wrong_ones():
    matrix = np.array([[8, 1, 1, 0], [0, 10, 0, 0], [0, 0, 5, 5], [2, 0, 0, 8]])
    drawn = figures.plot_confusion(matrix, LABELS, "t").axes[0].collections[0]
    np.testing.assert_allclose(np.ma.compressed(drawn.get_array()), [5, 10])
    np.testing.assert_array_equal(np.ma.getmaskarray(drawn.get_array()), np.eye(2, dtype=bool))
    assert drawn.get_clim() == (0, 10)


def test_the_loss_is_shown_from_nothing():
    assert figures.plot_training(EPOCHS, "title").axes[0].get_ylim()[0] == 0


def test_times_are_shown_in_milliseconds():
    axes = FIGURES["metrics"]().axes[0]
    assert axes.get_ylabel() == "milliseconds"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 2)


def test_the_capital_of_each_score_is_shown_with_the_line_and_the_alarm():
    images, capital = CAPITAL
    capital = capital.copy()
    capital[-1, TESTS.index("like frost")] = 3
    figure = figures.plot_capital(images, capital, 800, 20, "title")
    *curves, line, alarm = figure.axes[0].lines
    np.testing.assert_allclose([curve.get_ydata() for curve in curves], capital.T)
    np.testing.assert_allclose(line.get_ydata(), np.log10(800))
    assert list(alarm.get_xdata()) == [20, 20]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [*NAMES, "like another corruption", "like frost", "alarm at 800", "alarm rang, image 20"]
