"""`recorder`: predictions go from the answers to the log, and no trouble on the way reaches a request."""

import json
import time
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import make_bundle
from held_model import wait_until
from observers import Accuracy, Detector

from helpers.data.image_statistics import describe_images
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.monitoring.feedback import LabelConflict, UnknownRequest, WrongPosition
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.metrics import Metrics
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.recorder import Recorder
from helpers.monitoring.watch import Watch

IMAGES = np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorder")
    return [load_model(make_bundle(folder / str(seed), seed).path) for seed in (0, 1)]


@pytest.fixture(scope="module")
def answers(models):
    """Of each of two models to the images: lists of predictions."""
    found = []
    for model in models:
        predictor = Predictor(model)
        found.append(predictor.submit_many(IMAGES).result(10))
        predictor.close()
    return found


@pytest.fixture
def log(tmp_path):
    log = PredictionLog(tmp_path / "predictions.db", keep_images=True)
    yield log
    log.close()


def rows(log):
    with LogReader(log.path) as reader:
        return reader.rows()


def test_a_prediction_becomes_a_row_with_all_there_is_to_know(log, answers, models):
    recorder, before = Recorder(log), time.time()
    with recorder.running():
        recorder.put("one", answers[0][:1], 0.25)
        recorder.put("many", answers[0][1:4], 0.5)
    assert recorder.waiting == 0
    found, statistics = rows(log), describe_images(IMAGES)
    assert [(row["request_id"], row["position"]) for row in found] == [
        ("one", 0),
        ("many", 0),
        ("many", 1),
        ("many", 2),
    ]
    for number, (row, prediction) in enumerate(zip(found, answers[0], strict=False)):
        assert before <= row["time"] <= time.time()
        assert (row["model"], row["version"]) == ("tiny", models[0].version)
        assert (row["class_index"], row["class_name"]) == (prediction.class_index, prediction.class_name)
        assert row["confidence"] == prediction.confidence
        assert row["image"] == IMAGES[number].tobytes()
        order = np.argsort(-prediction.probabilities, kind="stable")[:5]
        top = {f"class_{index:02d}": pytest.approx(prediction.probabilities[index], rel=1e-5) for index in order}
        assert json.loads(row["top"]) == top
        assert list(json.loads(row["top"])) == list(top)
        assert json.loads(row["scores"]) == {
            name: pytest.approx(values[number], rel=1e-4) for name, values in statistics.items()
        }
    assert [row["seconds"] for row in found] == [0.25, 0.5, 0.5, 0.5]
    assert found[3]["average_seconds"] == pytest.approx(1.75 / 4)
    assert found[3]["average_index"] == pytest.approx(np.mean([row["class_index"] for row in found]))


def test_each_model_gets_a_detector_of_its_own_and_its_scores_are_logged(log, answers, models):
    recorder = Recorder(log, watch=Watch(Detector, Accuracy), interval_s=0.01)
    with recorder.running():
        for predictions in (answers[0], answers[1][:2], answers[1][2:]):
            recorder.put("x", predictions, 0.1)
    assert [json.loads(row["scores"]) for row in rows(log)] == [{"number": n} for n in (*range(6), *range(6))]
    report = {"verdict": "stable", "version": models[1].version, "samples": 6}
    assert recorder.watch.reports() == {"drift": report, "accuracy": {"told": 6}}
    with LogReader(log.path) as reader:
        assert (reader.report("drift"), reader.report("accuracy")) == (report, {"told": 6})


@pytest.mark.parametrize(("count", "goes"), [(5, [5]), (30, [12, 12, 6]), (2400, [100] * 24)])
def test_answers_are_counted_in_few_goes_between_which_requests_have_the_interpreter(answers, count, goes):
    sizes, recorder = [], Recorder(interval_s=10)
    look = recorder.watch.look
    recorder.watch.look = lambda model, predictions: sizes.append(len(predictions)) or look(model, predictions)
    with recorder.running():
        for _ in range(count):
            recorder.put("x", answers[0][:1], 0.1)
        started = time.monotonic()
        assert recorder.flush()
    assert sizes == goes
    assert time.monotonic() - started >= 0.002 * len(goes)


@pytest.mark.parametrize("fault", ["fails", "nan"])
def test_a_detector_that_fails_or_gives_no_numbers_costs_its_scores_and_nothing_else(log, answers, caplog, fault):
    class Bad(Detector):
        def update(self, images, scores):
            if fault == "fails":
                raise RuntimeError("no reference")
            return {"number": np.full(len(images), np.nan)}

    with (recorder := Recorder(log, watch=Watch(Bad), interval_s=0.01)).running():
        for _ in range(3):
            recorder.put("x", answers[0], 0.1)
            wait_until(lambda: not recorder.waiting)
    assert len(rows(log)) == 18
    assert "brightness" in json.loads(rows(log)[0]["scores"])
    assert caplog.messages.count("drift or accuracy could not be followed; predictions and their log go on") == 1


