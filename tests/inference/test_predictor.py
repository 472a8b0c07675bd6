import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_bundle
from held_model import HeldModel, wait_until

from helpers.inference.batcher import PredictorClosed, QueueFull
from helpers.inference.job import DeadlineExceeded
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor

ONE_AT_A_TIME, TWO_AT_ONCE = SimpleNamespace(streams=1), SimpleNamespace(streams=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictor")
    return [load_model(make_bundle(folder / str(seed), seed).path) for seed in (0, 1)]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def held(models):
    model = HeldModel(models[0])
    model.engine = ONE_AT_A_TIME
    yield model
    model.gate.set()


@pytest.fixture
def start(request):
    """Makes predictors that are closed after the test."""

    def start(model, **limits):
        predictor = Predictor(model, **limits)
        request.addfinalizer(predictor.close)
        return predictor

    return start


def occupy(predictor, image):
    """Submits one image and returns when the engine has it."""
    future = predictor.submit(image)
    wait_until(lambda: not predictor.waiting)
    return future


def test_an_answer_is_the_models_own_with_its_version_and_time(start, models, images):
    model, predictor = models[0], start(models[0])
    prediction = predictor.submit(images[0]).result(5)
    row = model.predict(images[:1]).probabilities[0]
    np.testing.assert_allclose(prediction.probabilities, row, atol=1e-6)
    assert prediction.class_index == row.argmax()
    assert prediction.class_name == model.labels.fine[prediction.class_index]
    assert prediction.class_names is model.labels.fine
    assert prediction.version == model.version
    assert 0 < prediction.seconds < 5


def test_an_image_that_comes_while_there_is_nothing_to_do_is_decoded_where_it_is_answered(start, models, images):
    predictor, future, threads = start(models[0]), Future(), []

    def decode():
        threads.append(threading.current_thread().name)
        return images[:1]

    assert predictor.submit_encoded(decode, future)
    np.testing.assert_array_equal(future.result(5).probabilities, predictor.submit(images[0]).result(5).probabilities)
    assert threads == ["predictor"]


def test_while_there_is_something_to_do_decoding_is_for_others(start, held, images):
    predictor, future = start(held), Future()
    running, queued = occupy(predictor, images[0]), predictor.submit(images[1])
    assert not predictor.submit_encoded(lambda: images[2:3], future)
    held.gate.set()
    assert running.result(5)
    assert queued.result(5)
    assert held.sizes == [1, 1]
    assert not future.done()


def test_an_image_that_cannot_be_decoded_costs_the_next_nothing(start, models, images):
    predictor, future = start(models[0]), Future()

    def decode():
        raise ValueError("no image")

    assert predictor.submit_encoded(decode, future)
    with pytest.raises(ValueError, match="no image"):
        future.result(5)
    assert predictor.submit(images[0]).result(5)


def test_64_threads_get_each_their_own_answer(start, models, images):
    predictor = start(models[0])
    expected = models[0].predict(images).probabilities
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda i: predictor.submit(images[i % 8]).result(10), range(256)))
    for index, answer in enumerate(answers):
        np.testing.assert_allclose(answer.probabilities, expected[index % 8], atol=1e-3)


def test_a_batch_shares_the_engine_if_another_is_under_way(start, held, images):
    held.engine = TWO_AT_ONCE
    predictor = start(held, max_batch=4)
    for _ in range(2):
        first, second = occupy(predictor, images[0]), occupy(predictor, images[1])
        wait_until(lambda: len(held.shared) % 2 == 0)
        held.gate.set()
        wait([first, second], timeout=10)
        held.gate.clear()
    assert held.shared == [False, True] * 2


def test_batches_are_half_as_large_on_a_machine_that_does_half_as_many_in_time(start, models, images):
    held = HeldModel(replace(models[0], batch_size=4))
    held.engine = ONE_AT_A_TIME
    predictor = start(held)
    futures = [occupy(predictor, images[0]), predictor.submit(images[1]), occupy(predictor, images[2])]
    futures += [predictor.submit(image) for image in images]
    held.gate.set()
    assert len([future.result(10) for future in futures]) == 11
    assert held.sizes == [1, 2, 4, 4]


def test_the_next_batch_has_the_engine_while_the_answers_of_the_last_are_told(start, models, images):
    second, came = Future(), []

    class Listener:
        def answered(self, batch):
            if not came:
                came.append(bool(wait([second], timeout=5).done))

        def failed(self, version, error):
            raise error

    predictor = start(models[0])
    predictor.listeners.add(Listener())
    predictor.submit(images[0]).result(10)
    predictor.submit(images[1], second)
    wait_until(lambda: came)
    assert came == [True]


def test_the_seconds_of_a_batch_are_without_its_wait_behind_another(start, models, images):
    told, engine = [], threading.Lock()

    class OneAtATime(HeldModel):
        def predict(self, images, *, shared=False):
            with engine:
                time.sleep(0.1)
                return self.model.predict(images, shared=shared)

    class Listener:
        def answered(self, batch):
            told.append((len(batch.images), batch.seconds))

    model = OneAtATime(models[0])
    model.engine = ONE_AT_A_TIME
    predictor = start(model, max_batch=4)
    predictor.listeners.add(Listener())
    futures = [occupy(predictor, images[0]), predictor.submit(images[1]), occupy(predictor, images[2])]
    wait(futures, timeout=10)
    wait_until(lambda: len(told) == 2)
    assert [count for count, _ in told] == [1, 2]
    assert all(0.09 < seconds < 0.15 for _, seconds in told)


