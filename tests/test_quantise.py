"""python -m helpers.quantise: another version of a bundle, with the same weights and answers in 8 bits."""

import numpy as np
import pytest
from conftest import LABELS, make_bundle

from helpers import quantise as module
from helpers.data.dataset import Dataset, Split
from helpers.data.synthetic import draw_images
from helpers.delivery.bundle import read_bundle
from helpers.delivery.graph import read_weights
from helpers.inference import calibration
from helpers.inference.int8 import is_faster_here
from helpers.inference.loader import load_model

needs_x86 = pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")


def dataset(fingerprint="0" * 64):
    labels = np.repeat(np.arange(100), 10)
    train, test = Split(draw_images(labels, 0), labels), Split(draw_images(labels[::10], 1), labels[::10])
    return Dataset(train, test, LABELS, "synthetic", fingerprint, synthetic=True)


@pytest.fixture
def old(tmp_path):
    return make_bundle(tmp_path / "old").path


@needs_x86
def test_a_new_version_has_the_same_weights_and_serves_in_8_bits(old, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda _: dataset())
    monkeypatch.setattr(calibration, "TOLERANCE", 0.1)  # random weights are right by chance

    assert module.main([str(old), str(tmp_path / "new")]) == 0

    before, after = read_bundle(old), read_bundle(tmp_path / "new")
    assert after.manifest.files["model.onnx"] == before.manifest.files["model.onnx"]
    assert after.manifest.parent == before.version
    assert after.quantisation.validation_images == 200
    assert "int8" in load_model(after.path).precision
    for name, array in read_weights(before.model_path).items():
        np.testing.assert_array_equal(read_weights(after.model_path)[name], array)
    assert "## In 8 bits" in (after.path / "model_card.md").read_text()
    assert f"holds version {after.version}" in capsys.readouterr().out


def test_nothing_is_written_where_8_bits_may_not_serve(old, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda _: dataset())
    monkeypatch.setattr("platform.machine", lambda: "aarch64")

    assert module.main([str(old), str(tmp_path / "new")]) == 1

    assert not (tmp_path / "new").exists()
    assert "8 bits are not known to be faster on this processor" in capsys.readouterr().out


def test_other_data_than_it_was_trained_on_is_refused(old, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda _: dataset("1" * 64))

    assert module.main([str(old), str(tmp_path / "new")]) == 1

    assert "was trained on synthetic, not on synthetic stand-in" in capsys.readouterr().err


def test_a_folder_that_holds_files_is_refused_before_all_the_work(old, monkeypatch, capsys):
    monkeypatch.setattr(module, "load_dataset", lambda _: dataset())
    monkeypatch.setattr(module, "choose_engine", None)

    assert module.main([str(old), str(old)]) == 1

    assert "directory must be empty to write a bundle, but " in capsys.readouterr().err
