"""A candidate beside production: compared on real requests, never answering, never in the way."""

import numpy as np
import pytest
from conftest import make_bundle
from held_model import HeldModel, wait_until

from helpers.client import Client
from helpers.delivery.storage import StorageUnavailable
from helpers.hosting import Server
from helpers.inference.engine import ModelRejected
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.inference.source import ModelSource
from helpers.registry import Registry
from helpers.serving.service import create_app
from helpers.serving.shadow import WAITING, Shadow, shadow

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shadow")
    return [load_model(make_bundle(folder / str(seed), seed).path) for seed in (0, 1, 2)]


@pytest.fixture
def predictor(models):
    predictor = Predictor(models[0])
    yield predictor
    predictor.close()


def beside(predictor, model, **options):
    options = {"share": 1, "poll_s": 0.02} | options
    return Shadow(predictor, lambda: model.version, lambda: model, **options)


def compared(running, predictor, images=IMAGES):
    """The comparison once it holds all `images`."""
    wait_until(lambda: running._model)
    before = running.comparison().images
    for image in images:
        predictor.submit(image).result(10)
    wait_until(lambda: running.comparison().images == before + len(images))
    return running.comparison()


def test_candidate_and_production_are_compared_on_the_same_images(predictor, models):
    with beside(predictor, models[1]) as running:
        found = compared(running, predictor)

    old, new = (model.predict(IMAGES).probabilities for model in models[:2])
    assert (found.candidate, found.production, found.images) == (models[1].version, models[0].version, len(IMAGES))
    assert found.agreement == pytest.approx((old.argmax(1) == new.argmax(1)).mean(), abs=0.051)
    assert found.confidence_candidate == pytest.approx(new.max(1).mean(), abs=0.02)
    assert found.confidence_production == pytest.approx(old.max(1).mean(), abs=0.02)
    assert 0 < found.milliseconds_candidate < 1000
    assert 0 < found.milliseconds_production < 1000
    assert (found.passed_over, found.problem) == (0, "")


def test_after_the_block_the_candidate_sees_nothing_more(predictor, models):
    with beside(predictor, models[1]) as running:
        compared(running, predictor, IMAGES[:3])
    predictor.submit(IMAGES[0]).result(10)
    predictor.close()
    assert running.comparison().images == 3


def test_a_share_of_the_batches_is_taken(predictor, models):
    with beside(predictor, models[1], share=0.2) as running:
        wait_until(lambda: running._model)
        for image in np.concatenate([IMAGES] * 10):
            predictor.submit(image).result(10)
    assert 40 < running.comparison().images < 130  # 80 expected, 5 standard deviations
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 1\.5"):
        beside(predictor, models[1], share=1.5)


def test_the_comparison_begins_anew_when_production_changes(predictor, models):
    with beside(predictor, models[1]) as running:
        compared(running, predictor)
        predictor.swap(models[2])
        for image in IMAGES[:5]:
            predictor.submit(image).result(10)
        wait_until(lambda: running.comparison().production == models[2].version and running.comparison().images == 5)
        predictor.swap(models[1])  # the candidate was promoted
        assert running.comparison() is None


def test_a_candidate_that_served_when_it_was_first_seen_is_compared_once_it_does_not(predictor, models):
    with beside(predictor, models[0]) as running:
        wait_until(lambda: running._version)
        assert running.comparison() is None
        predictor.swap(models[1])
        found = compared(running, predictor, IMAGES[:3])
    assert (found.candidate, found.production) == (models[0].version, models[1].version)


def test_a_slow_candidate_keeps_nobody_waiting(predictor, models):
    held = HeldModel(models[1])
    with beside(predictor, held) as running:
        wait_until(lambda: running._model)
        for image in np.concatenate([IMAGES] * 3):
            predictor.submit(image).result(10)
        wait_until(lambda: running.comparison().passed_over > 0)
        assert running.comparison().passed_over >= 3 * len(IMAGES) - WAITING - 2
        held.gate.set()


def test_a_candidate_that_fails_or_cannot_be_loaded_is_said_and_harms_nobody(predictor, models):
    class Broken(HeldModel):
        def predict(self, images, *, shared=False):
            raise RuntimeError("out of memory")

    with beside(predictor, Broken(models[1])) as running:
        wait_until(lambda: running._model)
        assert predictor.submit(IMAGES[0]).result(10).version == models[0].version
        wait_until(lambda: running.comparison().problem == "out of memory")

    def refuse():
        raise ModelRejected("golden images must get their recorded probabilities")

    with Shadow(predictor, lambda: models[1].version, refuse, poll_s=0.02) as running:
        wait_until(lambda: running.comparison())
        wait_until(lambda: running.comparison().problem == "golden images must get their recorded probabilities")


@pytest.mark.parametrize("error", [StorageUnavailable("away"), OSError(28, "No space left on device")])
def test_a_candidate_that_cannot_be_had_is_tried_again_and_that_is_logged_once(predictor, models, caplog, error):
    tries = []

    def load():
        tries.append(1)
        if len(tries) < 4:
            raise error
        return models[1]

    with Shadow(predictor, lambda: models[1].version, load, share=1, poll_s=0.02) as running:
        compared(running, predictor, IMAGES[:2])
    assert caplog.messages == [f"cannot look at the candidate: {error}; each look tries again"]
    assert bool(caplog.records[0].exc_info) == isinstance(error, OSError)


def test_a_candidate_that_goes_on_failing_is_logged_once(predictor, models, caplog):
    failed = []

    class Broken(HeldModel):
        def predict(self, images, *, shared=False):
            failed.append(len(images))
            raise RuntimeError("out of memory")

    with beside(predictor, Broken(models[1])) as running:
        wait_until(lambda: running._model)
        for image in IMAGES[:5]:
            predictor.submit(image).result(10)
        wait_until(lambda: sum(failed) == 5)
    assert caplog.messages == [f"candidate {models[1].version} failed on a batch"]


def test_over_http_the_comparison_is_shown_while_there_is_a_candidate(predictor, models, tmp_path):
    source = ModelSource(str(tmp_path / "store"), cache=tmp_path / "cache", threads=1)
    registry = Registry(source.store, "tiny")
    app = create_app(predictor, source.load, "models/tiny")
    with Server(app, port=0) as server:
        client = Client(server.url)
        assert client.get("/candidate").status == 404
        registry.promote(registry.publish(models[1].bundle.path), alias="candidate", reason="new")
        with shadow(app, source, 1.0) as running:
            wait_until(lambda: running._model)
            client.predict_single(IMAGES[0])
            wait_until(lambda: client.get("/candidate").body["images"] == 1)
            assert client.get("/candidate").body["candidate"] == models[1].version
        client.close()
