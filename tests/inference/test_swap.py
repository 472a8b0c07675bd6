"""inference/swap.py: another model in place, or nothing changed; one at a time, and a way back."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_bundle
from held_model import Insane

from helpers.inference.loader import ModelRejected, load_model
from helpers.inference.predictor import Predictor
from helpers.inference.swap import ChangeUnderWay, NoModelBefore, Swapper, compare

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [load_model(make_bundle(folder / str(seed), seed).path) for seed in (0, 1)]


@pytest.fixture
def predictor(models):
    predictor = Predictor(models[0])
    yield predictor
    predictor.close()


@pytest.fixture
def swapper(predictor, models):
    return Swapper(predictor, {"models/a": models[0], "models/b": models[1]}.__getitem__, "models/a")


def test_a_change_puts_the_other_model_in_place_and_a_way_back_is_kept(swapper, predictor, models):
    swap = swapper.change("models/b")

    assert (swap.old, swap.new, swap.model_dir) == (models[0].version, models[1].version, "models/b")
    assert swap.replay is None
    assert predictor.model is models[1]
    assert predictor.previous is models[0]
    assert swapper.model_dir == "models/b"

    back = swapper.roll_back()

    assert (back.old, back.new, back.model_dir) == (models[1].version, models[0].version, "models/a")
    assert predictor.model is models[0]
    assert swapper.model_dir == "models/a"
    with pytest.raises(NoModelBefore, match="no model served before this one; name the one you want"):
        swapper.roll_back()


def test_a_model_that_cannot_be_loaded_changes_nothing(swapper, predictor, models):
    with pytest.raises(KeyError):
        swapper.change("models/none")

    assert predictor.model is models[0]
    assert predictor.previous is None
    assert swapper.model_dir == "models/a"
    assert swapper.change("models/b").new == models[1].version


def test_two_changes_at_once_are_refused(predictor, models):
    started, go_on = threading.Event(), threading.Event()

    def load(model_dir):
        started.set()
        assert go_on.wait(10)
        return models[1]

    swapper = Swapper(predictor, load, "models/a")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(swapper.change, "models/b")
        assert started.wait(10)
        for change in (lambda: swapper.change("models/b"), swapper.roll_back):
            with pytest.raises(ChangeUnderWay, match="another change of the model is under way"):
                change()
        go_on.set()
        assert first.result(10).new == models[1].version


def test_a_replay_compares_both_models_on_the_last_images(swapper, predictor, models):
    for image in IMAGES:
        predictor.submit(image).result(10)

    replay = swapper.change("models/b", replay=30).replay

    before, now = (model.predict(IMAGES[-30:]).probabilities.argmax(1) for model in models)
    assert replay.images == 30
    assert sum(count for _, _, count in replay.flips) == (before != now).sum() > 0
    name, other, count = replay.flips[0]
    assert count == sum((a, b) == (int(name[-2:]), int(other[-2:])) for a, b in zip(before, now, strict=True))
    assert [count for *_, count in replay.flips] == sorted((count for *_, count in replay.flips), reverse=True)
    assert 0 < replay.milliseconds_now < 1000
    assert compare(models[0], models[0], IMAGES).flips == ()


def test_without_requests_there_is_nothing_to_replay(swapper):
    assert swapper.change("models/b", replay=30).replay is None


def test_a_model_that_fails_on_the_replay_changes_nothing(swapper, predictor, models):
    predictor.submit(IMAGES[0]).result(10)
    swapper.load = lambda _: Insane(models[1])
    with pytest.raises(ModelRejected, match="must be finite"):
        swapper.change("models/b", replay=1)
    assert predictor.model is models[0]
    assert swapper.model_dir == "models/a"


def test_the_way_back_from_a_model_that_fails_needs_no_replay(swapper, predictor, models, caplog):
    predictor.submit(IMAGES[0]).result(10)
    swapper.load = lambda _: Insane(models[1])
    swapper.change("models/b")
    swap = swapper.roll_back(replay=1)
    assert (swap.old, swap.new, swap.replay) == (models[1].version, models[0].version, None)
    assert predictor.model is models[0]
    assert f"version {models[1].version} cannot be compared with the one before" in caplog.text


def test_the_same_version_loaded_again_is_no_way_back(swapper, predictor, models):
    swapper.change("models/b")
    again = load_model(models[1].bundle.path)
    swapper.load = lambda _: again
    swapper.change("models/c")
    assert (predictor.model, predictor.previous) == (again, models[0])
    assert swapper.model_dir == "models/c"
    assert swapper.roll_back().new == models[0].version
    assert swapper.model_dir == "models/a"


def test_a_model_that_fails_while_it_serves_gives_way_to_the_one_before(swapper, predictor, models, caplog):
    swapper.load = lambda _: Insane(models[1])
    swapper.change("models/b")

    answer = predictor.submit(IMAGES[0]).result(10)

    assert answer.version == models[0].version
    assert predictor.model is models[0]
    assert swapper.model_dir == "models/a"
    assert f"version {models[1].version} failed; version {models[0].version} serves again" in caplog.text
