"""training/model.py: VGG16 with its preprocessing inside; weights go in whole or not at all."""

import ast
import inspect

import numpy as np
import pytest

from helpers.training import checkpoint, model
from helpers.training import loop as training
from helpers.training.model import (
    IMAGENET_MEAN_BGR,
    WeightsError,
    build_vgg16,
    get_weights,
    load_imagenet_weights,
    make_config,
    set_weights,
    weight_shapes,
)

# Keras reads its TensorFlow variables by an `__array__` of before NumPy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

MEAN, STD = (129.0, 124.0, 112.0), (68.0, 65.0, 70.0)
TINY = make_config(MEAN, STD, num_classes=7, width=0.0625)
CONFIGURATION_D = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # Simonyan & Zisserman 2015, table 1


@pytest.fixture(scope="module")
def tiny():
    return build_vgg16(**TINY)


@pytest.fixture(scope="module")
def whole():
    """The network of width 1, standardising as ImageNet's VGG16 subtracts, so padding has the same colour."""
    return build_vgg16(IMAGENET_MEAN_BGR[::-1], (60.0, 55.0, 50.0))


def images(count=2, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.float32)


def answer(network, pixels):
    return np.asarray(network(pixels, training=False))


# --- the network


def test_the_network_of_width_1_has_the_parameters_of_configuration_d(whole):
    total, channels = 0, 3
    for filters in CONFIGURATION_D:
        total += 9 * channels * filters + 4 * filters  # kernel, batch normalisation
        channels = filters
    for _ in range(2):
        total += channels * 512 + 4 * 512
        channels = 512
    total += channels * 100 + 100

    assert sum(array.size for array in get_weights(whole).values()) == total == 15_307_044


def test_there_are_13_convolutions_and_3_dense_layers_in_the_order_of_the_paper(whole):
    kinds = [type(layer).__name__ for layer in whole.layers]
    filters = [layer.filters for layer in whole.layers if type(layer).__name__ == "Convolution3x3"]

    assert filters == list(CONFIGURATION_D)
    assert (kinds.count("Dense"), kinds.count("MaxPooling2D"), kinds.count("Normalisation")) == (3, 5, 15)


@pytest.mark.parametrize("side", [16, 24, 32])
def test_images_of_each_training_resolution_give_logits(tiny, side):
    logits = answer(tiny, images(3, side))

    assert logits.shape == (3, 7)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    assert np.ptp(logits, axis=0).max() > 0


def test_logits_are_no_probabilities(tiny):
    assert (answer(tiny, images()) < 0).any()


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_weights_and_logits_are_single_precision_under_either_policy(dtype):
    network = build_vgg16(**TINY, dtype=dtype)

    assert {variable.dtype for variable in network.weights} == {"float32"}
    assert network.output.dtype == "float32"
    assert network.get_layer("block1_conv1").compute_dtype == dtype.removeprefix("mixed_")
    assert network.get_layer("normalization").compute_dtype == "float32"


def test_preprocessing_is_inside_the_network(tiny):
    plain = build_vgg16(**TINY | {"mean": [0, 0, 0], "std": [1, 1, 1]})
    set_weights(plain, get_weights(tiny))
    pixels = images()

    of_the_mean = np.broadcast_to(np.array(MEAN, np.float32), (1, 32, 32, 3))
    np.testing.assert_allclose(answer(tiny, of_the_mean), answer(plain, np.zeros((1, 32, 32, 3))), atol=1e-6)
    np.testing.assert_allclose(answer(tiny, pixels), answer(plain, (pixels - MEAN) / STD), atol=1e-4)
    assert np.abs(answer(tiny, pixels) - answer(plain, pixels)).max() > 0.01


def test_red_is_the_first_channel(tiny):
    assert np.abs(answer(tiny, images()) - answer(tiny, images()[..., ::-1])).max() > 1e-3


# --- its configuration


