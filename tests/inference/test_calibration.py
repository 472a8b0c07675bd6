"""inference/calibration.py: 8 bits are found, weighed on validation images, and kept only where they lose little."""

import numpy as np
import pytest
from conftest import make_bundle

from helpers.data.dataset import Split
from helpers.data.synthetic import draw_images
from helpers.inference import calibration
from helpers.inference.calibration import KEPT, choose_engine, find_ranges
from helpers.inference.engine import OpenVinoEngine
from helpers.inference.int8 import is_faster_here

needs_x86 = pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
LABELS = np.tile(np.arange(100), 2)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("calibration") / "bundle")


@pytest.fixture(scope="module")
def training():
    return Split(draw_images(LABELS, 2), LABELS)


@pytest.fixture(scope="module")
def validation(bundle):
    """Noise, and the answers in floats as its labels, so that the network is right about all of it."""
    images = np.random.default_rng(3).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    return Split(images, OpenVinoEngine(bundle.model_path, 1).run(images).logits.argmax(axis=1))


def choose(bundle, training, validation, **changes):
    return choose_engine(bundle.model_path, training, validation, bundle.golden()[0], **changes)


@needs_x86
def test_8_bits_are_kept_where_they_lose_little_and_what_was_found_is_said(bundle, training, validation, monkeypatch):
    monkeypatch.setattr(calibration, "TOLERANCE", 0.1)  # answers of random weights are close calls

    choice = choose(bundle, training, validation)

    found = choice.quantisation
    assert "int8" in choice.engine.precision
    assert (found.float_top1, found.validation_images, found.calibration_images) == (1.0, 200, 200)
    assert found.int8_top1 == pytest.approx(1 + found.difference)
    assert found.interval[0] <= found.difference <= min(found.interval[1], 0)
    assert choice.reason.startswith(f"8 bits change top-1 on 200 validation images by {found.difference:+.4f} (95 %")
    assert choice.reason.endswith(f"at most 0.1 is lost; {choice.engine.precision} serves")


@needs_x86
def test_8_bits_that_lose_more_are_given_up_in_one_sentence(bundle, training, validation, monkeypatch):
    monkeypatch.setattr(calibration, "find_ranges", lambda *_: {"block3_conv1": 1e6})  # all is rounded to 0

    choice = choose(bundle, training, validation)

    assert choice.quantisation is None
    assert "int8" not in choice.engine.precision
    assert choice.reason.endswith(f"more than 0.003 is lost; {choice.engine.precision} serves")


@needs_x86
def test_8_bits_whose_golden_answers_no_load_would_take_are_given_up(bundle, training, validation, monkeypatch):
    monkeypatch.setattr(calibration, "find_ranges", lambda *_: {"block3_conv1": 0.01})
    monkeypatch.setattr(calibration, "TOLERANCE", 1.0)

    choice = choose(bundle, training, validation)

    assert choice.quantisation is None
    assert choice.reason.startswith("8 bits move a golden probability by 0.")


@needs_x86
@pytest.mark.parametrize(("temperature", "kept"), [(1.0, False), (20.0, True)])
def test_golden_answers_are_compared_at_the_temperature_that_will_serve(
    bundle, training, validation, monkeypatch, temperature, kept
):
    monkeypatch.setattr(calibration, "find_ranges", lambda *_: {"block3_conv1": 0.01})
    monkeypatch.setattr(calibration, "TOLERANCE", 1.0)
    assert (choose(bundle, training, validation, temperature=temperature).quantisation is not None) == kept


@needs_x86
def test_without_a_temperature_it_is_the_one_of_the_validation_images(bundle, training, validation, monkeypatch):
    given = []
    monkeypatch.setattr(calibration, "fit_temperature", lambda *arguments: given.append(arguments) or 1.0)
    choose(bundle, training, validation)
    ((logits, labels),) = given
    assert logits.shape == (200, 100)
    assert labels is validation.labels


def test_8_bits_are_not_tried_where_nobody_asks_for_them(bundle, training, validation):
    choice = choose(bundle, training, validation, int8=False)

    assert choice.quantisation is None
    assert choice.reason == f"8 bits were not asked for; {choice.engine.precision} serves"


def test_8_bits_are_not_tried_on_a_processor_on_which_they_were_not_measured(bundle, training, validation, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    choice = choose(bundle, training, validation)

    assert choice.quantisation is None
    assert choice.reason.startswith("8 bits are not known to be faster on this processor; ")


def test_ranges_hold_all_that_calibration_images_give_plain_or_corrupted(bundle, training):
    few = find_ranges(bundle.model_path, training.images[:40])
    more = find_ranges(bundle.model_path, training.images)

    assert list(few) == list(more)
    assert not set(KEPT) & set(few)
    assert len(few) == 10
    assert all(0 < few[name] <= more[name] * 1.0001 for name in few)


def test_the_range_of_a_relu_that_nothing_passes_is_a_number(tmp_path, training):
    from helpers.delivery.graph import read_weights, write_onnx

    bundle = make_bundle(tmp_path / "bundle")
    weights = read_weights(bundle.model_path)
    weights["block3_bn1/beta"][:] = -1e6
    write_onnx(tmp_path / "model.onnx", weights, bundle.manifest.config)

    assert find_ranges(tmp_path / "model.onnx", training.images[:40])["block3_conv2"] == 1
