import gc
from concurrent.futures import wait

import numpy as np
import pytest
from conftest import make_bundle

from helpers.delivery import events
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.monitoring import drift_reference
from helpers.monitoring.drift_reference import DriftReferenceError
from helpers.monitoring.scores import NAMES
from helpers.monitoring.watch import Watch, make_detector, make_monitor


def predict(model, count=20):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)
    predictor = Predictor(model)
    try:
        futures = [predictor.submit(image) for image in images]
        wait(futures)
        return [future.result() for future in futures]
    finally:
        predictor.close()


@pytest.fixture
def model(tmp_path):
    return load_model(make_bundle(tmp_path / "bundle").path)


def test_the_reference_in_a_bundle_makes_a_detector_and_a_monitor_of_its_model(model):
    watch = Watch(make_detector, make_monitor)

    scores = watch.look(model.bundle, predict(model))

    assert tuple(scores) == NAMES
    reports = watch.reports()
    assert reports["drift"]["images"] == 20
    assert reports["accuracy"]["predictions"] == 20
    assert reports["accuracy"]["card"] == 0.4


def test_the_reference_is_read_once_for_both_and_anew_where_nobody_watches(model, monkeypatch):
    read, reads = drift_reference.read_reference, []
    monkeypatch.setattr(drift_reference, "read_reference", lambda bundle: reads.append(bundle) or read(bundle))

    for expected in (1, 2):
        watch = Watch(make_detector, make_monitor)
        watch.look(model.bundle, predict(model, 3))
        assert len(reads) == expected
        del watch
        gc.collect()


def test_a_model_that_takes_over_is_watched_anew(model, tmp_path):
    other = load_model(make_bundle(tmp_path / "other", seed=1).path)
    watch = Watch(make_detector, make_monitor)
    watch.look(model.bundle, predict(model))

    watch.look(other.bundle, predict(other, 5))

    assert watch.reports()["drift"]["images"] == 5


def test_a_version_that_is_loaded_again_is_watched_on(model):
    watch = Watch(make_detector, make_monitor)
    watch.look(model.bundle, predict(model))
    again = load_model(model.bundle.path)

    watch.look(again.bundle, predict(again, 5))

    assert watch.reports()["drift"]["images"] == 25


def test_feedback_counts_for_the_model_that_serves_alone(model):
    watch = Watch(make_detector, make_monitor)
    watch.look(model.bundle, predict(model))

    watch.labelled(model.version, True, 0.5)
    watch.labelled("another version", False, 0.5)

    assert watch.reports()["accuracy"]["labels"] == 1
    assert watch.reports()["accuracy"]["accuracy"] == 1


def test_a_bundle_without_such_a_reference_is_served_and_not_watched(tmp_path, caplog):
    model = load_model(make_bundle(tmp_path / "old", reference={"confidence": np.ones(3, np.float32)}).path)
    with pytest.raises(DriftReferenceError):
        make_detector(model.bundle)
    watch = Watch(make_detector, make_monitor)

    scores = watch.look(model.bundle, predict(model))

    assert "brightness" in scores
    assert watch.reports() == {}
    assert "could not be followed" in caplog.text


def test_the_first_alarm_of_a_version_is_an_event_and_no_more(model):
    seen = []
    events.observers.append(seen.append)
    watch, predictions = Watch(make_detector), predict(model, 60)
    try:
        for _ in range(3):
            watch.look(model.bundle, predictions)
    finally:
        events.observers.remove(seen.append)

    assert watch.reports()["drift"]["verdict"] == "drift"
    (event,) = seen
    assert (event.kind, event.name, event.version) == ("drift", "tiny", model.version)
    assert event.data["report"]["alarm"] <= 60
    assert event.data["report"]["scores"]
