"""VGG16 for 32x32 colour images, batch-normalised, with its preprocessing inside (backend-neutral Keras 3)."""

from pathlib import Path

import numpy as np

from helpers.training.backend import load_keras
from helpers.training.layers import layer_classes

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # filters and convolutions; Simonyan & Zisserman 2015, D
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)  # what Keras Applications' VGG16 subtracts


class WeightsError(ValueError):
    """Weights that do not fit the network; the message names the first array that does not."""


def make_config(
    mean, std, *, num_classes: int = 100, width: float = 1.0, hidden: int = 512, dropout: float = 0.5
) -> dict:
    """The arguments of `build_vgg16` as plain JSON values, checked.

    Args:
        mean, std: three channel statistics of the training images, 0 to 255, std above 0.
        num_classes: at least 2.
        width: multiplies the number of filters and hidden units, above 0 and up to 4; 1 is VGG16, 0.25 a small run.
        hidden: units of each of the two hidden dense layers before `width`.
        dropout: share of hidden units dropped in training, 0 to below 1.
    """
    mean, std = [float(value) for value in mean], [float(value) for value in std]
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or not np.isfinite(mean + std).all():
        raise ValueError(f"mean and std must be three finite channels each with std above 0, got {mean} and {std}")
    if not 0 < width <= 4:
        raise ValueError(f"width must be above 0 and at most 4, got {width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}")
    if num_classes < 2 or hidden < 1:
        raise ValueError(f"num_classes must be at least 2 and hidden at least 1, got {num_classes} and {hidden}")
    return {"mean": mean, "std": std, "num_classes": num_classes, "width": width, "hidden": hidden, "dropout": dropout}


