"""What one image looks like to the drift tests: a few numbers from its pixels and from the model's answer (NumPy)."""

import numpy as np

from helpers.engine import Scores

NAMES = ("class", "confidence", "energy", "distance", "brightness", "contrast", "sharpness", "saturation")
_CHUNK = 64  # images at once: their planes stay in the cache


def score_images(
    images: np.ndarray, scores: Scores, class_means: np.ndarray, class_order: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores of each image: float32 (n,) by name, in the order of `NAMES`.

    Args:
        images: uint8 (n, 32, 32, 3).
        scores: the engine's answers to them.
        class_means: float32 (classes, units), the mean features of each predicted class.
        class_order: int (classes,), the place of each class where superclasses are contiguous.

    class is that place of the answer; confidence its probability, 0 to 1. Energy is -logsumexp of the logits (Liu et
    al. 2020, "Energy-based Out-of-distribution Detection"). Distance is from the features to the mean of the answer's
    class, Euclidean (after Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples").
    Brightness, contrast (standard deviation of brightness), sharpness (mean absolute Laplacian of brightness) and
    saturation (largest minus smallest channel) are in units of the pixel range.
    """
    answers = scores.logits.argmax(axis=1)
    offsets = scores.features - class_means[answers]
    largest = scores.logits.max(axis=1)
    found = {
        "class": class_order[answers],
        "confidence": scores.probabilities.max(axis=1),
        "energy": -largest - np.log(np.exp(scores.logits - largest[:, None]).sum(axis=1)),
        "distance": np.sqrt(np.einsum("ij,ij->i", offsets, offsets)),
    }
    parts = [_score_pixels(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    found |= dict(zip(NAMES[4:], np.concatenate(parts, axis=1), strict=True))
    return {name: found[name].astype(np.float32) for name in NAMES}


def _score_pixels(images):
    """Brightness, contrast, sharpness, saturation: float32 (4, n). In place where it can be: a request waits for it."""
    count = len(images)
    red, green, blue = images.transpose(3, 0, 1, 2).astype(np.float32, order="C")
    grey = red + green
    grey += blue
    colour = np.maximum(np.maximum(red, green), blue)
    colour -= np.minimum(np.minimum(red, green), blue)
    edges = 4 * grey[:, 1:-1, 1:-1]
    for neighbour in (grey[:, :-2, 1:-1], grey[:, 2:, 1:-1], grey[:, 1:-1, :-2], grey[:, 1:-1, 2:]):
        edges -= neighbour
    np.abs(edges, out=edges)
    flat, ones = grey.reshape(count, -1), np.ones(grey[0].size, np.float32)
    brightness = flat @ ones / (3 * 255 * flat.shape[1])
    square = np.einsum("ij,ij->i", flat, flat) / ((3 * 255) ** 2 * flat.shape[1])
    contrast = np.sqrt(np.maximum(square - brightness**2, 0))
    sharpness = edges.reshape(count, -1) @ ones[: edges[0].size] / (3 * 255 * edges[0].size)
    saturation = colour.reshape(count, -1) @ ones / (255 * flat.shape[1])
    return np.stack([brightness, contrast, sharpness, saturation])
