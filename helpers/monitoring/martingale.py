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

import numpy as np
from scipy.special import ndtr, ndtri

MAX_BINS = 100
MIN_REFERENCE = 100
SHIFTS = (-3.0, -1.8, -0.9, -0.4, 0.4, 0.9, 1.8, 3.0)  # of the normal scores, in standard deviations
SPREADS = (0.5, 1.5)
BETS = (*((shift, 1.0) for shift in SHIFTS), *((0.0, spread) for spread in SPREADS))
CAUTION = 0.1  # share of a stake that is never at risk: a single outlier cannot ruin a bet
LEARNING_CAUTION = 0.2
WINDOWS = 20  # runs of bins for the coarser of the learning bets
LEARNING = ((True, 1 / 20), (True, 1 / 50), (False, 1 / 300))  # over windows or bins, and what is forgotten an image
TOGETHER = 32  # images that are taken in at once: one costs a tenth of one alone
CEILING = 1e100  # of a stake before them; they multiply it by less than 1e200


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
        self._total = float(gaps[0].sum())
        places = np.arange(bins)
        self._learners = [_Learner(gaps[0], places * WINDOWS // bins if w else places, r) for w, r in LEARNING]
        shares = np.ones((tests, len(BETS)))
        shares[0, len(LEARNING) :] = 0
        shares[tests - rising :, [shift <= 0 for shift, _ in BETS]] = 0
        self._shares = shares / shares.sum(axis=1, keepdims=True)
        self._stakes, self._best, self._since = (
            np.zeros_like(shares),
            np.zeros_like(shares),
            np.zeros(shares.shape, int),
        )
        self.images = 0
        self.capital = np.ones(tests)

    def update(self, bins: np.ndarray) -> np.ndarray:
        """Takes in the bins, int (n, tests), of up to `TOGETHER` images in their order.

        Returns:
            The capital after each, float64 (n, tests).
        """
        images = self.images + np.arange(len(bins) + 1)
        reserve = 1 / (1 + np.log1p(images))  # what is not invested yet: the parts fall as 1/(k log^2 k)
        grown = np.cumprod(self._pay(bins), axis=0)
        starts = 1 / np.concatenate([np.ones_like(grown[:1]), grown[:-1]])
        stakes = grown * (self._stakes + np.cumsum((reserve[:-1] - reserve[1:])[:, None, None] * starts, axis=0))
        capital = np.vecdot(self._shares, stakes) + reserve[1:, None]
        self._latest = images, grown, np.concatenate([self._best[None], starts]), self._since
        self.images, self.capital = int(images[-1]), capital[-1]
        self._stakes = np.minimum(stakes[-1], CEILING)
        self._best, self._since = self._look_back(len(bins) - 1)
        return capital

    def since(self, row: int, index: int = -1) -> int:
        """The number of the image, from 1, at which the change of test `row` most likely came.

        By what was known after the image at `index` of those taken in last.
        """
        best, since = self._look_back(index % len(self._latest[1]))
        return int(since[row, np.argmax(np.where(self._shares[row] > 0, best[row], -1))])

    def _look_back(self, index):
        """CUSUM (Page 1954): growth of each bet from the start that makes it largest, and the image of that start."""
        images, grown, starts, since = self._latest
        first = starts[: index + 2].argmax(axis=0)[None]
        best = grown[index] * np.take_along_axis(starts, first, axis=0)[0]
        return np.minimum(best, CEILING), np.where(first[0] > 0, images[0] + first[0], since)

    def _pay(self, bins):
        """By how much each bet multiplies its stake: float64 (n, tests, bets)."""
        payoffs = self._payoffs[self._rows, bins]
        paid = np.cumsum(np.concatenate([self._paid[None], payoffs]), axis=0)
        totals = self._total + np.arange(len(bins))
        factors = payoffs / paid[:-1] * totals[:, None, None]
        learned = [[learner.update(place) for learner in self._learners] for place in bins[:, 0].tolist()]
        factors[:, 0, : len(LEARNING)] = learned
        self._paid, self._total = paid[-1], self._total + len(bins)
        return factors


class _Learner:
    """A bet on the shares of groups of bins among recent images; plain numbers, which one image needs few of."""

    def __init__(self, gaps, groups, rate):
        counts = np.bincount(groups, gaps)
        self._groups, self._counts, self._total = groups.tolist(), counts.tolist(), float(counts.sum())
        self._recent, self._scale, self._rate = (counts / counts.sum()).tolist(), 1.0, rate

    def update(self, place):
        """What it pays for bin `place`, which it then learns."""
        group = self._groups[place]
        ratio = self._recent[group] * self._scale * self._total / self._counts[group]
        self._counts[group] += 1
        self._total += 1
        self._scale *= 1 - self._rate  # forgets them all
        self._recent[group] += self._rate / self._scale
        if self._scale < 1e-100:
            self._recent, self._scale = [share * self._scale for share in self._recent], 1.0
        return LEARNING_CAUTION + (1 - LEARNING_CAUTION) * ratio


def _normal_payoffs(gaps):
    """Normal densities of the bins over their share of the gaps: float64 (tests, bins, bets)."""
    edges = ndtri(np.cumsum(gaps, axis=1) / gaps.sum(axis=1, keepdims=True))[:, :, None]
    edges = np.concatenate([np.full_like(edges[:, :1], -np.inf), edges], axis=1)
    edges[:, -1] = np.inf
    shift, spread = np.array(BETS).T
    mass = np.diff(ndtr((edges - shift) / spread), axis=1)
    share = (gaps / gaps.sum(axis=1, keepdims=True))[:, :, None]
    return (1 - CAUTION) * mass / share + CAUTION
