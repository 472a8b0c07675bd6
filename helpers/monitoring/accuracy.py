"""Whether a served model is still as accurate as its card says: by labels, and by its own confidence between them."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln

from helpers.monitoring.drift_reference import Reference

LOWER = np.linspace(0.1, 0.95, 18)  # accuracies bet on, as shares of the card's
CEILING = 1e300


@dataclass(frozen=True)
class AccuracyReport:
    """Accuracies are 0 to 1; intervals are of 95 %, valid at all times together.

    Attributes:
        predictions, labels: number of answers, and of those whose truth came.
        accuracy, interval: on the labels; None before the first.
        card: the accuracy that is tested against.
        verdict: "fallen" once the capital has reached 1/alpha, else "holds", or "not enough data" without labels.
        alpha: the chance at most of a false "fallen", ever.
        log10_capital: of the bets that accuracy is below the card's.
        estimate, estimate_interval: from calibrated confidence of all answers, corrected by the labels; no interval
            without labels, since nothing then says that the calibration still holds.
    """

    predictions: int
    labels: int
    accuracy: float | None
    interval: tuple[float, float] | None
    card: float
    verdict: str
    alpha: float
    log10_capital: float
    estimate: float | None
    estimate_interval: tuple[float, float] | None

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


class AccuracyMonitor:
    """Counts answers and labels of one model in constant memory. Not thread-safe: the caller sees to that.

    Labels must come for answers that are as good as chosen at random; of complaints alone nothing follows.

    Args:
        card: accuracy that must hold, above 0 and below 1. It is an estimate itself: the lower end of its interval is
            what surely held once.
        alpha: above 0, below 1.
    """

    def __init__(self, reference: Reference, card: float, alpha: float = 0.01) -> None:
        for name, value in (("card", card), ("alpha", alpha)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must be above 0 and below 1, got {value}")
        self.card, self.alpha = card, alpha
        count, _, accuracy = reference.calibration.T
        middles = (np.arange(len(count)) + 0.5) / len(count)
        self._calibrated = (count * accuracy + 10 * middles) / (count + 10)  # thin ranges lean on the confidence
        self._predictions = self._right = self._labels = 0
        self._expected = 0.0
        self._stakes, self._reserve, self._fallen = np.zeros(len(LOWER)), 1.0, False
        self._difference = _Interval()

    def predicted(self, confidences: np.ndarray) -> None:
        """Counts answers with their `confidences`, float (n,), 0 to 1."""
        self._expected += float(self._calibrate(confidences).sum())
        self._predictions += len(confidences)

    def labelled(self, correct: bool, confidence: float) -> None:
        """Counts the truth about one answer, which had this `confidence`."""
        (expected,) = self._calibrate(np.array([confidence])).tolist()
        self._labels += 1
        self._right += bool(correct)
        self._difference.add((bool(correct) - expected + 1) / 2)
        before, self._reserve = self._reserve, 1 / (1 + math.log1p(self._labels))
        lower = self.card * LOWER  # each bet is a likelihood ratio, fair at `card` and losing above
        self._stakes += before - self._reserve
        self._stakes *= lower / self.card if correct else (1 - lower) / (1 - self.card)
        np.minimum(self._stakes, CEILING, out=self._stakes)
        self._fallen |= self._capital >= 1 / self.alpha

    def report(self) -> AccuracyReport:
        """All that is known so far."""
        labels, estimate, interval = self._labels, None, None
        if self._predictions:
            estimate = self._expected / self._predictions
            if labels:
                low, middle, high = (2 * value - 1 for value in self._difference.bounds())
                interval = tuple(float(np.clip(estimate + value, 0, 1)) for value in (low, high))
                estimate = float(np.clip(estimate + middle, 0, 1))
        return AccuracyReport(
            predictions=self._predictions,
            labels=labels,
            accuracy=self._right / labels if labels else None,
            interval=accuracy_interval(self._right, labels) if labels else None,
            card=self.card,
            verdict="fallen" if self._fallen else "holds" if labels else "not enough data",
            alpha=self.alpha,
            log10_capital=float(np.log10(self._capital)),
            estimate=estimate,
            estimate_interval=interval,
        )

    @property
    def _capital(self):
        return float(self._stakes.mean() + self._reserve)

    def _calibrate(self, confidences):
        inside = (confidences >= 0) & (confidences <= 1)  # of NaN neither
        if not inside.all():
            raise ValueError(f"confidence must be from 0 to 1, got {confidences[~inside][0]}")
        ranges = len(self._calibrated)
        return self._calibrated[np.minimum((confidences * ranges).astype(int), ranges - 1)]


def accuracy_interval(right: int, count: int, alpha: float = 0.05) -> tuple[float, float]:
    """Confidence sequence of a share after `right` of `count`: it holds at all times with a chance of 1 - `alpha`.

    Bets spread as Beta(1/2, 1/2) against each candidate; those whose bets made less than 1/alpha remain (Robbins 1970;
    Waudby-Smith & Ramdas 2024, "Estimating Means of Bounded Random Variables by Betting").
    """
    wrong, won = count - right, betaln(right + 0.5, count - right + 0.5) - betaln(0.5, 0.5) + math.log(alpha)

    def excess(share):
        return won - right * math.log(share) - wrong * math.log1p(-share)

    tiny = 1e-12
    share = min(max(right / count, tiny), 1 - tiny)
    low = brentq(excess, tiny, share) if right else 0.0
    high = brentq(excess, share, 1 - tiny) if wrong else 1.0
    return float(low), float(high)


class _Interval:
    """Empirical Bernstein confidence sequence of a mean of values 0 to 1 (Waudby-Smith & Ramdas 2024, theorem 2)."""

    def __init__(self, alpha=0.05):
        self._goal = math.log(2 / alpha)
        self._count, self._sum, self._squares = 0, 0.5, 0.25
        self._weights = self._weighted = self._spent = 0.0

    def add(self, value):
        mean, variance = self._sum / (self._count + 1), self._squares / (self._count + 1)  # before the value
        self._count += 1
        bet = min(math.sqrt(2 * self._goal / (variance * self._count * math.log(1 + self._count))), 0.5)
        self._weights += bet
        self._weighted += bet * value
        self._spent += (value - mean) ** 2 * (-math.log1p(-bet) - bet)
        self._sum += value
        self._squares += (value - self._sum / (self._count + 1)) ** 2

    def bounds(self):
        middle, reach = self._weighted / self._weights, (self._goal + self._spent) / self._weights
        return max(0.0, middle - reach), middle, min(1.0, middle + reach)
