"""Whether served images still look like those the model was checked on (NumPy, SciPy).

A reference of scores per image travels in the bundle. A sample of served images is compared with it score by score.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import logsumexp
from scipy.stats import ks_2samp

MIN_SAMPLES = 50
SCORES = ("confidence", "energy", "brightness", "contrast", "saturation")


@dataclass(frozen=True)
class DriftReport:
    """The verdict on one sample of served images.

    Attributes:
        verdict: "stable", "drift" or "not enough data".
        samples: number of images looked at.
        needed: how many more the verdict needs; 0 once there are enough.
        p_values: for each score, the chance of a difference this large without drift.
        drifted: scores that differ, most clearly first.
        level: the chance of a false alarm of one look at such a sample.
    """

    verdict: str
    samples: int
    needed: int
    p_values: dict[str, float]
    drifted: tuple[str, ...]
    level: float

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


def score_images(images: np.ndarray, probabilities: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
    """The scores of each image: float32 (n,) by name.

    Args:
        images: uint8 (n, 32, 32, 3).
        probabilities, logits: float (n, classes), the model's answers.

    Energy is -logsumexp of the logits (Liu et al. 2020, "Energy-based Out-of-distribution Detection"). Brightness,
    contrast (standard deviation of brightness) and saturation (largest minus smallest channel) are 0 to 1.
    """
    pixels = images.astype(np.float32) / 255
    grey = pixels.mean(axis=-1)
    scores = {
        "confidence": probabilities.max(axis=1),
        "energy": -logsumexp(logits, axis=1),
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "saturation": (pixels.max(axis=-1) - pixels.min(axis=-1)).mean(axis=(1, 2)),
    }
    return {name: scores[name].astype(np.float32) for name in SCORES}


def compare_scores(reference: dict[str, np.ndarray], sample: dict[str, np.ndarray], level: float = 0.01) -> DriftReport:
    """Compares the scores of served images with the reference.

    Two-sample Kolmogorov-Smirnov tests, one a score, at `level` shared out among them (Bonferroni), so `level` bounds
    the chance of a false alarm of one look. It does not bound it over repeated looks at a growing sample.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}")
    samples = len(sample[SCORES[0]])
    if samples < MIN_SAMPLES:
        return DriftReport("not enough data", samples, MIN_SAMPLES - samples, {}, (), level)
    p_values = {name: float(ks_2samp(reference[name], sample[name]).pvalue) for name in SCORES}
    drifted = tuple(name for name in sorted(SCORES, key=p_values.get) if p_values[name] < level / len(SCORES))
    return DriftReport("drift" if drifted else "stable", samples, 0, p_values, drifted, level)
