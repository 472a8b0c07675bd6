"""`advice`: what is said depends on what was found, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import draw_reference
from test_diagnosis import draw_stream

from helpers.monitoring.advice import advise, describe_change
from helpers.monitoring.diagnosis import Resemblance, diagnose


@pytest.fixture(scope="module")
def reference():
    return draw_reference(np.random.default_rng(10**6), count=2000)


@pytest.fixture(scope="module")
def brighter(reference):
    """Pictures that became brighter after 300 images."""
    return diagnose(draw_stream(300, 100, brightness=1.2), reference, 0.7)


def starts(diagnosis):
    """What each sentence says to do."""
    return [sentence.split("**")[1] for sentence in advise(diagnosis)]


def test_without_a_change_nothing_is_to_be_done_and_the_blind_spot_is_named(reference):
    (said,) = advise(diagnose(draw_stream(300), reference, 0.7))
    assert said.startswith("**Nothing.**")
    assert said.endswith("nothing is known of a change that cannot be seen.")
    (said,) = advise(diagnose(draw_stream(300, told=True), reference, 0.7))
    assert said.endswith("of the same kind as the validation images.")


def test_with_too_few_images_it_says_how_many_more(reference):
    found = diagnose(draw_stream(50), reference, 0.7)
    assert advise(found)[0].startswith(f"**Wait.** {found.drift.needed} more images are needed")


def test_changed_pictures_point_to_the_camera_and_to_labels(brighter):
    first, second = advise(brighter)
    assert first.startswith(
        "**Check the camera, the lens and what decodes or scales the pictures:** they are brighter, "
    )
    assert "most like gaussian_noise at severity 3. That cost 0 points" in first
    assert first.endswith("no reason to change the model.")
    since = 401 - brighter.since
    assert f"of the {since} images since the change the truth is known for 0" in second


def test_a_costly_change_asks_for_retraining(brighter):
    costly = replace(brighter, resembles=(Resemblance("fog", 4, 0.9, 0.31, {}),))
    assert advise(costly)[0].endswith(
        "most like fog at severity 4. That cost 31 points of accuracy on validation images; if the pictures stay so, "
        "retrain with such pictures among the data."
    )


def test_a_far_corruption_is_not_named(brighter):
    assert advise(replace(brighter, resembles=(Resemblance("fog", 4, 0.3, 0.31, {}),)))[0].endswith(
        "they are brighter."
    )


def test_a_mix_of_classes_asks_whether_it_is_to_be_expected(brighter):
    mixed = replace(brighter, effects={}, resembles=(), drift=replace(brighter.drift, grew=("trees", "fish")))
    assert starts(mixed) == ["Ask whether more pictures of trees, fish are to be expected.", "Collect labels:"]


def test_fallen_accuracy_asks_for_retraining_with_the_labels(reference):
    found = diagnose(draw_stream(300, 200, told=True, right=0.4), reference, 0.9)
    told = found.accuracy_since.labels
    assert starts(found) == [f"Retrain, with the {told} labelled images since then among the data"]


def test_a_change_from_the_first_image_on_is_the_models_and_not_the_pictures(brighter):
    early = replace(brighter, since=3)
    assert starts(early) == ["Check that this model belongs here.", "Collect labels:"]
    swapped = replace(early, stream=replace(early.stream, before=("v0",)))
    assert starts(swapped) == ["Go back to version v0", "Collect labels:"]
    cut = replace(early, stream=replace(early.stream, whole=False))
    assert starts(cut) == ["Look further back.", "Collect labels:"]


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ({"brightness": -0.3, "contrast": 0.05}, "darker"),
        ({"contrast": -0.2, "sharpness": -0.4}, "more blurred, flatter in contrast"),
        ({"sharpness": 0.2, "saturation": 0.11}, "sharper or noisier, stronger in colour"),
        ({"energy": 0.5}, ""),
    ],
)
def test_the_pictures_are_described_by_what_moved_most(brighter, effects, words):
    assert describe_change(replace(brighter, effects=effects)) == words
