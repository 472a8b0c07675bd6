import numpy as np
import pytest

from helpers.monitoring.window import Window


def rows(count):
    return [{"time": float(i), "seconds": i / 1000, "class_index": i % 10, "confidence": 0.5} for i in range(count)]


def test_a_window_is_summed_up_after_its_interval_and_begins_anew():
    window = Window(interval_s=60)
    due = [window.add(row) for row in rows(61)]
    assert due == [False] * 60 + [True]
    values = window.summarise()
    assert values["Window/Prediction Time p50"] == pytest.approx(0.030)
    assert values["Window/Prediction Time p99"] == pytest.approx(np.percentile(np.arange(61) / 1000, 99))
    assert values["Window/Predictions per Second"] == pytest.approx(61 / 60)
    assert values["Window/Classes"].histogram[:11] == [7, *[6] * 9, 0]
    assert window.add(rows(62)[-1]) is False


def test_reports_go_along_as_numbers_and_drift_rings_once():
    window = Window(interval_s=0)
    drift = {"verdict": "drift", "samples": 70, "log10_capital": {"energy": 3.5}, "scores": ["energy"], "known": True}
    alerts = []
    for report in (drift | {"verdict": "stable"}, drift, drift, drift | {"verdict": "stable"}, drift):
        window.add(rows(1)[0])
        values = window.summarise(report, {"accuracy": 0.5})
        alerts.append(len(window.alerts()))
    assert {name: value for name, value in values.items() if not name.startswith("Window/")} == {
        "Drift/samples": 70,
        "Drift/log10_capital/energy": 3.5,
        "Accuracy/accuracy": 0.5,
    }
    assert alerts == [0, 1, 0, 0, 1]
