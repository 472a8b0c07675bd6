"""Whether served images still look like those the model was checked on, with a promise that holds for ever (NumPy)."""

import math
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import ndtri

from helpers.data.corruptions import CORRUPTIONS
from helpers.inference.engine import Scores
from helpers.monitoring.drift_reference import SEVERITIES, TESTS, Reference
from helpers.monitoring.likeness import LIKENESSES
from helpers.monitoring.martingale import BETS, TOGETHER, Martingale, break_ties
from helpers.monitoring.scores import NAMES, score_images

RECENT = 256  # images whose ranks are kept, to say what a drift looks like
POINTS = 256  # of the history, at most; beyond, every other one goes
SHIFT, POWER = 0.7, 0.9  # see DriftReport.needed


@dataclass(frozen=True)
class DriftReport:
    """The verdict so far.

    Attributes:
        verdict: "stable", "drift" or "not enough data". Drift stays until there is a new detector.
        images: number of images looked at.
        needed: how many more until a shift of any score by 0.7 standard deviations (of its normal scores), there from
            the first image, would have been seen with a chance of 90 %; 0 once there are enough.
        alpha: the chance at most of a false alarm, ever, however often one looks.
        since: the image, from 1, at which the drift most likely began, by the score that rang first; None without.
        alarm: the image at which the alarm rang; None without drift.
        scores: those of `TESTS` that crossed the line, strongest first.
        effects: mean rank among the reference minus one half, -0.5 to 0.5, of each of `monitoring.scores.NAMES`, over
            the latest of the images since then; empty without drift.
        log10_capital: of each of `TESTS`; the alarm rings where one reaches log10(number of tests / alpha).
        resembles: the known corruption whose effects are nearest (Euclidean), its severity and the distance; None
            without drift, or where no change at all is nearer.
        grew, shrank: superclasses answered clearly more or less often than in the reference, clearest first.
    """

    verdict: str
    images: int
    needed: int
    alpha: float
    since: int | None
    alarm: int | None
    scores: tuple[str, ...]
    effects: dict[str, float]
    log10_capital: dict[str, float]
    resembles: dict[str, str | int | float] | None
    grew: tuple[str, ...]
    shrank: tuple[str, ...]

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


