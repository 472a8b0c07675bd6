"""Figures of what was monitored: labelled, and with the numbers they were given."""

import io

import numpy as np
import pytest
from PIL import Image

from helpers.monitoring import alarm_figures as figures
from helpers.monitoring.scores import NAMES

RANDOM = np.random.default_rng(0)
SURPRISE = RANDOM.exponential(size=60)
HISTORY = (np.arange(61), RANDOM.normal(size=(61, 8)).cumsum(axis=0) / 5)
BOUNDS = np.stack([np.full(50, 0.4), np.linspace(0.5, 0.6, 50), np.full(50, 0.7)], axis=1)
EFFECTS = {name: dict(zip(NAMES, RANDOM.uniform(-0.5, 0.5, 8), strict=True)) for name in ("since", "fog 3")}
TIMES = 1_767_225_600 + 600.0 * np.arange(60)  # ten hours from midnight on

FIGURES = {
    "alarm": lambda: figures.plot_alarm(SURPRISE, HISTORY, 800, 31, 40, "title"),
    "no alarm": lambda: figures.plot_alarm(SURPRISE[:5], HISTORY, 800, None, None, "title"),
    "accuracy": lambda: figures.plot_accuracy(np.arange(1, 51), BOUNDS, 0.65, 31, None, "title"),
    "effects": lambda: figures.plot_effects(EFFECTS, "title"),
    "shares": lambda: figures.plot_shares(("a", "b"), {"x": np.array([0.2, 0.8])}, "title"),
    "hours": lambda: figures.plot_hours(TIMES, SURPRISE, 31, 40, "title"),
    "one moment": lambda: figures.plot_hours(TIMES[:1], SURPRISE[:1], None, None, "title"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_has_a_title_and_labelled_axes_and_can_be_drawn(name):
    figure = FIGURES[name]()
    assert "title" in [figure.get_suptitle(), *(axis.get_title() for axis in figure.axes)]
    for axis in figure.axes:
        assert axis.get_xlabel() or axis.get_ylabel()
    figure.savefig(file := io.BytesIO(), format="png")
    assert np.asarray(Image.open(file).convert("L")).std() > 1  # something is on it


def places(axes):
    """Where vertical lines stand."""
    return [
        line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 2 and len(set(line.get_xdata())) == 1
    ]


def test_the_change_and_the_alarm_stand_where_they_were_over_surprise_and_evidence():
    above, below = FIGURES["alarm"]().axes
    assert places(above) == places(below) == [31, 40]
    np.testing.assert_allclose(above.lines[0].get_ydata(), SURPRISE)
    np.testing.assert_allclose(above.lines[1].get_ydata()[0], SURPRISE[:20].mean())
    np.testing.assert_allclose(below.lines[0].get_ydata(), HISTORY[1].max(axis=1))
    np.testing.assert_allclose(below.lines[1].get_ydata(), np.log10(800))


def test_accuracy_is_shown_in_per_cent_beside_the_cards():
    (axes,) = FIGURES["accuracy"]().axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 100 * BOUNDS[:, 1])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 65)
    assert places(axes) == [31]


def test_each_effect_is_a_bar_of_its_height():
    (axes,) = FIGURES["effects"]().axes
    heights = [patch.get_height() for patch in axes.patches]
    np.testing.assert_allclose(heights, [*EFFECTS["since"].values(), *EFFECTS["fog 3"].values()])
    assert [label.get_text() for label in axes.get_xticklabels()] == list(NAMES)


def test_shares_are_bars_in_per_cent():
    (axes,) = FIGURES["shares"]().axes
    np.testing.assert_allclose([patch.get_width() for patch in axes.patches], [20, 80])


def test_surprise_is_averaged_by_the_hour_of_the_day():
    _, right = FIGURES["hours"]().axes
    means = [patch.get_height() for patch in right.patches]
    np.testing.assert_allclose(means, [*SURPRISE.reshape(10, 6).mean(axis=1), *[0] * 14])
