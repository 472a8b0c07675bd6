"""Training starts where it was told to, and from nowhere else."""

import shutil

import numpy as np
import pytest
from conftest import make_bundle

from helpers.delivery.graph import read_weights
from helpers.delivery.storage import open_store
from helpers.registry import Registry, UnknownModel
from helpers.training import start
from helpers.training.model import get_weights
from helpers.training.start import build_network, choose_start

FINGERPRINT = "0" * 64  # of what make_bundle says it was trained on


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A root with a bundle in model/ and an empty store."""
    make_bundle(tmp_path / "model")
    monkeypatch.setattr(start, "ROOT", tmp_path)
    return tmp_path


def choose(place, start_from, fingerprint=FINGERPRINT):
    return choose_start(
        start_from,
        fingerprint=fingerprint,
        mean=(1, 2, 3),
        std=(4, 5, 6),
        width=0.0625,
        dropout=0.25,
        store=open_store((place / "store").as_uri()),
        cache=place / "cache",
    )


def test_auto_takes_the_bundle_in_model_if_it_was_trained_on_this_data(place):
    chosen = choose(place, "auto")
    assert chosen.trained
    assert chosen.origin == f"the bundle in model/, version {chosen.version}"
    assert chosen.config["mean"] == [129, 124, 112]  # its own
    assert chosen.config["dropout"] == 0.25  # as asked


def test_auto_starts_from_scratch_on_other_data(place):
    chosen = choose(place, "auto", fingerprint="1" * 64)
    assert (chosen.origin, chosen.trained, chosen.version) == ("scratch", False, None)
    assert chosen.config["mean"] == [1, 2, 3]


def test_auto_starts_from_scratch_where_there_is_no_bundle(place):
    shutil.rmtree(place / "model")
    assert choose(place, "auto").origin == "scratch"


def test_the_network_starts_with_the_weights_of_the_bundle(place):
    chosen = choose(place, "model", fingerprint="1" * 64)
    expected = read_weights(place / "model" / "model.onnx")
    for name, array in get_weights(build_network(chosen)).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_a_published_version_is_a_start_point(place):
    registry = Registry(open_store((place / "store").as_uri()), "tiny")
    version = registry.publish(make_bundle(place / "other", seed=1).path)
    assert choose(place, f"models/tiny/versions/{version}").version == version
    with pytest.raises(UnknownModel, match="has no alias 'production'"):
        choose(place, "models/tiny")


def test_anything_else_is_refused_with_the_choices(place):
    with pytest.raises(
        ValueError, match=r"start_from must be one of auto, scratch, imagenet, model, or models/<name>.*, got 'resnet'"
    ):
        choose(place, "resnet")


def test_imagenet_is_taken_at_full_width(place):
    chosen = choose(place, "imagenet")
    assert (chosen.imagenet, chosen.trained, chosen.config["width"]) == (True, False, 1.0)