def test_a_configuration_builds_the_network_and_is_json(tiny):
    assert TINY == {
        "mean": [129.0, 124.0, 112.0],
        "std": [68.0, 65.0, 70.0],
        "num_classes": 7,
        "width": 0.0625,
        "hidden": 512,
        "dropout": 0.5,
    }
    assert [type(value) for value in make_config(np.array(MEAN), np.float32(STD))["std"]] == [float] * 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mean": (1, 2)}, r"mean and std must be three finite channels each with std above 0, got \[1.0, 2.0\]"),
        ({"std": (1, 0, 1)}, r"mean and std must be .* std above 0, got .* and \[1.0, 0.0, 1.0\]"),
        ({"std": ()}, "mean and std must be three"),
        ({"mean": (1, 2, float("nan"))}, r"mean and std must be three finite channels .* nan\]"),
        ({"std": (1, 2, float("inf"))}, r"mean and std must be three finite channels .* inf\]"),
        ({"width": 0}, "width must be above 0 and at most 4, got 0"),
        ({"width": 5}, "width must be above 0 and at most 4, got 5"),
        ({"width": float("nan")}, "width must be above 0 and at most 4, got nan"),
        ({"dropout": 1}, "dropout must be from 0 to below 1, got 1"),
        ({"dropout": -0.1}, "dropout must be from 0 to below 1, got -0.1"),
        ({"num_classes": 1}, "num_classes must be at least 2 and hidden at least 1, got 1 and 512"),
        ({"hidden": 0}, "num_classes must be at least 2 and hidden at least 1, got 100 and 0"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_config(**{"mean": MEAN, "std": STD} | changes)


# --- weights


@pytest.mark.parametrize("width", [0.001, 0.0625, 0.3])
def test_the_shapes_are_those_of_the_network_in_the_order_of_its_layers(width):
    config = make_config(MEAN, STD, num_classes=3, width=width, hidden=40)

    found = get_weights(build_vgg16(**config))

    assert {name: array.shape for name, array in found.items()} == weight_shapes(config)
    assert list(found) == list(weight_shapes(config))


def test_weights_that_were_got_and_set_make_the_same_network(tiny):
    other = build_vgg16(**TINY)
    assert np.abs(answer(other, images()) - answer(tiny, images())).max() > 1e-3

    set_weights(other, get_weights(tiny))

    np.testing.assert_array_equal(answer(other, images()), answer(tiny, images()))


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


UNFIT = {
    "one missing": (without("fc1/kernel"), "'fc1/kernel' is on one side only"),
    "one too many": (lambda w: w | {"fc3/kernel": np.zeros(3)}, "'fc3/kernel' is on one side only"),
    "none": (lambda _: {}, "'block1_bn1/beta' is on one side only"),
    "another shape, last": (
        lambda w: w | {"logits/bias": np.zeros(8, np.float32)},
        r"logits/bias must have shape \(7,\), got \(8,\); was width the same\?",
    ),
    "another width": (
        lambda _: {k: np.zeros(s) for k, s in weight_shapes(TINY | {"width": 0.125}).items()},
        r"block1_conv1/kernel must have shape \(3, 3, 3, 4\), got \(3, 3, 3, 8\); was width the same\?",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), UNFIT.values(), ids=UNFIT)
def test_weights_that_do_not_fit_are_refused_and_none_is_set(tiny, change, sentence):
    before = get_weights(tiny)
    moved = {name: array + 1 for name, array in before.items()}

    with pytest.raises(WeightsError, match=sentence):
        set_weights(tiny, change(moved))

    for name, array in get_weights(tiny).items():
        np.testing.assert_array_equal(array, before[name])


# --- the ImageNet start


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Keras Applications' VGG16 with random weights and biases, and the file of its weights."""
    import keras

    network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    random = np.random.default_rng(0)
    for layer in network.layers:
        if layer.name.endswith(("conv1", "conv2", "conv3")):
            shape = layer.kernel.shape
            kernel = random.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
            layer.set_weights([kernel, random.normal(0, 0.3, shape[3])])
    path = tmp_path_factory.mktemp("imagenet") / "vgg16.weights.h5"
    network.save_weights(path)
    return network, path


def test_the_imagenet_start_computes_what_imagenets_vgg16_computes(whole, imagenet):
    import keras

    original, path = imagenet
    before = get_weights(whole)
    load_imagenet_weights(whole, path)
    pixels = images(3, seed=5)

    names = ["block1_pool", "block3_pool", "block5_pool"]
    ours = keras.Model(whole.input, [whole.get_layer(name).output for name in names])
    theirs = keras.Model(original.input, [original.get_layer(name).output for name in names])
    expected = theirs(keras.applications.vgg16.preprocess_input(pixels.copy()), training=False)
    for found, wanted in zip(ours(pixels, training=False), expected, strict=True):
        scale = float(np.abs(wanted).max())
        assert scale > 1
        np.testing.assert_allclose(np.asarray(found) / scale, np.asarray(wanted) / scale, atol=1e-4)

    after = get_weights(whole)
    for name in before:
        unchanged = name.startswith(("fc", "logits")) or name.endswith(("gamma", "beta"))
        assert np.array_equal(before[name], after[name]) is unchanged, name


def test_the_imagenet_start_needs_width_1_and_changes_nothing_else(tiny, imagenet):
    before = get_weights(tiny)

    with pytest.raises(WeightsError, match=r"ImageNet weights need width 1: block1_conv1 has \(3, 3, 3, 4\) here"):
        load_imagenet_weights(tiny, imagenet[1])

    for name, array in get_weights(tiny).items():
        np.testing.assert_array_equal(array, before[name])


# --- any backend


@pytest.mark.parametrize("module", [model, training, checkpoint], ids=lambda module: module.__name__)
def test_model_and_training_name_no_backend(module):
    tree = ast.parse(inspect.getsource(module))
    imported = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    assert not {name.split(".")[0] for name in imported} & {"tensorflow", "jax", "torch"}
    assert not names & {"tf", "jax", "jnp", "torch"}
