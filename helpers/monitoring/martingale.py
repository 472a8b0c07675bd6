"""Tests by betting that may be looked at after every image, and keep their promise for ever (NumPy, SciPy).

A reference of n scores cuts the line into bins at some of its order statistics. Under exchangeability a new score falls
into each of the n + 1 gaps between the scores before it with equal chance, so the chance of a bin is its share of the
gaps, reference and past stream together: a Polya urn, exact for every n. (To take the reference's shares for the truth
is not: their sampling error is a small shift, which a long stream finds.) A bet multiplies its stake by a function of
the bin whose mean under the urn is 1. That is a conformal test martingale (Vovk, Gammerman & Shafer 2022,
"Algorithmic Learning in a Random World"; Vovk, Petej et al. 2021, "Retrain or Not Retrain: Conformal Test Martingales
for Change-point Detection"), betting on the bin instead of on a p-value drawn at random within it.

Each image invests a part of the capital anew, as in the e-detectors of Shin, Ramdas & Rinaldo 2024, but the parts sum
to 1: the capital starts at 1 and is a martingale, so it ever reaches c with a chance of at most 1/c (Ville 1939). The
parts fall as 1/(k log^2 k), so that a change at image k costs a factor of about k log^2 k.
"""

import math

import numpy as np
from scipy.special import ndtr, ndtri

MAX_BINS = 100
MIN_REFERENCE = 100
SHIFTS = (-3.0, -1.5, -0.7, -0.3, 0.0, 0.3, 0.7, 1.5, 3.0)  # of the normal scores, in standard deviations
SPREADS = (0.5, 1.0, 1.5)
BETS = tuple((shift, spread) for shift in SHIFTS for spread in SPREADS if (shift, spread) != (0.0, 1.0))
CAUTION = 0.1  # share of a stake that is never at risk: a single outlier cannot ruin a bet
LEARNING_CAUTION = 0.2
WINDOWS = 20  # runs of bins for the coarser of the learning bets
LEARNING = ((True, 1 / 20), (True, 1 / 50), (False, 1 / 300))  # over windows or bins, and what is forgotten an image
CEILING = 1e300


