import json
import os
import threading
import weakref
from itertools import pairwise

import numpy as np
import pytest
from conftest import QUANTISATION, make_bundle

from helpers.data.labels import Labels
from helpers.delivery.bundle import BundleError
from helpers.delivery.graph import read_weights
from helpers.inference.engine import available_cpus, open_engine
from helpers.inference.int8 import is_faster_here
from helpers.inference.loader import ModelRejected, load_model
from helpers.receipts import file_sha256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(make_bundle(tmp_path_factory.mktemp("loader") / "bundle").path)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8)


def test_a_loaded_model_says_what_it_is(model):
    assert model.version == model.bundle.manifest.version
    assert model.labels.fine[26] == "class_26"
    assert model.engine_name == "openvino"
    assert model.precision in ("bf16", "f32")
    assert model.threads == available_cpus()


def test_probabilities_are_those_of_training(model):
    images, expected = model.bundle.golden()
    np.testing.assert_allclose(model.predict(images).probabilities, expected, atol=0.01)


def test_answers_do_not_depend_on_the_batch(model, images):
    together = model.predict(images)
    assert together.probabilities.shape == together.logits.shape == (70, 100)
    assert together.features.shape == (70, 32)
    for index in (0, 31, 32, 69):
        alone = model.predict(images[index : index + 1])
        np.testing.assert_allclose(together.probabilities[index], alone.probabilities[0], atol=1e-3)


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (np.zeros((0, 32, 32, 3), np.uint8), r"uint8 \(0, 32, 32, 3\)"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
        (np.zeros((1, 32, 32, 1), np.uint8), r"uint8 \(1, 32, 32, 1\)"),
        (np.zeros((1, 32, 32, 3), np.float32), r"float32 \(1, 32, 32, 3\)"),
    ],
)
def test_other_arrays_than_images_are_refused(model, bad, got):
    with pytest.raises(ValueError, match=rf"images must be uint8 \(n, 32, 32, 3\) with n at least 1, got {got}"):
        model.predict(bad)


def golden_changed(change):
    def changes(good):
        images, probabilities = good.golden()
        return {"golden": change(images, probabilities)}

    return changes


def weights_with_nan(good):
    weights = read_weights(good.model_path)
    weights["logits/bias"][3] = np.nan
    return {"weights": weights, "golden": good.golden()}


def one_label_less(good):
    labels = good.labels
    return {"labels": Labels(labels.fine[:-1], labels.superclasses, labels.superclass_of[:-1])}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (golden_changed(lambda i, p: (i, p[::-1])), r"recorded probabilities within 0\.05; off by 0\.\d+"),
        (golden_changed(lambda i, p: (i, p * np.nan)), r"recorded probabilities within 0\.05; off by nan"),
        (golden_changed(lambda i, p: (i, p[:, :99])), r"golden probabilities must be \(100,\) an image, got \(99,\)"),
        (golden_changed(lambda i, p: (i[:3], p)), "golden images must be uint8 .* with n answers, got uint8"),
        (golden_changed(lambda i, p: (i[:0], p[:0])), r"golden images must be .* got uint8 \(0, 32, 32, 3\)"),
        (golden_changed(lambda i, p: (i.astype(np.float32), p)), "golden images must be uint8 .* got float32"),
        (weights_with_nan, r"probabilities must be finite; \d+ of 100 are not"),
        (one_label_less, r"probabilities must have shape \(1, 99\) for 99 labels, got \(1, 100\)"),
    ],
)
def test_a_model_that_answers_otherwise_than_in_training_is_rejected(tmp_path, model, changes, sentence):
    bundle = make_bundle(tmp_path / "bundle", **changes(model.bundle))
    with pytest.raises(ModelRejected, match=sentence):
        load_model(bundle.path)


@pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
def test_8_bits_answer_the_golden_images_as_training_did(tmp_path):
    model = load_model(make_bundle(tmp_path / "bundle", quantisation=QUANTISATION).path)

    images, expected = model.bundle.golden()
    assert "int8" in model.precision
    np.testing.assert_allclose(model.predict(images).probabilities, expected, atol=0.02)


@pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
@pytest.mark.parametrize("times", [0.01, 1000])
def test_8_bits_with_wrong_ranges_are_rejected(tmp_path, times):
    wrong = {name: times * high for name, high in QUANTISATION.ranges.items()}
    bundle = make_bundle(tmp_path / "bundle", quantisation=QUANTISATION.model_copy(update={"ranges": wrong}))

    with pytest.raises(ModelRejected, match=r"recorded probabilities within 0\.05; off by 0\.\d+"):
        load_model(bundle.path)
    assert load_model(bundle.path, engine="openvino-float").precision in ("bf16", "f32")


def test_golden_images_that_cannot_be_read_are_rejected(bundle_dir):
    golden, manifest = bundle_dir / "golden.npz", bundle_dir / "manifest.json"
    np.savez(golden, pictures=np.zeros((1, 32, 32, 3), np.uint8))
    content = json.loads(manifest.read_text())
    content["files"]["golden.npz"] = {"sha256": file_sha256(golden), "size": golden.stat().st_size}
    manifest.write_text(json.dumps(content))
    with pytest.raises(ModelRejected, match=r"golden\.npz does not hold the arrays images and probabilities"):
        load_model(bundle_dir)


def test_an_altered_bundle_is_refused_before_it_is_compiled(bundle_dir):
    data = bytearray((bundle_dir / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle_dir / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.onnx has sha256"):
        load_model(bundle_dir)


def test_refusals_leave_no_file_and_no_thread_behind(tmp_path, model):
    bundle = make_bundle(tmp_path / "bundle", **weights_with_nan(model.bundle))

    def refuse():
        with pytest.raises(ModelRejected):
            load_model(bundle.path)
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), threading.active_count()

    counts = [refuse() for _ in range(9)]
    assert len({(files, threads) for files, _, threads in counts}) == 1
    # OpenVINO's own pool may start a thread once, at any time; a leak would make every count another.
    assert any(first == second for first, second in pairwise(counts))


def test_a_refused_network_is_gone_while_its_error_is_kept(tmp_path, model, monkeypatch):
    bundle, engines = make_bundle(tmp_path / "bundle", **weights_with_nan(model.bundle)), weakref.WeakSet()

    def opened(*arguments):
        engines.add(engine := open_engine(*arguments))
        return engine

    monkeypatch.setattr("helpers.inference.loader.open_engine", opened)
    with pytest.raises(ModelRejected) as refused:
        load_model(bundle.path)
    assert "finite" in str(refused.value)
    assert not engines
