"""How good a classifier is, from its logits (NumPy, SciPy; no Keras)."""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

from helpers.data.labels import Labels

BINS = 15
RESAMPLES = 10_000  # fewer leave ends of intervals that differ in the first printed digit with the seed


@dataclass(frozen=True)
class Evaluation:
    """A classifier on one set of images. Accuracies and calibration errors are 0 to 1.

    Attributes:
        samples: number of images.
        top1, top5: share of images whose class is the first, or among the first five.
        top1_interval: bootstrap 95 % interval of `top1`.
        superclass_top1: share whose predicted class lies in the right superclass.
        nll: mean negative log-likelihood (nats) with the temperature.
        calibration_error_raw, calibration_error: expected calibration error without and with the temperature.
        temperature: divides the logits.
        per_class, per_superclass: top-1 of each.
        confusions: the most frequent wrong answers as (class, answer, count).
    """

    samples: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    superclass_top1: float
    nll: float
    calibration_error_raw: float
    calibration_error: float
    temperature: float
    per_class: dict[str, float]
    per_superclass: dict[str, float]
    confusions: tuple[tuple[str, str, int], ...]

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


def evaluate(logits: np.ndarray, targets: np.ndarray, labels: Labels, temperature: float = 1.0) -> Evaluation:
    """Everything above from `logits`, float (n, classes), and `targets`, int (n,); every class must occur."""
    predicted, superclass_of = logits.argmax(axis=1), np.array(labels.superclass_of)
    correct = predicted == targets
    per_class = _mean_by_group(correct, targets, len(labels.fine))
    per_superclass = _mean_by_group(correct, superclass_of[targets], len(labels.superclasses))
    pairs = confusion_pairs(confusion_matrix(targets, predicted, len(labels.fine)))
    return Evaluation(
        samples=len(targets),
        top1=float(correct.mean()),
        top5=top_k_accuracy(logits, targets, 5),
        top1_interval=bootstrap_interval(correct),
        superclass_top1=float(np.mean(superclass_of[predicted] == superclass_of[targets])),
        nll=negative_log_likelihood(logits / temperature, targets),
        calibration_error_raw=expected_calibration_error(softmax(logits, axis=1), targets),
        calibration_error=expected_calibration_error(softmax(logits / temperature, axis=1), targets),
        temperature=temperature,
        per_class=dict(zip(labels.fine, per_class.tolist(), strict=True)),
        per_superclass=dict(zip(labels.superclasses, per_superclass.tolist(), strict=True)),
        confusions=tuple((labels.fine[true], labels.fine[answer], count) for true, answer, count in pairs),
    )


def top_k_accuracy(logits: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Share of rows of `logits` (n, classes) whose target is among the `k` largest."""
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be from 1 to {logits.shape[1]}, got {k}")
    largest = np.argpartition(-logits, k - 1, axis=1)[:, :k]
    return float(np.mean((largest == targets[:, None]).any(axis=1)))


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Mean of -log p(target), in nats."""
    return float(-np.mean(log_softmax(logits, axis=1)[np.arange(len(targets)), targets]))


def reliability(probabilities: np.ndarray, targets: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Count, mean confidence and accuracy for each of `bins` equal ranges of confidence: float64 (bins, 3).

    Means of empty ranges are 0. Rows of the reliability diagram of Guo et al. 2017.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    sums = [np.bincount(index, values, minlength=bins) for values in (confidence, correct)]
    return np.stack([count, *(total / np.maximum(count, 1) for total in sums)], axis=1)


def expected_calibration_error(probabilities: np.ndarray, targets: np.ndarray, bins: int = BINS) -> float:
    """Mean distance of confidence and accuracy over equal ranges of confidence (Naeini et al. 2015), 0 to 1."""
    count, confidence, accuracy = reliability(probabilities, targets, bins).T
    return float(np.sum(count * np.abs(confidence - accuracy)) / count.sum())


def exact_calibration_error(probabilities: np.ndarray, seed: int = 0, draws: int = 200) -> tuple[float, float, float]:
    """Expected calibration error if every confidence were exactly the chance to be right: mean, and 95 % of the draws.

    It is not 0: in each range chance alone takes accuracy away from confidence, the more so the fewer images there are.

    Args:
        probabilities: float (n, classes).
        draws: how often it is drawn anew which answers are right.
    """
    confidence, random = probabilities.max(axis=1, keepdims=True), np.random.default_rng(seed)
    errors = [  # one column, so that 0 is the answer
        expected_calibration_error(confidence, (random.random(len(confidence)) >= confidence[:, 0]).astype(int))
        for _ in range(draws)
    ]
    low, high = np.percentile(errors, [2.5, 97.5])
    return float(np.mean(errors)), float(low), float(high)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature, 0.05 to 20, at which mean confidence equals accuracy on held-out `targets`.

    Expectation consistency (Clarte et al. 2023): one equation with one solution. Where label smoothing has bent the
    logits, the temperature of largest likelihood (Guo et al. 2017) leaves the confidences wrong on average.
    """
    accuracy = np.mean(logits.argmax(axis=1) == targets)

    def excess(log_t):
        return softmax(logits / np.exp(log_t), axis=1).max(axis=1).mean() - accuracy

    low, high = np.log((0.05, 20))
    if excess(low) <= 0 or excess(high) >= 0:  # no temperature is sure, or unsure, enough
        return float(np.exp(low if excess(low) <= 0 else high))
    return float(np.exp(brentq(excess, low, high, xtol=1e-6)))


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (classes, classes): row the true class, column the answer."""
    return np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)


def confusion_pairs(matrix: np.ndarray, limit: int = 20) -> list[tuple[int, int, int]]:
    """The `limit` largest entries off the diagonal as (class, answer, count), largest first; zeros are left out."""
    wrong = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = [(*divmod(int(index), len(matrix)), int(wrong.flat[index])) for index in order]
    return [pair for pair in pairs if pair[2] > 0]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (n,) over 10,000 resamples (Efron 1979)."""
    low, high = np.percentile(_resampled_means(np.asarray(values, float), seed), [2.5, 97.5])
    return float(low), float(high)


def paired_difference(candidate: np.ndarray, champion: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Mean of `candidate` minus `champion`, values of the same n images, and its bootstrap 95 % interval.

    Where no image differs, resamples differ by nothing either, however few images there are. The interval is then what
    no event among n leaves possible (Clopper & Pearson 1934).
    """
    difference = np.asarray(candidate, float) - np.asarray(champion, float)
    if not difference.any():
        reach = 1 - 0.025 ** (1 / len(difference))
        return 0.0, -reach, reach
    return (float(difference.mean()), *bootstrap_interval(difference, seed))


def _resampled_means(values, seed):
    random, count = np.random.default_rng(seed), len(values)
    distinct, frequencies = np.unique(values, return_counts=True)
    if len(distinct) <= 3:  # right and wrong, or their differences: how often each is drawn is all that matters
        return random.multinomial(count, frequencies / count, RESAMPLES) @ distinct / count
    return [values[random.integers(0, count, count)].mean() for _ in range(RESAMPLES)]


def _mean_by_group(values, groups, count):
    sizes = np.bincount(groups, minlength=count)
    if not sizes.all():
        raise ValueError(f"targets must hold every class; {int(np.argmin(sizes))} does not occur")
    return np.bincount(groups, values, minlength=count) / sizes
