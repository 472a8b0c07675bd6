"""delivery/graph.py: the ONNX file answers as the network does, and gives its weights back."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from helpers.delivery.graph import GraphError, read_weights, write_onnx
from helpers.training.model import make_config, weight_shapes

CONFIG = make_config((129.0, 124.0, 112.0), (68.0, 65.0, 70.0), num_classes=10, width=0.0625, dropout=0.0)


def random_weights(seed=0):
    random = np.random.default_rng(seed)

    def draw(name, shape):
        if name.endswith("/kernel"):
            return random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        if name.endswith(("gamma", "variance")):
            return random.uniform(0.7, 1.4, shape)
        return random.normal(0, 0.2, shape)

    return {name: draw(name, shape).astype(np.float32) for name, shape in weight_shapes(CONFIG).items()}


def images(count, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def half(weights):
    """Kernels as a file keeps them."""
    return {
        name: array.astype(np.float16).astype(np.float32) if name.endswith("/kernel") else array
        for name, array in weights.items()
    }


def write(folder, weights=None, **arguments):
    write_onnx(folder / "model.onnx", weights or random_weights(), CONFIG, **arguments)
    return folder / "model.onnx"


def run(path, pixels):
    return ReferenceEvaluator(str(path)).run(["probabilities", "logits", "features"], {"images": pixels})


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def keras_outputs():
    """Logits and features of `images(5)`, by Keras, with the weights that a file keeps."""
    import keras

    from helpers.training.model import build_vgg16, set_weights

    network = build_vgg16(**CONFIG)
    set_weights(network, half(random_weights()))
    outputs = keras.Model(network.input, [network.output, network.features])(
        images(5).astype(np.float32), training=False
    )
    return [np.asarray(output) for output in outputs]


def openvino_outputs(path, pixels):
    import openvino

    network = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = network({"images": pixels})
    return [found[name] for name in ("probabilities", "logits", "features")]


@pytest.mark.parametrize("engine", [run, openvino_outputs], ids=["onnx reference", "openvino"])
def test_the_file_answers_as_the_keras_network(tmp_path, keras_outputs, engine):
    probabilities, logits, features = engine(write(tmp_path), images(5))

    expected_logits, expected_features = keras_outputs
    np.testing.assert_allclose(logits, expected_logits, atol=2e-4)
    np.testing.assert_allclose(features, expected_features, atol=2e-4)
    np.testing.assert_allclose(probabilities, softmax(expected_logits), atol=1e-4)
    assert np.ptp(expected_logits, axis=0).max() > 0.1  # the answers differ from image to image


def test_half_precision_moves_the_answers_only_a_little(tmp_path, keras_outputs):
    import keras

    from helpers.training.model import build_vgg16, set_weights

    network = build_vgg16(**CONFIG)
    set_weights(network, random_weights())
    exact = np.asarray(keras.ops.softmax(network(images(5).astype(np.float32), training=False)))

    probabilities, *_ = run(write(tmp_path), images(5))

    assert np.abs(probabilities - exact).max() < 0.005


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_in_the_probabilities_and_not_in_the_logits(tmp_path, temperature):
    probabilities, logits, _ = run(write(tmp_path, temperature=temperature), images(2))

    np.testing.assert_allclose(probabilities, softmax(logits / temperature), atol=1e-6)
    np.testing.assert_array_equal(logits, run(write(tmp_path), images(2))[1])


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(tmp_path, temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and finite, got {temperature}"):
        write(tmp_path, temperature=temperature)


def test_an_answer_does_not_depend_on_the_other_images(tmp_path):
    path, pixels = write(tmp_path), images(7)

    together = run(path, pixels)[1]

    for index in (0, 6):
        np.testing.assert_allclose(run(path, pixels[index : index + 1])[1], together[index : index + 1], atol=1e-5)


def test_the_interface_is_uint8_images_of_any_number(tmp_path):
    graph = onnx.load(write(tmp_path)).graph

    def interface(values):
        return {
            value.name: (
                value.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in values
        }

    assert interface(graph.input) == {"images": (TensorProto.UINT8, ["N", 32, 32, 3])}
    assert interface(graph.output) == {
        "probabilities": (TensorProto.FLOAT, ["N", 10]),
        "logits": (TensorProto.FLOAT, ["N", 10]),
        "features": (TensorProto.FLOAT, ["N", 32]),
    }


def test_weights_are_read_back_with_kernels_in_half_precision(tmp_path):
    weights = random_weights()

    found = read_weights(write(tmp_path, weights))

    assert list(found) == list(weight_shapes(CONFIG))
    for name, array in half(weights).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.float32


def test_writing_what_was_read_gives_the_same_file(tmp_path):
    path = write(tmp_path)
    first = path.read_bytes()

    assert write(tmp_path, read_weights(path)).read_bytes() == first


def test_kernels_take_half_the_room(tmp_path):
    kernels = sum(array.size for name, array in random_weights().items() if name.endswith("/kernel"))
    others = sum(array.size for name, array in random_weights().items() if not name.endswith("/kernel"))

    assert write(tmp_path).stat().st_size == pytest.approx(2 * kernels + 4 * others, rel=0.15)


# --- what this suite did not write


def model_of(*tensors):
    graph = helper.make_graph([], "g", [], [], list(tensors))
    return helper.make_model(graph).SerializeToString()


def external(location):
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "fc1/kernel")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def misshapen():
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "fc1/kernel")
    tensor.dims[0] = 10**6
    return tensor


def untyped():
    tensor = numpy_helper.from_array(np.zeros((2, 2), np.float32), "fc1/kernel")
    tensor.data_type = 99
    return tensor


FOREIGN = {
    "garbage": (b"\xff\xfegarbage", "is not an ONNX file"),
    "cut short": (model_of(numpy_helper.from_array(np.ones((50, 50)), "fc1/kernel"))[:-100], "is not an ONNX file"),
    "empty": (b"", "holds no weights by layer/variable; it was not written by this suite"),
    "another network": (model_of(numpy_helper.from_array(np.zeros(3), "weight")), "holds no weights by layer/variable"),
    "external": (model_of(external("/etc/hostname")), "keeps 'fc1/kernel' in another file; only self-contained files"),
    "external, above": (model_of(external("../secret")), "keeps 'fc1/kernel' in another file"),
    "misshapen": (model_of(misshapen()), "holds 'fc1/kernel' with other data than its shape needs"),
    "untyped": (model_of(untyped()), "holds 'fc1/kernel' with other data than its shape needs"),
}


@pytest.mark.parametrize(("data", "sentence"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_this_suite_did_not_write_is_refused(tmp_path, data, sentence):
    (tmp_path / "model.onnx").write_bytes(data)

    with pytest.raises(GraphError, match=sentence):
        read_weights(tmp_path / "model.onnx")


def test_damaged_files_raise_nothing_but_graph_error(tmp_path):
    path = write(tmp_path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    interesting = [
        place
        for name in (b"images", b"fc1/kernel", b"block1_bn1/gamma", b"temperature")
        for place in range(whole.index(name) - 12, whole.index(name) + 24)
    ]

    for place in [*interesting, *random.integers(0, len(whole), 30)]:
        damaged = bytearray(whole)
        damaged[place] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_weights(path)
        except GraphError:
            continue
