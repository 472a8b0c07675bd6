"""training/layers.py: the faster layers compute what Keras' own do, gradients and moving statistics too."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers.training.layers import LARGEST_DENSE_MAP, LARGEST_MATRIX_MAP, layer_classes

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="gradients are taken with TensorFlow")


def gradients(layer, inputs, upstream, **call):
    """Outputs of `layer`, and the gradients of its inputs and weights, in a compiled function as in training."""

    @tf.function
    def step(inputs, upstream):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, **call)
        return outputs, *tape.gradient(
            outputs, [inputs, *(v.value for v in layer.trainable_variables)], output_gradients=upstream
        )

    return [np.asarray(tf.cast(value, tf.float32)) for value in step(inputs, upstream)]


def numbers(*shape, dtype="float32", seed=0):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


def pair(ours, theirs, shape, dtype="float32"):
    """Both layers with the same weights, and inputs of `shape` with what comes back to their outputs."""
    inputs = numbers(*shape, dtype=dtype)
    for layer in (ours, theirs):
        layer.build(shape)
    for seed, (mine, other) in enumerate(zip(ours.weights, theirs.weights, strict=True)):
        value = np.abs(numbers(*mine.shape, seed=seed + 1)) + 0.1 if "variance" in mine.name else None
        value = numbers(*mine.shape, seed=seed + 1) if value is None else value
        mine.assign(value)
        other.assign(value)
    return inputs, numbers(*shape[:3], theirs.compute_output_shape(shape)[-1], dtype=dtype, seed=9)


@pytest.mark.parametrize(
    "side", [1, LARGEST_DENSE_MAP, LARGEST_DENSE_MAP + 1, 4, LARGEST_MATRIX_MAP, LARGEST_MATRIX_MAP + 1]
)
def test_a_convolution_and_its_gradients_are_those_of_keras_at_every_side(side):
    ours, theirs = layer_classes()[0](7), keras.layers.Conv2D(7, 3, padding="same", use_bias=False)
    inputs, upstream = pair(ours, theirs, (4, side, side, 5))

    found, expected = (gradients(layer, inputs, upstream) for layer in (ours, theirs))

    assert [value.shape for value in found] == [(4, side, side, 7), (4, side, side, 5), (3, 3, 5, 7)]
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 5), (8, 3)])
def test_a_map_need_not_be_square(height, width):
    ours, theirs = layer_classes()[0](3), keras.layers.Conv2D(3, 3, padding="same", use_bias=False)
    inputs, upstream = pair(ours, theirs, (2, height, width, 4))

    found, expected = (gradients(layer, inputs, upstream) for layer in (ours, theirs))

    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [2, 4])
def test_in_bfloat16_a_convolution_is_as_exact_as_keras_own(side):
    policy = "mixed_bfloat16"
    ours, theirs = (
        layer_classes()[0](16, dtype=policy),
        keras.layers.Conv2D(16, 3, padding="same", use_bias=False, dtype=policy),
    )
    inputs, upstream = pair(ours, theirs, (8, side, side, 32), "bfloat16")
    exact = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)
    exact.build(inputs.shape)
    exact.kernel.assign(tf.cast(tf.cast(theirs.kernel, "bfloat16"), "float32"))

    found, expected = (gradients(layer, inputs, upstream) for layer in (ours, theirs))
    right = gradients(exact, tf.cast(inputs, "float32"), tf.cast(upstream, "float32"))

    for mine, other, value in zip(found, expected, right, strict=True):
        error, keras_error = (np.abs(each - value).max() / np.abs(value).max() for each in (mine, other))
        assert error <= max(keras_error, 2**-7)  # bfloat16 has 8 bits
        assert error < 2**-6  # whatever Keras does


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_normalisation_its_gradients_and_its_moving_statistics_are_those_of_keras(dtype):
    ours = layer_classes()[1](momentum=0.9, dtype=dtype)
    theirs = keras.layers.BatchNormalization(momentum=0.9, dtype=dtype)
    inputs, upstream = pair(ours, theirs, (6, 5, 5, 8), dtype.removeprefix("mixed_"))

    found, expected = (gradients(layer, inputs, upstream, training=True) for layer in (ours, theirs))

    tolerance = 1e-4 if dtype == "float32" else 0.03
    for mine, other in zip(found, expected, strict=True):
        assert np.abs(mine - other).max() <= tolerance * max(1, np.abs(other).max())
    for mine, other in zip(ours.non_trainable_variables, theirs.non_trainable_variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)


def test_outside_training_normalisation_uses_and_keeps_its_moving_statistics():
    ours, theirs = layer_classes()[1](), keras.layers.BatchNormalization()
    inputs, _ = pair(ours, theirs, (3, 4, 4, 8))
    before = [np.array(variable.numpy()) for variable in ours.weights]

    np.testing.assert_allclose(ours(inputs, training=False), theirs(inputs, training=False), rtol=1e-4, atol=1e-4)

    for variable, value in zip(ours.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)
