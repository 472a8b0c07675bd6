"""`monitoring`: the five scalars against plain NumPy, and sinks that fail, stall or fall behind."""

import math
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.monitoring import SCALARS, Monitor, RunningStatistics, WandbSink
from helpers.predictor import Prediction

NAMES = tuple(f"class_{i}" for i in range(100))


def prediction(index, confidence=0.5, version="v1"):
    probabilities = np.zeros(100, np.float32)
    probabilities[index] = confidence
    return Prediction(index, NAMES[index], probabilities, NAMES, version, 0.001)


class RecordingRun:
    """Stands in for a W&B run where only what is handed over matters; tests/test_tracking.py reads real ones."""

    def __init__(self, before_log=lambda: None):
        self.rows, self._before_log = [], before_log

    def log(self, scalars):
        self._before_log()
        self.rows.append(scalars)


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
    monitor = Monitor(RunningStatistics(), history=50)
    for index in range(1000):
        monitor.observe(prediction(index % 100), 0.01)
    assert [observation.class_index for observation in monitor.history()] == list(range(50, 100))
    statistics = RunningStatistics()
    size = lambda: sum(map(sys.getsizeof, vars(statistics).values()))  # noqa: E731
    for index in range(100):
        statistics.update(0.01, index)
    before = size()
    for index in range(10_000):
        statistics.update(0.01, index % 100)
    assert size() - before < 100


def test_counts_from_many_threads_add_up_and_reach_the_sink_in_order():
    run = RecordingRun()
    sink = WandbSink(run)
    monitor = Monitor(RunningStatistics(), sink)
    threads = [
        threading.Thread(target=lambda: [monitor.observe(prediction(10), 0.5) for _ in range(200)]) for _ in range(8)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    monitor.observe(prediction(90), 2.1)
    assert monitor.scalars["Average Prediction Time"] == pytest.approx((1600 * 0.5 + 2.1) / 1601)
    assert monitor.scalars["Average Output"] == pytest.approx((1600 * 10 + 90) / 1601)
    assert sink.close() == 0
    assert len(run.rows) == 1601
    assert run.rows[-1] == monitor.scalars


def test_an_observation_keeps_what_the_figures_need():
    monitor = Monitor(RunningStatistics())
    before = time.time()
    monitor.observe(prediction(4, confidence=0.75, version="v9"), 0.125)
    (seen,) = monitor.history()
    assert before <= seen.time <= time.time()
    assert (seen.seconds, seen.class_index, seen.class_name, seen.confidence, seen.version) == (
        0.125,
        4,
        "class_4",
        0.75,
        "v9",
    )


def test_without_a_sink_the_monitor_still_counts():
    monitor = Monitor(RunningStatistics())
    assert monitor.scalars == {}
    monitor.observe(prediction(3), 0.5)
    assert monitor.scalars["Output"] == 3


def test_a_failing_sink_is_logged_once_per_outage_and_never_raised(caplog):
    class Sink:
        broken = True

        def send(self, scalars):
            if self.broken:
                raise ConnectionError("sink is down")

    sink = Sink()
    monitor = Monitor(RunningStatistics(), sink)
    for broken in (True, True, True, False, True):
        sink.broken = broken
        monitor.observe(prediction(1), 0.1)
    assert caplog.messages == ["the monitor's sink failed; predictions go on without it"] * 2
    assert "ConnectionError: sink is down" in caplog.text
    assert len(monitor.history()) == 5


def test_the_sink_logs_the_five_scalars_of_every_prediction():
    run = RecordingRun()
    sink = WandbSink(run)
    monitor = Monitor(RunningStatistics(), sink)
    monitor.observe(prediction(2), 0.5)
    monitor.observe(prediction(6), 1.5)
    assert sink.close() == 0
    assert run.rows == [
        dict(zip(SCALARS, (0.5, 0.5, 2, 2.0, 2), strict=True)),
        dict(zip(SCALARS, (1.5, 1.0, 6, 4.0, 2), strict=True)),
    ]


def test_a_stalled_wandb_neither_blocks_predictions_nor_fills_memory(caplog):
    release = threading.Event()
    run = RecordingRun(before_log=release.wait)
    sink = WandbSink(run, queue_size=5)
    monitor = Monitor(RunningStatistics(), sink)
    started = time.monotonic()
    for _ in range(100):
        monitor.observe(prediction(1), 0.1)
    assert time.monotonic() - started < 1
    assert sink.dropped >= 94  # five wait, and one may be in the thread's hands
    assert caplog.messages == ["W&B falls behind: predictions are not logged there until its queue has room"]
    release.set()
    lost = sink.close()
    assert lost == sink.dropped
    assert len(run.rows) == 100 - lost
    assert caplog.messages[-1] == f"W&B did not get {lost} predictions (queue full, failed or still waiting)"


def test_closing_a_sink_whose_wandb_is_stuck_takes_no_longer_than_the_timeout():
    release = threading.Event()
    sink = WandbSink(RecordingRun(before_log=release.wait), queue_size=2)
    for _ in range(10):
        sink.send({})
    started = time.monotonic()
    assert sink.close(timeout=0.2) >= 9
    assert time.monotonic() - started < 2
    release.set()


def test_what_comes_after_closing_is_counted_as_lost():
    run = RecordingRun()
    sink = WandbSink(run)
    assert sink.close() == 0
    sink.send({"Output": 1})
    assert sink.close() == 1
    assert run.rows == []


def test_a_run_that_raises_is_logged_once_and_counted(caplog):
    def fail():
        raise RuntimeError("run is finished")

    sink = WandbSink(RecordingRun(before_log=fail))
    for _ in range(3):
        sink.send({})
    assert sink.close() == 3
    assert caplog.messages == [
        "W&B did not take a prediction's scalars; later ones are tried again",
        "W&B did not get 3 predictions (queue full, failed or still waiting)",
    ]
    assert "RuntimeError: run is finished" in caplog.text
