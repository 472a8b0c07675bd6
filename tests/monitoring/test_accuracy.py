"""monitoring/accuracy.py: intervals that always hold, a test seldom wrong, and an estimate that labels mend."""

import json

import numpy as np
import pytest
from conftest import draw_reference

from helpers.monitoring.accuracy import AccuracyMonitor, accuracy_interval


@pytest.fixture(scope="module")
def reference():
    return draw_reference(np.random.default_rng(0))


def test_before_any_answer_nothing_is_said(reference):
    report = AccuracyMonitor(reference, 0.7).report()

    assert (report.verdict, report.predictions, report.labels) == ("not enough data", 0, 0)
    assert (report.accuracy, report.interval, report.estimate, report.estimate_interval) == (None,) * 4


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (7, 10), (700, 1000), (0, 500), (500, 500)])
def test_an_interval_holds_the_share_and_narrows(right, count):
    low, high = accuracy_interval(right, count)

    assert 0 <= low <= right / count <= high <= 1
    assert accuracy_interval(right * 10, count * 10)[1] - accuracy_interval(right * 10, count * 10)[0] < high - low


@pytest.mark.parametrize("truth", [0.3, 0.7, 0.99])
def test_an_interval_misses_the_truth_at_any_time_no_more_often_than_stated(truth):
    random, missed = np.random.default_rng(1), 0

    for _ in range(200):
        right = np.cumsum(random.random(300) < truth)
        bounds = (accuracy_interval(int(right[count - 1]), count) for count in (1, 2, 3, 5, 10, 20, 50, 100, 200, 300))
        missed += any(not low <= truth <= high for low, high in bounds)

    assert missed <= 20  # 10 expected at most; more has less than 1 chance in 1,000


def test_accuracy_as_on_the_card_seldom_counts_as_fallen(reference):
    random, fallen = np.random.default_rng(2), 0

    for _ in range(100):
        monitor = AccuracyMonitor(reference, 0.7, alpha=0.1)
        for correct in random.random(300) < 0.7:
            monitor.labelled(correct, 0.7)
        fallen += monitor.report().verdict == "fallen"

    assert fallen <= 20  # 10 expected at most


@pytest.mark.parametrize("clean", [0, 1000])
def test_a_fall_is_seen_early_or_late_and_stays(reference, clean):
    monitor, random = AccuracyMonitor(reference, 0.7), np.random.default_rng(3)
    for correct in random.random(clean) < 0.7:
        monitor.labelled(correct, 0.7)
    assert monitor.report().verdict != "fallen"

    for correct in random.random(150) < 0.4:
        monitor.labelled(correct, 0.7)
    assert monitor.report().verdict == "fallen"

    for _ in range(2000):
        monitor.labelled(True, 0.7)
    assert monitor.report().verdict == "fallen"


def test_without_labels_the_estimate_is_the_calibrated_confidence_and_has_no_interval(reference):
    monitor = AccuracyMonitor(reference, 0.7)
    monitor.predicted(np.array([0.1, 0.5, 0.9]))

    report = monitor.report()

    assert report.estimate == pytest.approx(0.5, abs=0.04)
    assert (report.estimate_interval, report.verdict) == (None, "not enough data")


def test_labels_correct_an_overconfident_estimate(reference):
    monitor, random = AccuracyMonitor(reference, 0.9), np.random.default_rng(4)
    for index in range(4000):
        monitor.predicted(np.array([0.9]))
        if index % 4 == 0:
            monitor.labelled(random.random() < 0.5, 0.9)

    report = monitor.report()

    low, high = report.estimate_interval
    assert report.estimate == pytest.approx(0.5, abs=0.05)
    assert low < 0.5 < high < 0.7


def test_an_estimate_that_labels_bear_out_has_a_narrower_interval_than_labels_alone(reference):
    monitor, random = AccuracyMonitor(reference, 0.7), np.random.default_rng(5)
    for index in range(8000):
        confidence = random.choice([0.02, 0.98])
        monitor.predicted(np.array([confidence]))
        if index % 4 == 0:
            monitor.labelled(random.random() < confidence, confidence)

    report = monitor.report()

    widths = [high - low for low, high in (report.estimate_interval, report.interval)]
    assert widths[0] < widths[1]
    assert report.estimate_interval[0] < 0.5 < report.estimate_interval[1]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_confidence_outside_0_to_1_is_refused_and_not_counted(reference, value):
    monitor = AccuracyMonitor(reference, 0.7)

    for call in (lambda: monitor.predicted(np.array([0.5, value])), lambda: monitor.labelled(True, value)):
        with pytest.raises(ValueError, match=f"confidence must be from 0 to 1, got {value}"):
            call()

    assert (monitor.report().predictions, monitor.report().labels) == (0, 0)


@pytest.mark.parametrize("name", ["card", "alpha"])
@pytest.mark.parametrize("value", [0, 1, 1.5, float("nan")])
def test_card_and_alpha_must_lie_between_0_and_1(reference, name, value):
    with pytest.raises(ValueError, match=f"{name} must be above 0 and below 1, got {value}"):
        AccuracyMonitor(reference, **{"card": 0.7, "alpha": 0.01} | {name: value})


def test_a_report_is_json(reference):
    monitor = AccuracyMonitor(reference, 0.7)
    monitor.predicted(np.array([0.5]))
    monitor.labelled(True, 0.5)

    assert json.loads(json.dumps(monitor.report().as_dict()))["labels"] == 1
