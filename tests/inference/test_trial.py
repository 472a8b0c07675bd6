"""When a new version is worse than the one before: by a margin, over enough answers, and never by noise."""

import weakref

import numpy as np
import pytest

from helpers.inference.engine import ModelRejected
from helpers.inference.listener import Batch
from helpers.inference.trial import REMEMBERED, Record, Rule, Scorebook

GOOD = Record(seconds=(0.01,) * 20, confidences=(0.8, 0.6) * 50)


def record(seconds=0.01, batches=20, confidence=0.7, answers=100, failed=0):
    return Record((seconds,) * batches, (confidence + 0.1, confidence - 0.1) * (answers // 2), failed)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (record(failed=3), "3 of 23 batches failed"),
        (record(batches=0, answers=0, failed=3), "3 of 3 batches failed"),
        (record(seconds=0.05), "an image takes 50.0 ms, 10.0 ms before"),
        (record(confidence=0.5), "the mean confidence is 0.500, 0.700 before"),
    ],
)
def test_what_is_worse_is_said_in_a_sentence(now, reason):
    assert Rule().judge(GOOD, now) == reason


@pytest.mark.parametrize(
    "now",
    [
        GOOD,
        Record(),
        record(failed=2),
        record(batches=500, failed=3),
        record(seconds=0.019),
        record(seconds=0.029),
        record(seconds=0.5, batches=9),
        record(confidence=0.61),
        record(confidence=0.1, answers=28),
        record(confidence=0.9),
    ],
)
def test_what_is_not_much_worse_or_not_known_well_enough_goes_on(now):
    assert Rule().judge(GOOD, now) == ""


def test_a_slow_image_in_many_is_not_a_slow_version():
    assert Rule().judge(GOOD, Record((0.01,) * 12 + (5.0,) * 8, GOOD.confidences)) == ""


def test_without_a_record_of_the_version_before_only_failures_count():
    assert Rule().judge(Record(), record(seconds=5, confidence=0.1)) == ""
    assert Rule().judge(Record(), record(failed=5)) == "5 of 25 batches failed"


def test_two_samples_of_the_same_answers_are_hardly_ever_told_apart():
    random, alarms = np.random.default_rng(0), 0
    for _ in range(300):
        before, now = (tuple(random.beta(2, 1, 30)) for _ in range(2))
        alarms += bool(Rule().judge(Record((0.01,), before), Record((0.01,), now)))
    assert alarms == 0


def batch(version, images=4, seconds=0.02, confidence=0.75):
    probabilities = np.full((images, 2), 1 - confidence, np.float32)
    probabilities[:, 1] = confidence
    return Batch(np.zeros((images, 32, 32, 3), np.uint8), probabilities, version, seconds)


def test_a_scorebook_keeps_versions_apart():
    book, error = Scorebook(), RuntimeError("no memory")
    book.answered(batch("a"))
    book.answered(batch("b", images=2, confidence=0.5))
    book.failed("b", error)
    assert book.record("a") == Record((0.005,), (0.75,) * 4)
    assert book.record("b") == Record((0.01,), (0.5,) * 2, failed=1)
    assert (book.error("a"), book.error("c")) == (None, None)
    assert (type(book.error("b")), str(book.error("b"))) == (RuntimeError, "no memory")
    book.forget("b")
    assert book.record("b") == Record()


def test_a_scorebook_does_not_grow():
    book = Scorebook()
    for number in range(3 * REMEMBERED):
        book.answered(batch(str(number // REMEMBERED), images=2))
    assert len(book.record("2").seconds) == len(book.record("2").confidences) == REMEMBERED
    for number in range(20):
        book.answered(batch(f"version {number}"))
    assert book.record("2") == Record()
    assert book.record("version 19").confidences


def test_failures_are_of_the_same_batches_as_successes():
    book = Scorebook()
    for _ in range(20):
        book.failed("a", RuntimeError("no memory"))
    assert book.record("a").failed == 20
    for _ in range(REMEMBERED):
        book.answered(batch("a"))
    assert (book.record("a").failed, len(book.record("a").seconds)) == (0, REMEMBERED)


def test_the_versions_that_answered_last_are_known():
    book = Scorebook()
    for version in ("good", "a", "good", "b", "good", "c", "good", "d"):
        book.answered(batch(version))
    assert len(book.record("good").seconds) == 4
    assert book.record("a") == Record()


def test_an_error_is_kept_without_what_was_under_way():
    class Model:
        def fail(self):
            raise ModelRejected("probabilities must be finite")

    book, model = Scorebook(), Model()
    gone = weakref.ref(model)
    try:
        model.fail()
    except ModelRejected as error:
        book.failed("a", error)
    del model
    assert gone() is None
    assert isinstance(book.error("a"), ModelRejected)
    assert str(book.error("a")) == "probabilities must be finite"
