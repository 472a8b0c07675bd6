"""`diagnosis`: a stream is judged as the server judged it, and what changed is dated, measured and named."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import draw_reference, draw_rows

from helpers.data.corruptions import CORRUPTIONS
from helpers.monitoring.diagnosis import diagnose
from helpers.monitoring.drift import DriftDetector
from helpers.monitoring.scores import NAMES
from helpers.monitoring.stream import UNKNOWN, Stream


@pytest.fixture(scope="module")
def reference():
    return draw_reference(np.random.default_rng(10**6), count=2000)


def draw_stream(before, since=0, *, told=False, right=0.95, **shifts):
    """A stream whose scores are moved by `shifts` after `before` images; then only `right` of the labels agree."""
    count, random = before + since, np.random.default_rng(7)
    rows = draw_rows(random, count)
    for name, shift in shifts.items():
        rows[before:, NAMES.index(name)] += shift
    answers = rows[:, 0].round().clip(0, 99).astype(int)
    agree = random.random(count) < np.where(np.arange(count) < before, 0.95, right)
    labels = np.where(agree, answers, (answers + 1) % 100) if told else np.full(count, UNKNOWN)
    numbers, confidences = np.arange(1, count + 1), np.full(count, 0.7)
    about = (Path("predictions.db"), "tiny", "v1", (), True, 0, None)
    return Stream(*about, numbers, 1e9 + numbers, answers, labels, confidences, rows, np.zeros(count, bool))


def test_the_verdict_is_that_of_a_detector_that_saw_the_images(reference):
    stream = draw_stream(300, 60, brightness=1.5)
    found, detector = diagnose(stream, reference, 0.7), DriftDetector(reference)
    detector.update_rows(stream.scores, stream.answers)

    assert found.drift == detector.report()
    assert (found.verdict, found.fell) == ("drift", None)
    assert (found.since, found.alarm) == (found.drift.since, found.drift.alarm)
    assert 290 <= found.since <= 312 < found.alarm <= 345
    np.testing.assert_array_equal(found.history[1], detector.history()[1])
    assert found.line == detector.line


def test_what_moved_is_measured_since_the_change_and_named(reference):
    found = diagnose(draw_stream(300, 100, brightness=1.2), reference, 0.7)

    assert max(found.effects, key=found.effects.get) == "brightness"
    assert 0.2 < found.effects["brightness"] < 0.4
    assert abs(found.effects["contrast"]) < 0.1
    nearest = found.resembles[0]
    assert (nearest.corruption, nearest.severity) == (CORRUPTIONS[0], 3)
    assert 0.6 < nearest.closeness < 1
    assert nearest.moves["brightness"] == pytest.approx(3 / 11, abs=1e-6)
    closeness = [item.closeness for item in found.resembles]
    assert closeness == sorted(closeness, reverse=True)
    assert closeness[-1] > 0


def test_a_change_unlike_all_known_ones_resembles_none(reference):
    assert diagnose(draw_stream(300, 100, brightness=-1.5), reference, 0.7).resembles == ()


def test_surprise_is_one_on_validation_images_and_more_on_others(reference):
    found = diagnose(draw_stream(2000, 200, contrast=2.0), reference, 0.7)
    assert found.surprise[:2000].mean() == pytest.approx(1, abs=0.03)
    assert found.surprise[2000:].mean() > 1.2


def test_surprise_knows_nothing_of_the_order_of_classes(reference):
    stream = draw_stream(200)
    other = replace(stream, scores=np.hstack([np.full((200, 1), 99, np.float32), stream.scores[:, 1:]]))
    np.testing.assert_array_equal(diagnose(stream, reference, 0.7).surprise, diagnose(other, reference, 0.7).surprise)


def test_answers_are_parted_at_the_change(reference):
    stream = draw_stream(300, 60, brightness=1.5)
    found = diagnose(stream, reference, 0.7)
    assert [len(part) for part in found.answered.values()] == [found.since - 1, 361 - found.since]
    np.testing.assert_array_equal(np.concatenate(list(found.answered.values())), stream.answers)


def test_a_stream_that_stays_as_it_was_has_no_change(reference):
    found = diagnose(draw_stream(300), reference, 0.7)
    assert (found.verdict, found.since, found.alarm, found.resembles) == ("stable", None, None, ())
    assert max(abs(value) for value in found.effects.values()) < 0.1
    assert (found.accuracy_since, found.accuracy_before.predictions) == (None, 300)
    assert len(found.answered["since"]) == 0


def test_accuracy_that_falls_is_an_alarm_of_its_own_dated_by_the_labels(reference):
    found = diagnose(draw_stream(300, 200, told=True, right=0.1), reference, 0.9)

    assert found.verdict == "stable, and accuracy fell"
    assert 295 <= found.since <= 306
    assert found.alarm == found.fell
    assert 300 < found.fell < 360
    assert found.accuracy_before.accuracy > 0.9 > 0.5 > found.accuracy_since.accuracy
    assert found.accuracy.labels == 500


def test_accuracy_that_was_never_there_is_dated_to_the_start(reference):
    found = diagnose(draw_stream(0, 100, told=True, right=0.0), reference, 0.9)
    assert (found.since, found.accuracy_before) == (1, None)


def test_it_can_be_written_as_json(reference):
    for stream in (draw_stream(200), draw_stream(200, 60, told=True, sharpness=2.0)):
        found = json.loads(json.dumps(diagnose(stream, reference, 0.7).as_dict()))
        assert found["images"] == len(stream)
        assert found["drift"]["verdict"] in found["verdict"]
