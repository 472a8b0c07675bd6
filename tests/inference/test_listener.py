"""Listeners are told of every batch and every failure, and cannot harm the answers or each other."""

import numpy as np
import pytest
from conftest import make_bundle
from held_model import HeldModel, wait_until

from helpers.inference.engine import ModelRejected
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


class Notes:
    def __init__(self):
        self.batches, self.failures = [], []

    def answered(self, batch):
        self.batches.append(batch)

    def failed(self, version, error):
        self.failures.append((version, error))


class Broken:
    def answered(self, batch):
        raise RuntimeError("deaf")

    failed = answered


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(make_bundle(tmp_path_factory.mktemp("listener") / "bundle").path)


@pytest.fixture
def predictor(model):
    predictor = Predictor(model)
    yield predictor
    predictor.close()


def test_a_listener_is_told_of_each_batch_until_it_is_removed(predictor, model, caplog):
    notes = Notes()
    for listener in (Broken(), notes):
        predictor.listeners.add(listener)
    answers = predictor.submit_many(IMAGES).result(10)
    wait_until(lambda: notes.batches)
    (batch,) = notes.batches
    assert (batch.images == IMAGES).all()
    np.testing.assert_array_equal(batch.probabilities, [answer.probabilities for answer in answers])
    assert batch.version == model.version
    assert 0 < batch.seconds < 10
    assert "a listener failed; the answers were given" in caplog.text
    predictor.listeners.remove(notes)
    predictor.submit_many(IMAGES).result(10)
    predictor.close()
    assert len(notes.batches) == 1


def test_a_listener_is_told_which_version_failed(predictor, model):
    class Insane(HeldModel):
        version = "insane"

        def predict(self, images, *, shared=False):
            raise ModelRejected("not finite")

    notes = Notes()
    predictor.listeners.add(notes)
    predictor.swap(Insane(model))
    assert predictor.submit(IMAGES[0]).result(10).version == model.version
    predictor.close()
    assert [(version, str(error)) for version, error in notes.failures] == [("insane", "not finite")]
    assert [batch.version for batch in notes.batches] == [model.version]


def test_a_failure_without_a_way_back_is_told_too(model):
    class Broke(HeldModel):
        def predict(self, images, *, shared=False):
            raise RuntimeError("out of memory")

    notes, predictor = Notes(), Predictor(Broke(model))
    predictor.listeners.add(notes)
    with pytest.raises(RuntimeError, match="out of memory"):
        predictor.submit(IMAGES[0]).result(10)
    predictor.close()
    assert [(version, str(error)) for version, error in notes.failures] == [(model.version, "out of memory")]
