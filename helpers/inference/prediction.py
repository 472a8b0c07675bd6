"""What a model says about one image."""

from dataclasses import dataclass

import numpy as np

from helpers.delivery.bundle import Bundle
from helpers.inference.engine import Scores


@dataclass(frozen=True)
class Prediction:
    """One answer, with the version that gave it.

    Attributes:
        probabilities: float32 (classes,).
        class_names: of that version, in index order.
        seconds: in the queue, in the predictor's decoding if it did that, and in the engine.
        bundle: of the model; not the model, which may be gone before what it said is written down.
        image: for which, uint8 (32, 32, 3).
        scores: of this image alone: each array has one row.
    """

    class_index: int
    class_name: str
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    version: str
    seconds: float
    bundle: Bundle
    image: np.ndarray
    scores: Scores

    @property
    def confidence(self) -> float:
        return float(self.probabilities[self.class_index])
