"""A moving average of the weights while they are trained, and its use."""

import math
from contextlib import contextmanager

import numpy as np

from helpers.training.backend import load_keras

SETTLING_IMAGES = 4096  # give each mean of a batch normalisation to 1/64 of a standard deviation


def optimizer_class(average: float) -> type:
    """Keras' SGD; with a decay `average` above 0 (a step, below 1) it keeps a moving average of each weight."""
    keras = load_keras()
    ops = keras.ops

    class AveragingSGD(keras.optimizers.SGD):
        """Keeps a moving average of each weight in `averages`.

        Not by Keras' own `use_ema`, which puts the average in the place of the weights after each `fit`, and which
        holds on to the first weights for long. Here the average of `n` steps spans at most the last tenth or so.
        """

        def build(self, variables):
            if not self.built:
                super().build(variables)
                self.averages = [self.add_variable_from_reference(variable, "average") for variable in variables]

        def apply(self, grads, trainable_variables=None):
            super().apply(grads, trainable_variables)
            step = ops.cast(self.iterations, "float32")  # 1 after the first
            decay = ops.minimum(average, (step - 1) / (step + 9))
            # Not a list of our own: the optimizer would take it for its state, and JAX gives away no buffer twice.
            for weight, mean in zip(self._trainable_variables, self.averages, strict=True):
                mean.assign(decay * mean + (1 - decay) * weight)

    return AveragingSGD if average else keras.optimizers.SGD


def use_average(model, images: np.ndarray) -> None:
    """Puts the average in the place of the weights, and estimates its batch statistics anew.

    Those of the weights do not fit it (Izmailov et al. 2018): noise that averaging takes off had its share in them.

    Args:
        model: compiled with an optimizer of `optimizer_class`, and trained.
        images: uint8 (n, side, side, 3), some thousands of the training images.
    """
    keras = load_keras()

    for weight, mean in zip(model.trainable_variables, model.optimizer.averages, strict=True):
        weight.assign(keras.ops.copy(mean))  # JAX gives the buffers of weights away
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for count, batch in enumerate(np.array_split(images, math.ceil(len(images) / 256))):
        for layer in layers:
            layer.momentum = count / (count + 1)  # makes the moving average a plain mean
        model(batch.astype(np.float32), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


@contextmanager
def averaged(model, images: np.ndarray):
    """Within it `model` holds the average, as `use_average` leaves it; afterwards its weights again, to go on from."""
    state = [np.asarray(variable).copy() for variable in model.variables]
    use_average(model, images)
    try:
        yield
    finally:
        for variable, value in zip(model.variables, state, strict=True):
            variable.assign(value)
