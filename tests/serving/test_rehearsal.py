"""`rehearsal`: what is sent on purpose, and what a real server says of it."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_bundle
from served import serve

from helpers.client import Client
from helpers.data.corruptions import corrupt
from helpers.data.dataset import Split, draw_dataset
from helpers.data.synthetic import synthetic_labels
from helpers.inference.loader import load_model
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.reference_maker import make_reference
from helpers.monitoring.watch import Watch, make_detector, make_monitor
from helpers.serving import rehearsal
from helpers.serving.rehearsal import LOG, RehearsalError, check_rehearsal, plan_rehearsal, rehearse, send


@pytest.fixture(scope="module")
def dataset():
    return draw_dataset(seed=3, train_per_class=12, test_per_class=5)


@pytest.fixture(scope="module")
def model(dataset, tmp_path_factory):
    """A tiny model with a reference of its own, and images like those of `dataset`, whose truth is what it answers."""
    folder, labels = tmp_path_factory.mktemp("rehearsal"), synthetic_labels()
    engine = load_model(make_bundle(folder / "first").path).engine
    validation, training = dataset.train.take(np.arange(800)), dataset.train.take(np.arange(800, 1200))
    reference = make_reference(engine, validation, training, labels, 1.0)
    evaluation = {"test": {"top1": 0.95, "top1_interval": [0.93, 0.97]}}
    return load_model(
        make_bundle(folder / "second", reference=reference.as_arrays(), labels=labels, evaluation=evaluation).path
    )


@pytest.fixture(scope="module")
def easy(dataset, model):
    """The data set of which the model knows every test image."""
    answers = model.predict(dataset.test.images).logits.argmax(axis=1)
    return replace(dataset, test=Split(dataset.test.images, answers))


# What is sent


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("fogg", 3, 200), "rehearsal must be one of none, gaussian_noise, .*, label_noise, got 'fogg'"),
        (("fog", 0, 200), "severity must be 1, 2, 3, 4 or 5, got 0"),
        (("fog", 6, 200), "severity must be 1, 2, 3, 4 or 5, got 6"),
        (("class_shift", 3, 199), "rehearsal_images must be at least 200, enough to see a change half-way, got 199"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        check_rehearsal(*arguments)


def test_no_rehearsal_needs_no_images_and_has_no_plan(dataset):
    check_rehearsal("none", 3, 0)
    with pytest.raises(ValueError, match="there is nothing to rehearse with rehearsal none"):
        plan_rehearsal(dataset, "none", 3, 0)


def test_of_a_corruption_the_latter_half_is_corrupted(dataset):
    plan, clean = (plan_rehearsal(dataset, kind, 4, 201, seed=5) for kind in ("fog", "label_noise"))
    assert (plan.change, plan.told, plan.title) == (101, None, "fog, severity 4")
    np.testing.assert_array_equal(plan.images[:100], clean.images[:100])
    np.testing.assert_array_equal(plan.images[100:], corrupt(clean.images[100:], "fog", 4, 5))


def test_of_label_noise_a_share_of_the_later_labels_is_wrong(dataset):
    plan = plan_rehearsal(dataset, "label_noise", 3, 2000)
    index = {image.tobytes(): label for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)}
    wrong = np.array([index[image.tobytes()] for image in plan.images]) != plan.told
    assert not wrong[:1000].any()
    assert 0.25 < wrong[1000:].mean() < 0.35
    assert plan.title == "30% of the labels wrong"


def test_of_a_class_shift_a_share_of_the_later_images_is_of_five_superclasses(dataset):
    plan = plan_rehearsal(dataset, "class_shift", 5, 2000)
    index = {image.tobytes(): label for image, label in zip(dataset.test.images, dataset.test.labels, strict=True)}
    groups = np.array([index[image.tobytes()] for image in plan.images]) // 5
    assert len(set(groups[:1000])) == 20
    assert len(set(groups[1000:])) == 5


def test_the_same_seed_sends_the_same(dataset):
    first, again, other = (plan_rehearsal(dataset, "snow", 2, 200, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.images, again.images)
    assert not np.array_equal(first.images, other.images)


# What a server says


def test_the_alarm_rings_after_the_change_and_the_log_has_it_all(model, dataset, tmp_path):
    plan, ticks = plan_rehearsal(dataset, "gaussian_noise", 5, 200), []
    outcome = rehearse(model, plan, tmp_path, lambda: ticks.append(1))

    assert (outcome.drift["verdict"], outcome.drift["images"]) == ("drift", 200)
    assert outcome.alarm == outcome.drift["alarm"]
    assert 1 <= outcome.delay == outcome.alarm - 100 <= 60
    assert str(outcome) == f"the alarm rang at image {outcome.alarm}, after {outcome.delay} changed images"
    assert outcome.accuracy == ()
    assert len(ticks) == 200
    with LogReader(tmp_path / LOG) as log:
        assert [row["image"] for row in log.rows()] == [image.tobytes() for image in plan.images]
        assert log.report("rehearsal") == {"kind": "gaussian_noise", "severity": 5, "change": 101}


def test_labels_that_become_wrong_ring_the_alarm_of_the_accuracy(model, easy, tmp_path):
    plan = plan_rehearsal(easy, "label_noise", 5, 200)
    outcome = rehearse(model, plan, tmp_path)

    assert outcome.drift["verdict"] == "stable"
    assert 1 <= outcome.delay == outcome.alarm - 100 <= 40
    assert [report["labels"] for report in outcome.accuracy] == list(range(1, 201))
    assert [report["verdict"] for report in outcome.accuracy].index("fallen") == outcome.alarm - 1
    assert outcome.accuracy[99]["accuracy"] == 1
    with LogReader(tmp_path / LOG) as log:
        told = log.labels()
        assert [told[row["request_id"], 0] for row in log.rows()] == plan.told.tolist()


def test_an_alarm_before_the_change_is_called_a_false_one(model, dataset, tmp_path):
    plan = plan_rehearsal(dataset, "contrast", 5, 200)
    early = replace(plan, images=plan.images[::-1].copy())  # changed from the first image on
    outcome = rehearse(model, early, tmp_path)
    assert outcome.alarm < plan.change
    assert outcome.delay is None
    assert str(outcome).endswith("before the change, which makes it a false one")


def test_what_does_not_change_rings_no_alarm(model, dataset, tmp_path):
    plan = replace(plan_rehearsal(dataset, "fog", 1, 200), images=dataset.test.images[:200])
    outcome = rehearse(model, plan, tmp_path)
    assert (outcome.alarm, outcome.delay, str(outcome)) == (None, None, "no alarm rang")


def test_the_service_beside_it_and_its_log_learn_nothing(shop, model, dataset, tmp_path):
    with (
        closing(PredictionLog(tmp_path / "predictions.db")) as log,
        serve(shop, model, log=log, watch=Watch(make_detector, make_monitor)) as service,
        closing(Client(service.url)) as client,
    ):
        for image in dataset.test.images[:5]:
            client.predict(image)
        service.app.state.recorder.flush()
        before = client.get("/drift").body
        plan = plan_rehearsal(dataset, "contrast", 5, 200)
        assert rehearse(model, replace(plan, images=plan.images[100:140]), tmp_path).alarm
        assert client.get("/drift").body == before
        assert log.written == before["images"] == 5


def test_a_second_rehearsal_takes_the_place_of_the_first(model, dataset, tmp_path):
    for kind in ("contrast", "pixelate"):
        plan = plan_rehearsal(dataset, kind, 5, 200)
        rehearse(model, replace(plan, images=plan.images[:10]), tmp_path)
    with LogReader(tmp_path / LOG) as log:
        assert (log.last, log.report("rehearsal")["kind"]) == (10, "pixelate")


# What a server refuses


def test_a_service_that_has_seen_images_is_not_rehearsed_on(shop, model, dataset):
    plan = plan_rehearsal(dataset, "fog", 5, 200)
    with (
        serve(shop, model, watch=Watch(make_detector)) as service,
        closing(Client(service.url)) as client,
    ):
        client.predict(plan.images[0])
        service.app.state.recorder.flush()
        with pytest.raises(RehearsalError, match="has seen 1 images; rehearse on a service of its own"):
            send(client, plan)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("fog", {"rate_limit": "3/minute"}, "the service refused what the rehearsal sent, with 429"),
        ("label_noise", {}, "the service refused what the rehearsal sent, with 404: .*keeps no prediction log"),
        ("fog", {}, "the service has no verdict on 9 images after 0.1 s: .*drift is not followed here"),
    ],
)
def test_a_service_that_cannot_be_rehearsed_on_is_an_error(shop, model, dataset, monkeypatch, kind, options, sentence):
    monkeypatch.setattr(rehearsal, "PATIENCE_S", 0.1)
    plan = plan_rehearsal(dataset, kind, 3, 200)
    with (
        serve(shop, model, **options) as service,
        closing(Client(service.url)) as client,
        pytest.raises(RehearsalError, match=sentence),
    ):
        send(client, replace(plan, images=plan.images[:9]))
