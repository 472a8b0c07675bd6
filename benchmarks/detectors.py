"""The detectors that benchmarks/drift.py compares: each gives its statistic after every image of a stream of bins."""

import numpy as np

from helpers.monitoring.likeness import LIKENESSES
from helpers.monitoring.martingale import TOGETHER, Martingale

WINDOW = 100  # images, of the windowed Kolmogorov-Smirnov test and of KSWIN


def our_trace(gaps, bins):
    """log10 of the capital of each test after each image: (n, tests)."""
    martingale = Martingale(gaps, rising=len(LIKENESSES))
    parts = [martingale.update(bins[start : start + TOGETHER]) for start in range(0, len(bins), TOGETHER)]
    return np.log10(np.concatenate(parts))


def ks_trace(gaps, bins):
    """Largest Kolmogorov-Smirnov distance of the latest `WINDOW` images from the reference, over tests, on its bins.

    Windows and reference keep their sizes, so a line for the distance is one for the p-value with Bonferroni.
    """
    found = np.zeros(len(bins))
    for row, share in enumerate(np.cumsum(gaps, axis=1) / gaps.sum(axis=1, keepdims=True)):
        below = np.cumsum(bins[:, row, None] <= np.arange(gaps.shape[1]), axis=0)
        windows = below[WINDOW - 1 :].astype(float)
        windows[1:] -= below[:-WINDOW]
        found[WINDOW - 1 :] = np.maximum(found[WINDOW - 1 :], np.abs(windows / WINDOW - share).max(axis=1))
    return found


def oracle_trace(ratios):
    """Page's CUSUM of log likelihood ratios, natural logarithm."""
    total = np.cumsum(ratios)
    return total - np.minimum(np.minimum.accumulate(total), 0)


def river_trace(name, rows, level):
    """1 from the image on at which any of river's detectors, one a score, rings at `level` shared among the scores."""
    from river import drift

    make = {
        "ADWIN": lambda: drift.ADWIN(delta=level / rows.shape[1]),
        "KSWIN": lambda: drift.KSWIN(alpha=level / rows.shape[1], window_size=WINDOW, stat_size=30, seed=0),
    }[name]
    detectors = [make() for _ in range(rows.shape[1])]
    for index, row in enumerate(rows.tolist()):
        for detector, value in zip(detectors, row, strict=True):
            detector.update(value)
        if any(detector.drift_detected for detector in detectors):
            return index + 1
    return None


def log_ratios(table, bins):
    """Naive Bayes over the scores: the sum of log likelihood ratios of the bins, float64 (n,)."""
    return table[np.arange(bins.shape[1]), bins].sum(axis=1)


def learn_ratios(changed, clean, bins):
    """log of the changed over the clean shares of each bin, smoothed: float64 (scores, bins)."""
    shares = [
        np.stack([np.bincount(rows[:, k], minlength=bins) + 0.5 for k in range(rows.shape[1])])
        for rows in (changed, clean)
    ]
    shares = [share / share.sum(axis=1, keepdims=True) for share in shares]
    return np.log(shares[0] / shares[1])


def first_at(trace, line, start):
    """Images after `start` until the trace reaches `line`; None if never, -1 if before."""
    hits = np.flatnonzero(trace >= line)
    return None if not len(hits) else int(hits[0]) + 1 - start if hits[0] >= start else -1


def calibrate_river(name, clean, orders, level):
    """The largest of some levels at which the detector rings on no more than a share `level` of the clean streams."""
    for value in (1e-2, 1e-4, 1e-6, 1e-9, 1e-12, 1e-16, 1e-24):
        alarms = sum(river_trace(name, clean[order], value) is not None for order in orders)
        if alarms <= level * len(orders):
            return value
    return 1e-30