def test_a_failure_is_told_of_the_version_that_failed_whatever_serves_by_then(start, models, images):
    class Broken(HeldModel):
        def predict(self, images, *, shared=False):
            super().predict(images, shared=shared)
            raise RuntimeError("no memory")

    told = []

    class Listener:
        def failed(self, version, error):
            told.append(version)

    broken = Broken(models[0])
    predictor = start(broken)
    predictor.listeners.add(Listener())
    future = occupy(predictor, images[0])
    predictor.swap(models[1])
    broken.gate.set()
    with pytest.raises(RuntimeError, match="no memory"):
        future.result(5)
    wait_until(lambda: told)
    assert told == [models[0].version]


def test_past_the_queue_requests_are_refused_until_there_is_room(start, held, images):
    predictor = start(held, queue_size=2)
    first = occupy(predictor, images[0])
    for _ in range(2):
        predictor.submit(images[1])
    with pytest.raises(QueueFull, match="2 images are waiting already; try again in a second"):
        predictor.submit(images[2])
    held.gate.set()
    first.result(5)
    wait_until(lambda: not predictor.waiting)
    assert predictor.submit(images[2]).result(5).version == held.version


def test_a_request_that_waited_too_long_is_not_run(start, held, images):
    predictor = start(held, deadline_s=0.05)
    first, late = occupy(predictor, images[0]), predictor.submit(images[1])
    time.sleep(0.1)
    held.gate.set()
    assert first.result(5)
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.\d s, 0\.05 s are allowed; try again"):
        late.result(5)
    assert held.sizes == [1]


def test_a_cancelled_request_is_not_run(start, held, images):
    predictor = start(held)
    first, *others = occupy(predictor, images[0]), *(predictor.submit(image) for image in images[:4])
    assert others[0].cancel()
    assert others[2].cancel()
    held.gate.set()
    assert first.result(5)
    assert others[3].result(5)
    assert held.sizes == [1, 2]


def test_a_swap_leaves_the_running_batch_to_the_old_model(start, held, models, images):
    predictor = start(held)
    running, queued = occupy(predictor, images[0]), predictor.submit(images[0])
    assert predictor.swap(models[1]) is held
    held.gate.set()
    assert running.result(5).version == models[0].version
    assert queued.result(5).version == models[1].version
    assert predictor.model is models[1]


def test_swaps_under_load_mix_nothing(start, models, images):
    predictor = start(models[0])
    expected = {model.version: model.predict(images).probabilities for model in models}
    assert np.abs(expected[models[0].version] - expected[models[1].version]).max() > 0.1
    done = threading.Event()

    def ask(index):
        versions = set()
        while not done.is_set():
            answer = predictor.submit(images[index]).result(5)
            np.testing.assert_allclose(answer.probabilities, expected[answer.version][index], atol=1e-3)
            versions.add(answer.version)
        return versions

    with ThreadPoolExecutor(4) as pool:
        seen = [pool.submit(ask, index) for index in range(4)]
        for swap in range(20):
            predictor.swap(models[(swap + 1) % 2])
            time.sleep(0.01)
        done.set()
        assert set.union(*(future.result(5) for future in seen)) == set(expected)


def test_a_model_that_is_replaced_is_gone_though_what_it_said_is_kept(start, models, images):
    first = load_model(models[0].bundle.path)
    predictor, engine = start(first), weakref.ref(first.engine)
    del first
    kept = [predictor.submit(image).result(5) for image in images]
    predictor.swap(models[1])
    assert predictor.roll_back() is models[1]
    assert predictor.submit(images[0]).result(5).version == kept[0].version
    predictor.swap(models[1])
    predictor.swap(models[0])
    wait_until(lambda: engine() is None)
    assert {prediction.bundle.version for prediction in kept} == {models[0].version}


def test_an_engine_that_fails_fails_its_batch_only(start, models, images, caplog):
    class Broken(HeldModel):
        def predict(self, images, *, shared=False):
            raise RuntimeError("no memory")

    predictor = start(Broken(models[0]))
    with pytest.raises(RuntimeError, match="no memory"):
        predictor.submit(images[0]).result(5)
    assert f"a batch of 1 images failed on version {models[0].version}" in caplog.text
    predictor.swap(models[0])
    assert predictor.submit(images[0]).result(5)


def test_closing_answers_what_waits_and_refuses_the_rest(held, images):
    predictor = Predictor(held)
    futures = [occupy(predictor, images[0]), predictor.submit(images[1])]
    closing = threading.Thread(target=predictor.close)
    closing.start()
    wait_until(lambda: predictor.closed)
    with pytest.raises(PredictorClosed, match="the server is stopping; send requests elsewhere"):
        predictor.submit(images[2])
    held.gate.set()
    closing.join(5)
    assert not closing.is_alive()
    assert [future.result(0).version for future in futures] == [held.version] * 2
    predictor.close()


def test_closing_waits_no_longer_than_it_may_for_an_engine_that_hangs(start, held, images):
    predictor = start(held)
    occupy(predictor, images[0])
    started = time.monotonic()
    predictor.close(timeout=0.5)
    assert 0.45 < time.monotonic() - started < 0.9
    held.gate.set()


@pytest.mark.parametrize("bad", [np.zeros((1, 32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.float32)])
def test_other_arrays_than_one_image_are_refused(start, models, bad):
    predictor = start(models[0])
    with pytest.raises(ValueError, match=rf"image must be uint8 \(32, 32, 3\), got {bad.dtype} "):
        predictor.submit(bad)


@pytest.mark.parametrize("limits", [{"queue_size": 0}, {"max_batch": -1}, {"deadline_s": 0}])
def test_limits_must_be_above_zero(models, limits):
    ((name, value),) = limits.items()
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        Predictor(models[0], **limits)
