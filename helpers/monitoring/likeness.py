"""How much an image's scores look like those under each known corruption: one number a corruption (NumPy, SciPy).

The best test of one simple change bets on its likelihood ratio (Neyman & Pearson 1933; Page 1954 for the moment it
comes), which draws on all scores together. Here that ratio is learned, as logistic regression does it: corrupted
against clean images, on a sum of one step function a score (Hastie & Tibshirani 1986, "Generalized Additive Models").
A function that is fixed before the images come is a score like any other, so no bet on it needs a promise of its own,
as long as the images it was learned on are not in the reference (Marandon, Lei, Mary & Roquain 2024, "Adaptive novelty
detection with false discovery rate guarantee").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, ndtr

from helpers.data.corruptions import CORRUPTIONS

LIKENESSES = tuple(f"like {name}" for name in CORRUPTIONS)
STEPS = 16  # of each function, even in the normal scores
REACH = 2.2  # standard deviations, within which they lie
STIFFNESS = 5.0  # against differences between neighbouring steps, in images
FLATNESS = 0.02  # of that, against steps other than 0


@dataclass(frozen=True)
class Likeness:
    """The step functions.

    Attributes:
        cuts: float32 (scores, STEPS - 1), where the steps of each score lie.
        weights: float32 (scores, STEPS, corruptions), their heights, in nats.
    """

    cuts: np.ndarray
    weights: np.ndarray

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Of scores, float32 (n, scores): float32 (n, corruptions), the higher the likelier."""
        steps = (self.cuts < rows[:, :, None]).sum(axis=2)
        return self.weights[np.arange(len(self.cuts)), steps].sum(axis=1)


def learn_likeness(clean: np.ndarray, changed: Sequence[np.ndarray]) -> Likeness:
    """What tells images under each corruption from clean ones.

    Args:
        clean: scores, float32 (n, scores), of images that will not be in the reference.
        changed: the same under each of `CORRUPTIONS`, in their order, all severities together.
    """
    cuts = np.quantile(clean, ndtr(np.linspace(-REACH, REACH, STEPS - 1)), axis=0).T.astype(np.float32)
    scores = len(cuts)
    slopes = np.diff(np.eye(STEPS), axis=0)
    penalty = np.kron(np.eye(scores), slopes.T @ slopes + FLATNESS * np.eye(STEPS)) * STIFFNESS / len(clean)
    quiet = _expand(cuts, clean)
    weights = [_separate(_expand(cuts, rows), quiet, penalty) for rows in changed]
    return Likeness(cuts, np.stack(weights, axis=1).reshape(scores, STEPS, -1).astype(np.float32))


def _expand(cuts, rows):
    steps = (cuts < rows[:, :, None]).sum(axis=2)
    return (steps[:, :, None] == np.arange(STEPS)).reshape(len(rows), -1).astype(float)


def _separate(changed, clean, penalty):
    """Coefficients, float64 (features,), that separate the two, which count as much as each other."""
    rows, sign = np.concatenate([changed, clean]), np.repeat([1.0, -1.0], [len(changed), len(clean)])
    share = np.repeat([0.5 / len(changed), 0.5 / len(clean)], [len(changed), len(clean)])

    def cost(values):
        heights, offset = values[:-1], values[-1]
        margin, stiff = sign * (rows @ heights + offset), penalty @ heights
        pull = -share * sign * expit(-margin)
        return share @ np.logaddexp(0, -margin) + heights @ stiff / 2, np.append(rows.T @ pull + stiff, pull.sum())

    found = minimize(cost, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return found.x[:-1]