class DriftDetector:
    """Watches one model's stream of images in memory that does not grow. Not thread-safe: the caller sees to that.

    The promise: of exchangeable streams, as if drawn from one urn with the reference, at most a share of `alpha` ever
    raises an alarm. `TESTS` are made apart (`monitoring.martingale`) and share `alpha` evenly (Bonferroni), since
    martingales in different filtrations may not be averaged: given the ranks of one score alone the next is uniform,
    given those of others too it need not be. What the scores say together is instead put into one more score for each
    known corruption (`monitoring.likeness`), fixed before the stream. Images that follow each other in kind, as in
    video, are no such stream.

    Args:
        alpha: above 0, below 1.
        seed: of the order of equal scores.
    """

    def __init__(self, reference: Reference, alpha: float = 0.01, seed: int = 0) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must be above 0 and below 1, got {alpha}")
        self.reference, self.alpha = reference, alpha
        self.line = len(TESTS) / alpha
        self._random = np.random.default_rng(seed)
        self._order = reference.class_order
        gaps = reference.gaps
        self._middles = (np.cumsum(gaps, axis=1) - gaps / 2) / (reference.count + 1)
        above = np.full((len(TESTS), 1), np.inf)
        self._edges = np.concatenate([reference.edges, above], axis=1)  # the first that is not below is the bin
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # scores and answers not bet on yet
        self._count = 0
        self._martingale = Martingale(gaps, rising=len(LIKENESSES))
        self._lines = np.full(len(TESTS), self.line)  # of the tests that have not crossed it
        self._crossed: dict[int, int] = {}  # test: since when
        self._alarm: int | None = None
        self._bins = np.zeros((RECENT, len(TESTS)), np.uint8)
        self._answers = np.zeros(RECENT, int)
        self._history: list[tuple[int, np.ndarray]] = []
        self._stride = 1

    @property
    def images(self) -> int:
        return self._count

    @property
    def alarm(self) -> int | None:
        """The image at which the alarm rang, of those bet on so far: `TOGETHER` at a time, and all in a report."""
        return self._alarm

    def update(self, images: np.ndarray, scores: Scores) -> dict[str, np.ndarray]:
        """Takes in uint8 (n, 32, 32, 3) images with the engine's answers; returns their scores, float32 (n,) by name.

        Raises:
            ValueError: if they do not fit each other or the reference, or are not finite; nothing is taken in then.
        """
        classes, units = self.reference.class_means.shape
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
            raise ValueError(f"images must be uint8 (n, 32, 32, 3), got {images.dtype} {images.shape}")
        for name, width in (("probabilities", classes), ("logits", classes), ("features", units)):
            if (shape := getattr(scores, name).shape) != (len(images), width):
                raise ValueError(f"{name} must be {(len(images), width)} as the images and the reference, got {shape}")
        if not len(images):
            return {name: np.empty(0, np.float32) for name in NAMES}
        rows = score_images(images, scores, self.reference.class_means, self._order)
        if not np.isfinite(rows).all():
            raise ValueError("scores must be finite; the model answered with NaN or infinity")
        self.update_rows(rows, scores.logits.argmax(axis=1))
        return dict(zip(NAMES, rows.T, strict=True))

    def update_rows(self, rows: np.ndarray, answers: np.ndarray) -> None:
        """Takes in scores, float32 (n, scores), and classes, int (n,), as `update` computes them."""
        self._waiting.append((np.array(rows), np.array(answers)))  # copies: these wait, and the caller may write
        self._count += len(rows)
        if self._count - self._martingale.images >= TOGETHER:
            self._bet()

    def _bet(self):
        """Bets on the images that wait, in their order."""
        if not self._waiting:
            return
        rows, answers = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        self._waiting = []
        keys, martingale = break_ties(self.reference.tests(rows), self._random), self._martingale
        for start in range(0, len(keys), TOGETHER):
            bins = np.argmin(self._edges < keys[start : start + TOGETHER, :, None], axis=2)
            places = np.arange(martingale.images, martingale.images + len(bins)) % RECENT
            self._bins[places], self._answers[places] = bins, answers[start : start + TOGETHER]
            first, capital = martingale.images + 1, martingale.update(bins)
            for index in np.flatnonzero((capital >= self._lines).any(axis=1)).tolist():
                self._ring(first + index, index, capital[index])
            for image in range(first + -first % self._stride, first + len(bins), self._stride):
                self._history.append((image, capital[image - first].copy()))
            if len(self._history) > POINTS:
                self._history, self._stride = self._history[1::2], 2 * self._stride

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of some images, int (m,), and log10 of the capital of each test then, float64 (m, tests)."""
        self._bet()
        points = [(0, np.ones(len(TESTS))), *self._history]
        return np.array([image for image, _ in points]), np.log10([capital for _, capital in points])

    def report(self) -> DriftReport:
        """The verdict after all images so far."""
        self._bet()
        capital, drift = self._martingale.capital, self._alarm is not None
        needed = max(0, images_to_see(self.alpha) - self.images)
        since = next(iter(self._crossed.values())) if drift else None
        effects = self._effects(since) if drift else np.zeros(0)
        grew, shrank = self._superclasses(since) if drift else ((), ())
        return DriftReport(
            verdict="drift" if drift else "not enough data" if needed else "stable",
            images=self.images,
            needed=0 if drift else needed,
            alpha=self.alpha,
            since=since,
            alarm=self._alarm,
            scores=tuple(TESTS[row] for row in sorted(self._crossed, key=lambda row: -capital[row])),
            effects=dict(zip(NAMES, effects.tolist(), strict=True)) if drift else {},
            log10_capital=dict(zip(TESTS, np.log10(capital).tolist(), strict=True)),
            resembles=self._nearest(effects) if drift else None,
            grew=grew,
            shrank=shrank,
        )

    def _ring(self, image, index, capital):
        self._alarm = self._alarm or image
        for row in np.flatnonzero(capital >= self._lines).tolist():
            self._crossed[row], self._lines[row] = self._martingale.since(row, index), np.inf

    def _latest(self, since):
        count = min(self.images - since + 1, RECENT)
        return np.arange(self.images - count, self.images) % RECENT

    def _effects(self, since):
        bins = self._bins[self._latest(since), : len(NAMES)].astype(int)
        return self._middles[np.arange(len(NAMES)), bins].mean(axis=0) - 0.5

    def _nearest(self, effects):
        known = self.reference.moves[:, :, 1:] - 0.5  # without the class, whose order means nothing here
        distances = np.sqrt(((known - effects[1:]) ** 2).sum(axis=2))
        row, column = np.unravel_index(np.argmin(distances), distances.shape)
        if distances[row, column] >= np.sqrt((effects[1:] ** 2).sum()):
            return None
        distance = float(distances[row, column])
        return {"corruption": CORRUPTIONS[row], "severity": SEVERITIES[column], "distance": distance}

    def _superclasses(self, since):
        groups, names = np.array(self.reference.labels.superclass_of), self.reference.labels.superclasses
        answers = self._answers[self._latest(since)]
        expected = np.bincount(groups, self.reference.class_counts, len(names)) / self.reference.count * len(answers)
        found = np.bincount(groups[answers], minlength=len(names))
        clear = (found - expected) / np.sqrt(expected + 1)
        grew = [index for index in np.argsort(-clear) if clear[index] > 3]
        shrank = [index for index in np.argsort(clear) if clear[index] < -2]
        return tuple(names[index] for index in grew), tuple(names[index] for index in shrank)


def images_to_see(alpha: float, shift: float = SHIFT, power: float = POWER) -> int:
    """Images until a shift of one score that is there from the start raises the alarm with a chance of `power`.

    By the normal approximation: after n images the right bet has log capital n shift^2 / 2, standard deviation
    sqrt(n) shift, of the stake that the first image invests in it.
    """
    stake = (1 - 1 / (1 + math.log(2))) / len(BETS)
    goal, spread = math.log(len(TESTS) / alpha / stake), float(ndtri(power))
    return math.ceil(((spread + math.sqrt(spread**2 + 2 * goal)) / shift) ** 2)