def build_vgg16(
    mean,
    std,
    num_classes: int = 100,
    width: float = 1.0,
    hidden: int = 512,
    dropout: float = 0.5,
    dtype: str = "float32",
):
    """VGG16 with 13 convolutions and 3 dense layers, each but the last batch-normalised (Ioffe & Szegedy 2015).

    Takes float (N, height, width, 3) RGB images with values 0 to 255, as decoded; 32x32, or smaller in early epochs.
    Gives float32 logits (N, num_classes), not probabilities. Arguments as in `make_config`, and `dtype`, Keras' policy
    for the layers between the first and the last (weights stay float32). Preprocessing is the first layer, so that
    training and serving cannot differ in it.
    """
    keras = load_keras()
    layers = keras.layers
    convolution, normalisation = layer_classes()

    config = make_config(mean, std, num_classes=num_classes, width=width, hidden=hidden, dropout=dropout)
    mean, variance = np.array(config["mean"]), np.square(config["std"])

    def normalise_and_activate(x, name):
        x = normalisation(momentum=0.97, dtype=dtype, name=name)(x)  # settles in short runs, too
        return layers.ReLU(dtype=dtype, name=f"{name}_relu")(x)

    images = x = keras.Input((None, None, 3), name="images", dtype="float32")
    x = layers.Normalization(mean=mean, variance=variance, dtype="float32", name="normalization")(x)
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            conv = convolution(  # without bias, which batch normalisation would subtract
                _scale(filters, width),
                kernel_initializer="he_normal",
                dtype=dtype,
                name=f"block{block}_conv{index}",
            )
            x = normalise_and_activate(conv(x), f"block{block}_bn{index}")
        x = layers.MaxPooling2D(2, padding="same", dtype=dtype, name=f"block{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(dtype=dtype, name="pool")(x)  # of one pixel at 32x32; lets smaller images through
    for name in ("fc1", "fc2"):
        units = _scale(hidden, width)
        dense = layers.Dense(units, use_bias=False, kernel_initializer="he_normal", dtype=dtype, name=name)
        x = normalise_and_activate(dense(x), f"{name}_bn")
        features = x
        x = layers.Dropout(dropout, dtype=dtype, name=f"{name}_dropout")(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    model = keras.Model(images, logits, name="vgg16")
    model.features = features
    return model


def weight_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Shape of each array of the network by ``layer/variable``, in the order of the layers."""
    shapes, channels = {}, 3
    for block, (filters, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            filters_here = _scale(filters, config["width"])
            shapes[f"block{block}_conv{index}/kernel"] = (3, 3, channels, filters_here)
            shapes |= _normalisation_shapes(f"block{block}_bn{index}", filters_here)
            channels = filters_here
    for name in ("fc1", "fc2"):
        units = _scale(config["hidden"], config["width"])
        shapes[f"{name}/kernel"] = (channels, units)
        shapes |= _normalisation_shapes(f"{name}_bn", units)
        channels = units
    return shapes | {"logits/kernel": (channels, config["num_classes"]), "logits/bias": (config["num_classes"],)}


def get_weights(model) -> dict[str, np.ndarray]:
    """All arrays of the network as float32 by ``layer/variable``."""
    return {
        f"{layer.name}/{variable.name}": np.asarray(variable, np.float32)
        for layer in model.layers
        for variable in layer.weights
        if variable.name != "seed_generator_state"
    }


def set_weights(model, weights: dict[str, np.ndarray]) -> None:
    """Sets every array of the network; all names and shapes must fit, and nothing is set if one does not."""
    current = get_weights(model)
    if missing := sorted(current.keys() - weights.keys()) + sorted(weights.keys() - current.keys()):
        raise WeightsError(f"weights must name the arrays of this network; {missing[0]!r} is on one side only")
    for name, array in weights.items():
        if array.shape != current[name].shape:
            raise WeightsError(f"{name} must have shape {current[name].shape}, got {array.shape}; was width the same?")
    for layer in model.layers:
        for variable in layer.weights:
            if variable.name != "seed_generator_state":
                variable.assign(weights[f"{layer.name}/{variable.name}"])


def classify(config: dict, weights: dict[str, np.ndarray], images: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities, float32 (n, classes), that a float32 network of `config` and `weights` gives for `images`.

    What a bundle's golden images are expected to get: computed by Keras, not by the engine that is checked with it.
    """
    keras = load_keras()

    network = build_vgg16(**config)
    set_weights(network, weights)
    logits = network.predict(images, verbose=0)
    return np.asarray(keras.ops.softmax(logits / temperature), np.float32)


def load_imagenet_weights(model, weights: str | Path = "imagenet") -> None:
    """Starts the convolutions from Keras Applications' VGG16; the dense layers keep their initial values.

    Args:
        model: from `build_vgg16` with width 1.
        weights: "imagenet" (58 MB, downloaded once by Keras), or a weights file of ``VGG16(include_top=False)``.

    That network takes BGR minus a mean, ours RGB standardised: the first kernel is turned and scaled to compute the
    same. Its biases become (negated) moving means, so that the first forward pass in inference equals the original's,
    but for the padding of the first layer, which is zero in both conventions and so differs in colour.
    """
    keras = load_keras()

    source = keras.applications.VGG16(include_top=False, weights=str(weights), input_shape=(32, 32, 3))
    normalization, ours = model.get_layer("normalization"), get_weights(model)
    mean, std = (np.ravel(np.asarray(value)) for value in (normalization.mean, np.sqrt(normalization.variance)))
    for block, (_, convolutions) in enumerate(BLOCKS, start=1):
        for index in range(1, convolutions + 1):
            name = f"block{block}_conv{index}"
            kernel, bias = (np.asarray(value) for value in source.get_layer(name).get_weights())
            if name == "block1_conv1":
                kernel = kernel[:, :, ::-1]
                bias = bias + np.einsum("hwio,i->o", kernel, mean - np.array(IMAGENET_MEAN_BGR[::-1]))
                kernel = kernel * std[:, None]
            if kernel.shape != ours[f"{name}/kernel"].shape:
                raise WeightsError(f"ImageNet weights need width 1: {name} has {ours[f'{name}/kernel'].shape} here")
            ours[f"{name}/kernel"] = kernel.astype(np.float32)
            bn = name.replace("conv", "bn")
            ours[f"{bn}/moving_mean"] = -bias.astype(np.float32)
            ours[f"{bn}/moving_variance"] = np.full_like(bias, 1 - model.get_layer(bn).epsilon, np.float32)
    set_weights(model, ours)


def _scale(count, width):
    return max(1, round(count * width))


def _normalisation_shapes(layer, channels):
    return {f"{layer}/{part}": (channels,) for part in ("gamma", "beta", "moving_mean", "moving_variance")}
