"""What one image looks like to the drift tests: a few numbers from its pixels and from the model's answer (NumPy)."""

import numpy as np

from helpers.data.image_statistics import measure_images
from helpers.inference.engine import Scores

NAMES = ("class", "confidence", "energy", "distance", "brightness", "contrast", "sharpness", "saturation")


def score_images(images: np.ndarray, scores: Scores, class_means: np.ndarray, class_order: np.ndarray) -> np.ndarray:
    """The scores of each image: float32 (n, scores), in the order of `NAMES`.

    Args:
        images: uint8 (n, 32, 32, 3).
        scores: the engine's answers to them.
        class_means: float32 (classes, units), the mean features of each predicted class.
        class_order: int (classes,), the place of each class where superclasses are contiguous.

    class is that place of the answer; confidence its probability, 0 to 1. Energy is -logsumexp of the logits (Liu et
    al. 2020, "Energy-based Out-of-distribution Detection"). Distance is from the features to the mean of the answer's
    class, Euclidean (after Lee et al. 2018, "A Simple Unified Framework for Detecting Out-of-Distribution Samples").
    The rest as in `data.image_statistics`.
    """
    logits, answers = scores.logits, scores.logits.argmax(axis=1)
    offsets = scores.features - class_means[answers]
    largest = np.maximum.reduce(logits, 1)
    found = np.empty((len(images), len(NAMES)), np.float32)
    found[:, 0] = class_order[answers]
    found[:, 1] = np.maximum.reduce(scores.probabilities, 1)
    found[:, 2] = -largest - np.log(np.add.reduce(np.exp(logits - largest[:, None]), 1))
    found[:, 3] = np.sqrt(np.vecdot(offsets, offsets))
    found[:, 4:] = measure_images(images)
    return found
