"""monitoring/reference_maker.py: a reference through a real engine, with which images of its kind are no drift."""

import numpy as np
import pytest
from conftest import QUANTISATION, make_bundle

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split
from helpers.data.synthetic import draw_images
from helpers.inference.int8 import is_faster_here
from helpers.inference.loader import load_model
from helpers.monitoring.drift import DriftDetector
from helpers.monitoring.drift_reference import read_reference
from helpers.monitoring.reference_maker import make_reference
from helpers.monitoring.scores import NAMES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = load_model(make_bundle(folder / "first").path)
    labels = np.tile(np.arange(100), 5)
    validation, training = (Split(draw_images(labels, seed), labels) for seed in (1, 2))
    reference = make_reference(model.engine, validation, training.take(slice(200)), model.labels, 1.0)
    return model, reference, make_bundle(folder / "second", reference=reference.as_arrays())


def test_it_travels_in_a_bundle_and_is_small(made):
    _, reference, bundle = made

    assert read_reference(bundle).count == reference.count == 400  # and 100 that the likeness was learned on
    assert (bundle.path / "reference.npz").stat().st_size < 2**20


def test_it_holds_what_corruptions_do_to_each_score(made):
    moves = made[1].moves

    assert moves.shape == (len(CORRUPTIONS), 5, len(NAMES))
    sharpness, contrast = (moves[:, 4, NAMES.index(name)] for name in ("sharpness", "contrast"))
    assert sharpness[CORRUPTIONS.index("gaussian_noise")] > 0.6
    assert sharpness[CORRUPTIONS.index("defocus_blur")] < 0.4
    assert contrast[CORRUPTIONS.index("contrast")] < 0.2


def test_images_of_its_kind_are_stable_and_changed_ones_drift_and_are_named(made):
    model, reference, _ = made
    images = draw_images(np.random.default_rng(0).permutation(np.tile(np.arange(100), 2)), seed=3)
    detector = DriftDetector(reference)

    detector.update(images, model.predict(images))
    assert detector.report().verdict == "stable"
    hazy = corrupt(images[:60], "contrast", 5)
    detector.update(hazy, model.predict(hazy))

    report = detector.report()
    assert report.verdict == "drift"
    assert {"contrast", "like contrast"} <= set(report.scores)
    assert report.resembles["corruption"] == "contrast"


@pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
def test_answers_in_8_bits_are_no_drift_from_a_reference_in_floats_however_long_the_stream(made, tmp_path):
    model, reference, _ = made
    other = load_model(make_bundle(tmp_path / "bundle", quantisation=QUANTISATION).path)
    images = draw_images(np.random.default_rng(0).permutation(np.tile(np.arange(100), 2)), seed=3)
    scores = other.predict(images)
    detector = DriftDetector(reference)

    assert "int8" in other.precision
    assert not np.array_equal(scores.logits, model.predict(images).logits)
    rows, random = reference.score(images, scores), np.random.default_rng(1)
    for _ in range(20):
        order = random.permutation(len(images))
        detector.update_rows(rows[order], scores.logits.argmax(axis=1)[order])
    assert detector.report().verdict == "stable"


def test_too_few_validation_images_are_refused(made):
    few = Split(draw_images(np.arange(100), 1), np.arange(100))

    with pytest.raises(ValueError, match="count must be at least 100 reference images, got 80"):
        make_reference(made[0].engine, few, few, made[0].labels, 1.0)