def bin_ranks(count: int, even: bool = False) -> np.ndarray:
    """Ranks, int (bins - 1,), 1 to `count`, of the reference scores that cut the bins.

    They are even in the normal scores, hence fine in both tails, or `even` in rank.

    Raises:
        ValueError: if there are fewer than `MIN_REFERENCE` reference scores.
    """
    if count < MIN_REFERENCE:
        raise ValueError(f"count must be at least {MIN_REFERENCE} reference images, got {count}; validate on more")
    bins = min(MAX_BINS, count // 10 // 2 * 2)
    if even:
        return np.round(np.arange(1, bins) * (count + 1) / bins).astype(int)
    lowest = ndtri(1 / (count + 1))
    half = np.round((count + 1) * ndtr(np.linspace(lowest, 0, bins // 2))).astype(int)
    half = np.maximum.accumulate(half - np.arange(len(half))) + np.arange(len(half))  # each rank once
    return np.concatenate([half, count + 1 - half[-2::-1]])


def break_ties(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`values`, float32, as float64 with a random part below their precision, which puts equal ones in an order."""
    values = values.astype(np.float64)
    return values + random.random(values.shape) * (np.abs(values) * 2.0**-25 + 1e-30)


def count_gaps(ranks: np.ndarray, count: int) -> np.ndarray:
    """Gaps between the scores in each bin, int (bins,); their sum is `count` + 1."""
    return np.diff(np.concatenate([[0], ranks, [count + 1]]))


class Martingale:
    """Capital of bets against the exchangeability of one stream of bins with the reference, one row a test.

    The first row is bet on by histograms that learn, the others by normal shapes of given shift and spread.

    Attributes:
        images: taken in so far.
        capital: float64 (tests,), 1 at the start.
    """

    def __init__(self, gaps: np.ndarray, rising: int = 0) -> None:
        """Bets from 1.

        Args:
            gaps: those of the reference, int (tests, bins), at least 1 each, the same sum for every test.
            rising: the last tests, of which only a shift upwards is bet on.
        """
        tests, bins = gaps.shape
        self._rows = np.arange(tests)
        self._payoffs = _normal_payoffs(gaps)  # (tests, bins, bets)
        self._payoffs[0] = 1  # where the learning bets stand in the first columns, and no others
        self._paid = np.einsum("sbk,sb->sk", self._payoffs, gaps)  # over reference and stream
        self._counts = gaps[0].astype(float)
        self._window = np.arange(bins) * WINDOWS // bins
        self._coarse_counts = np.bincount(self._window, self._counts, WINDOWS)
        self._total = float(gaps[0].sum())
        fine, coarse = self._counts / self._total, self._coarse_counts / self._total
        self._recent = [(coarse if is_coarse else fine).copy() for is_coarse, _ in LEARNING]
        shares = np.ones((tests, len(BETS)))
        shares[0, len(LEARNING) :] = 0
        shares[tests - rising :, [shift <= 0 for shift, _ in BETS]] = 0
        self._shares = shares / shares.sum(axis=1, keepdims=True)
        self._stakes, self._best = np.zeros_like(shares), np.zeros_like(shares)
        self._since = np.zeros(shares.shape, int)
        self._reserve = 1.0
        self.images = 0
        self.capital = np.ones(tests)

    def update(self, bins: np.ndarray) -> None:
        """Takes in the bins, int (tests,), of one image."""
        self.images += 1
        payoffs = self._payoffs[self._rows, bins]
        factors = payoffs / self._paid
        factors *= self._total
        self._paid += payoffs
        factors[0, : len(LEARNING)] = self._learn(bins[0])
        self._total += 1
        before, self._reserve = self._reserve, 1 / (1 + math.log1p(self.images))
        part = before - self._reserve  # falls as 1/(k log^2 k)
        self._stakes += part
        self._since[self._best < 1] = self.images  # CUSUM (Page 1954): the start of largest likelihood
        np.maximum(self._best, 1, out=self._best)
        self._stakes *= factors
        self._best *= factors
        np.minimum(self._stakes, CEILING, out=self._stakes)
        np.minimum(self._best, CEILING, out=self._best)
        self.capital = np.einsum("sk,sk->s", self._shares, self._stakes)
        self.capital += self._reserve

    def since(self, row: int) -> int:
        """The number of the image, from 1, at which the change of test `row` most likely came."""
        return int(self._since[row, np.argmax(np.where(self._shares[row] > 0, self._best[row], -1))])

    def _learn(self, place):
        """What each learning bet pays for this bin."""
        window, factors = self._window[place], []
        for (coarse, rate), recent in zip(LEARNING, self._recent, strict=True):
            where, counts = (window, self._coarse_counts) if coarse else (place, self._counts)
            ratio = recent[where] * self._total / counts[where]
            factors.append(LEARNING_CAUTION + (1 - LEARNING_CAUTION) * ratio)
            recent *= 1 - rate
            recent[where] += rate
        self._counts[place] += 1
        self._coarse_counts[window] += 1
        return factors


def _normal_payoffs(gaps):
    """Normal densities of the bins over their share of the gaps: float64 (tests, bins, bets)."""
    edges = ndtri(np.cumsum(gaps, axis=1) / gaps.sum(axis=1, keepdims=True))[:, :, None]
    edges = np.concatenate([np.full_like(edges[:, :1], -np.inf), edges], axis=1)
    edges[:, -1] = np.inf
    shift, spread = np.array(BETS).T
    mass = np.diff(ndtr((edges - shift) / spread), axis=1)
    share = (gaps / gaps.sum(axis=1, keepdims=True))[:, :, None]
    return (1 - CAUTION) * mass / share + CAUTION
