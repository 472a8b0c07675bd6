"""A task that a shallow network learns in seconds: the hue of the stand-in's images."""

import numpy as np

from helpers.data.dataset import Split
from helpers.data.synthetic import HUES, draw_images
from helpers.training.loop import compile_model

CLASSES = len(HUES)


def drawn(count, seed):
    """Images of the stand-in and their hues, as a small task: chance is 0.2."""
    labels = np.random.default_rng(seed).integers(0, 100, count)
    return Split(draw_images(labels, seed), labels % CLASSES)


TRAINING, VALIDATION = drawn(180, seed=0), drawn(100, seed=1)


def build():
    """A shallow network with every kind of state that VGG16 has; TensorFlow needs 1 s to trace it, VGG16 10."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Rescaling(1 / 64, offset=-2),
            layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.GlobalMaxPooling2D(),
            layers.Dropout(0.1, name="dropout"),
            layers.Dense(CLASSES, name="logits"),
        ]
    )


def compiled(recipe, steps):
    """The network of `build`, ready for its first step."""
    network = build()
    compile_model(network, recipe, steps)
    return network
