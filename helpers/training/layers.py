"""Keras layers that compute what their parents compute, faster in training on a processor (backend-neutral Keras 3).

A library's gradient of convolution kernels is slow where feature maps are small. There, products of matrices give the
same sums: one for each of the nine offsets, over those positions only where neither image nor gradient is padding.
"""

from functools import cache

from helpers.training.backend import load_keras

LARGEST_MATRIX_MAP = 8  # side in pixels up to which matrix products were measured to win (AVX-512, batch 128)
LARGEST_DENSE_MAP = 2  # side up to which one matrix that holds the whole convolution wins


@cache
def layer_classes() -> tuple[type, type]:
    """The classes ``Convolution3x3`` and ``Normalisation``; made when first asked for, since Keras is imported late."""
    keras = load_keras()

    class Convolution3x3(keras.layers.Conv2D):
        """A 3x3 convolution with zero padding and no bias: (n, height, width, channels) to (..., filters)."""

        def __init__(self, filters, **options):
            super().__init__(filters, 3, padding="same", use_bias=False, **options)

        def call(self, inputs):
            height, width = inputs.shape[1:3]
            if None in (height, width) or max(height, width) > LARGEST_MATRIX_MAP:
                return super().call(inputs)
            kernel = keras.ops.cast(self.kernel, self.compute_dtype)
            if max(height, width) <= LARGEST_DENSE_MAP:
                return _convolve_as_matrix(inputs, kernel)
            return _convolve(inputs, kernel)

    class Normalisation(keras.layers.BatchNormalization):
        """Batch normalisation over the last axis; on TensorFlow in one operation instead of about ten."""

        def call(self, inputs, training=None):
            if not (training and self.trainable and len(inputs.shape) == 4 and keras.backend.backend() == "tensorflow"):
                return super().call(inputs, training=training)
            import tensorflow as tf

            outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs,
                scale=tf.convert_to_tensor(self.gamma),
                offset=tf.convert_to_tensor(self.beta),
                mean=[],
                variance=[],
                epsilon=self.epsilon,
                is_training=True,
            )
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], variance.dtype)
            variance *= (count - 1) / count  # Keras averages the variance of the batch, not its unbiased estimate
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1 - self.momentum))
            return outputs

    return Convolution3x3, Normalisation


def _convolve(inputs, kernel):
    """A convolution whose gradient with respect to the kernel is nine products of matrices."""
    ops = load_keras().ops

    @ops.custom_gradient
    def convolve(inputs, kernel):
        def gradient(*upstream):
            turned = ops.transpose(ops.flip(kernel, (0, 1)), (0, 1, 3, 2))
            return ops.conv(upstream[0], turned, padding="same"), _kernel_gradient(inputs, upstream[0])

        return ops.conv(inputs, kernel, padding="same"), gradient

    return convolve(inputs, kernel)


def _kernel_gradient(inputs, upstream):
    """The gradient (3, 3, channels, filters), from `inputs` (n, h, w, channels) and `upstream` (n, h, w, filters)."""
    ops = load_keras().ops
    height, width, channels = inputs.shape[1:]
    filters, products = upstream.shape[-1], []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            seen = inputs[:, max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            by = upstream[:, max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)]
            seen, by = ops.reshape(seen, (-1, channels)), ops.reshape(by, (-1, filters))
            products.append(ops.matmul(ops.transpose(seen), by))
    return ops.reshape(ops.stack(products), (3, 3, channels, filters))


def _convolve_as_matrix(inputs, kernel):
    """The convolution of a map of at most 2x2 as one product; automatic differentiation does the rest."""
    ops = load_keras().ops
    height, width, channels = inputs.shape[1:]
    filters = kernel.shape[-1]
    places = [(row, column) for row in range(height) for column in range(width)]
    offsets = ops.unstack(ops.reshape(kernel, (9, channels, filters)))  # nine slices have a far slower gradient
    rows = [
        ops.concatenate([offsets[3 * (r - to_r + 1) + c - to_c + 1] for to_r, to_c in places], axis=1)
        for r, c in places
    ]
    outputs = ops.matmul(ops.reshape(inputs, (-1, len(places) * channels)), ops.concatenate(rows, axis=0))
    return ops.reshape(outputs, (-1, height, width, filters))
