"""inference/int8.py: the compiled network does compute in 8 bits, where it was told to, and nearly the same."""

import numpy as np
import openvino
import pytest
from conftest import make_bundle

from helpers.inference.calibration import find_ranges
from helpers.inference.engine import OpenVinoEngine
from helpers.inference.int8 import find_convolutions, is_faster_here, quantise

needs_x86 = pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("int8") / "bundle").model_path


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def ranges(path, images):
    return find_ranges(path, images)


def computed_in(network):
    """Precision of each convolution of the compiled `network`, by what the plugin says it runs, in their order."""
    found = {}
    for node in openvino.Core().compile_model(network, "CPU").get_runtime_model().get_ordered_ops():
        notes = node.get_rt_info()
        if notes["layerType"].get() == "Convolution":
            found[node.get_friendly_name()] = notes["runtimePrecision"].get()
    return list(found.values())


@needs_x86
def test_the_convolutions_that_were_named_run_in_8_bits_and_no_others(path, ranges):
    network = openvino.Core().read_model(path)
    assert not {"i8", "u8"} & set(computed_in(network))

    quantise(network, ranges)

    found = computed_in(network)
    assert len(found) == 13
    assert not {"i8", "u8"} & set(found[:3])  # the first, and the two that calibration leaves alone
    assert set(found[3:]) == {"u8"}


def test_all_convolutions_but_the_first_are_behind_a_relu(path):
    names = list(find_convolutions(openvino.Core().read_model(path)))

    assert (len(names), names[0], names[-1]) == (12, "block1_conv2", "block5_conv3")


@needs_x86
def test_answers_are_nearly_those_in_floats(path, images, ranges):
    plain, quantised = OpenVinoEngine(path, 1).run(images), OpenVinoEngine(path, 1, ranges).run(images)

    distance = np.abs(quantised.probabilities - plain.probabilities).max()
    assert 0 < distance < 0.02
    assert np.ptp(plain.probabilities, axis=0).max() > 0.1  # the answers differ from image to image
    np.testing.assert_allclose(quantised.features, plain.features, atol=0.1 * plain.features.max())


@needs_x86
def test_a_channel_without_weights_and_a_network_of_one_image_are_no_exception(tmp_path, images):
    def without_a_channel(weights):
        weights["block3_conv2/kernel"][..., 0] = 0
        return weights

    from helpers.delivery.graph import read_weights, write_onnx

    bundle = make_bundle(tmp_path / "bundle")
    write_onnx(tmp_path / "model.onnx", without_a_channel(read_weights(bundle.model_path)), bundle.manifest.config)
    ranges = find_ranges(tmp_path / "model.onnx", images)

    for count in (1, 3):
        found = OpenVinoEngine(tmp_path / "model.onnx", 1, ranges).run(images[:count])
        expected = OpenVinoEngine(tmp_path / "model.onnx", 1).run(images[:count])
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=0.02)


@pytest.mark.parametrize("name", ["block1_conv1", "fc1", "logits", "block9_conv1"])
def test_what_is_no_convolution_behind_a_relu_is_refused(path, ranges, name):
    with pytest.raises(ValueError, match=f"ranges must name convolutions behind a ReLU; '{name}' is none"):
        quantise(openvino.Core().read_model(path), ranges | {name: 1.0})


@pytest.mark.parametrize(("machine", "faster"), [("x86_64", True), ("AMD64", True), ("arm64", False), ("", False)])
def test_8_bits_are_for_processors_on_which_they_were_measured(monkeypatch, machine, faster):
    monkeypatch.setattr("platform.machine", lambda: machine)

    assert is_faster_here() == faster
