"""The opponent: VGG16 as one writes it with stock Keras, in float32."""

import numpy as np

from helpers.training.backend import load_keras
from helpers.training.model import BLOCKS
from helpers.training.recipe import Recipe

SIDE, CLASSES = 32, 100


def build_plain(mean, std, num_classes, width, hidden, dropout):
    """The network of `training.model.build_vgg16` in float32, of Keras' layers alone; same names and weights."""
    layers = load_keras().layers
    options = {"use_bias": False, "kernel_initializer": "he_normal"}

    images = x = load_keras().Input((SIDE, SIDE, 3), name="images")
    x = layers.Normalization(mean=np.array(mean), variance=np.square(std), name="normalization")(x)
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            filters_here = max(1, round(filters * width))
            x = layers.Conv2D(filters_here, 3, padding="same", name=f"block{block}_conv{index}", **options)(x)
            x = layers.BatchNormalization(momentum=0.97, name=f"block{block}_bn{index}")(x)
            x = layers.ReLU()(x)
        x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    for name in ("fc1", "fc2"):
        x = layers.Dense(max(1, round(hidden * width)), name=name, **options)(x)
        x = layers.BatchNormalization(momentum=0.97, name=f"{name}_bn")(x)
        x = layers.Dropout(dropout)(layers.ReLU()(x))
    return load_keras().Model(images, layers.Dense(num_classes, name="logits")(x))


def compile_plain(network, recipe: Recipe, steps: int, jit_compile: bool) -> None:
    """The optimiser, schedule and loss of `recipe`, as stock Keras writes them."""
    keras = load_keras()
    warmup = round(recipe.warmup * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warmup), warmup_target=recipe.learning_rate, warmup_steps=max(1, warmup)
    )
    optimizer = keras.optimizers.SGD(
        schedule, momentum=recipe.momentum, nesterov=True, weight_decay=recipe.weight_decay
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing)
    network.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)
