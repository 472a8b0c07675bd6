"""`running_statistics`: the five scalars against plain NumPy."""

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.monitoring.running_statistics import SCALARS, RunningStatistics


def test_the_scalars_bear_exactly_the_names_of_the_dashboards():
    assert list(RunningStatistics().update(0.25, 7)) == [
        "Prediction Time",
        "Average Prediction Time",
        "Output",
        "Average Output",
        "Most Occurring Output",
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 99)), min_size=1, max_size=60))
def test_averages_and_mode_cover_the_whole_runtime(rows):
    statistics = RunningStatistics()
    for number, (seconds, index) in enumerate(rows, start=1):
        scalars = statistics.update(seconds, index)
        times, outputs = (np.array(column) for column in zip(*rows[:number], strict=True))
        expected = (seconds, times.mean(), index, outputs.mean(), np.bincount(outputs).argmax())
        assert tuple(scalars.values()) == pytest.approx(expected)


def test_on_a_tie_the_smaller_index_is_the_most_occurring():
    statistics = RunningStatistics()
    modes = [statistics.update(0, index)["Most Occurring Output"] for index in (9, 4, 9, 4, 4, 9, 2)]
    assert modes == [9, 4, 9, 4, 4, 4, 4]


def test_scalars_are_plain_numbers_whatever_the_input():
    scalars = RunningStatistics().update(np.float32(0.5), np.int64(3))
    assert [type(value) for value in scalars.values()] == [float, float, int, float, int]


@pytest.mark.parametrize(
    ("seconds", "index", "sentence"),
    [
        (-0.1, 0, "seconds: expected a finite number of at least 0, got -0.1"),
        (math.nan, 0, "seconds: expected a finite number of at least 0, got nan"),
        (0.1, 100, "class_index: expected 0 to 99, got 100"),
        (0.1, -1, "class_index: expected 0 to 99, got -1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_not_counted(seconds, index, sentence):
    statistics = RunningStatistics()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the sentence is compared below
        statistics.update(seconds, index)
    assert str(caught.value) == sentence
    assert statistics.update(1.0, 5) == dict(zip(SCALARS, (1.0, 1.0, 5, 5.0, 5), strict=True))


def test_memory_does_not_grow_with_the_number_of_predictions():
    statistics = RunningStatistics()
    size = lambda: sum(map(sys.getsizeof, vars(statistics).values()))  # noqa: E731
    for index in range(100):
        statistics.update(0.01, index)
    before = size()
    for index in range(10_000):
        statistics.update(0.01, index % 100)
    assert size() - before < 100