def test_a_full_disk_makes_predictions_wait_and_the_overflow_is_counted_and_said_once(log, answers, caplog):
    recorder = Recorder(log, capacity=20, interval_s=0.01)
    pages = log._connection.execute("PRAGMA page_count").fetchone()[0]
    log._connection.execute(f"PRAGMA max_page_count = {pages}")
    with recorder.running():
        for _ in range(10):
            recorder.put("x", answers[0], 0.1)
            time.sleep(0.02)
        assert (recorder.waiting, recorder.lost) == (18, 42)
        log._connection.execute("PRAGMA max_page_count = 100000")
        wait_until(lambda: not recorder.waiting)
        recorder.put("after", answers[0], 0.1)
    assert len(rows(log)) == 24
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the prediction log takes no rows now; they wait, and predictions go on",
        "the prediction log is slower than the predictions; from here on some are not in it",
    ]


def test_feedback_for_a_prediction_that_still_waits_is_found_and_kept(log, answers):
    recorder = Recorder(log, watch=Watch(make_monitor=Accuracy), interval_s=60)
    with recorder.running():
        recorder.put("one", answers[0][:1], 0.1)
        prediction = answers[0][0]
        kept = recorder.label("one", None, prediction.class_index).result(5)
        assert (kept.right, kept.known, kept.class_name) == (True, False, prediction.class_name)
        assert recorder.watch.monitor.told == [prediction.confidence, (True, prediction.confidence)]
        assert recorder.label("one", 0, prediction.class_index).result(5).known
        assert len(recorder.watch.monitor.told) == 2
        with pytest.raises(LabelConflict, match="the first stands"):
            recorder.label("one", None, (prediction.class_index + 1) % 100).result(5)
    with LogReader(log.path) as reader:
        assert reader.labels() == {("one", 0): prediction.class_index}


def test_feedback_for_an_answer_that_came_while_others_were_written_waits_for_it(log, answers, monkeypatch):
    recorder, append, asked = Recorder(log), log.append, []

    def answer_meanwhile(*arguments):
        if not asked:
            recorder.put("two", answers[0][1:2], 0.1)
            asked.append(recorder.label("two", None, 3))
        append(*arguments)

    monkeypatch.setattr(log, "append", answer_meanwhile)
    with recorder.running():
        recorder.put("one", answers[0][:1], 0.1)
        wait_until(lambda: asked)
        assert asked[0].result(5).known is False


def test_feedback_that_was_given_up_is_not_kept(log, answers):
    recorder = Recorder(log, watch=Watch(make_monitor=Accuracy), interval_s=60)
    with recorder.running():
        recorder.put("one", answers[0][:1], 0.1)
        recorder.flush()
        with recorder._trouble:
            future = Future()
            future.cancel()
            recorder._keep(future, ("one", None, 3))
        assert not recorder._trouble.count
        assert not recorder.label("one", None, 4).result(5).known


def test_predictions_of_which_no_rows_can_be_made_count_as_lost(log, answers, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no row")

    monkeypatch.setattr("helpers.monitoring.recorder.make_rows", fail)
    recorder = Recorder(log)
    with recorder.running():
        recorder.put("one", answers[0][:3], 0.1)
        assert recorder.flush()
    assert recorder.lost == 3


def test_feedback_that_names_no_image_is_refused(log, answers):
    recorder = Recorder(log)
    with recorder.running():
        recorder.put("many", answers[0], 0.1)
        for position, error, sentence in (
            (None, WrongPosition, "the request had 6 images; say which with position, 0 to 5"),
            (6, WrongPosition, "position must be one of an image of the request, 0 to 5, got 6"),
        ):
            with pytest.raises(error, match=sentence):
                recorder.label("many", position, 3).result(5)
        with pytest.raises(UnknownRequest, match="there is no request 'other' in the prediction log"):
            recorder.label("other", None, 3).result(5)
    with LogReader(log.path) as reader:
        assert reader.labels() == {}


def test_without_a_log_predictions_are_counted_and_feedback_is_refused(answers):
    metrics = Metrics()
    recorder = Recorder(None, metrics, Watch(Detector))
    with recorder.running():
        recorder.put("x", answers[0], 0.1)
        with pytest.raises(UnknownRequest, match="this server keeps no prediction log; start it with --log"):
            recorder.label("x", 0, 3)
    assert recorder.waiting == recorder.lost == 0
    assert recorder.watch.reports()["drift"]["samples"] == 6
    assert b"suite_confidence_count 6.0" in metrics.render()


def test_putting_takes_no_time_and_does_nothing_outside_its_block(log, answers):
    recorder = Recorder(log, capacity=10_000)
    recorder.put("early", answers[0], 0.1)
    with recorder.running():
        started = time.perf_counter()
        for _ in range(1000):
            recorder.put("x", answers[0], 0.1)
        assert time.perf_counter() - started < 0.5
    recorder.put("late", answers[0], 0.1)
    assert len(rows(log)) == 6000
