"""monitoring/martingale.py: exact for every size of reference, ties or none, and quick, early or late."""

import numpy as np
import pytest

from helpers.monitoring.martingale import (
    BETS,
    CAUTION,
    CEILING,
    TOGETHER,
    Martingale,
    _normal_payoffs,
    bin_ranks,
    break_ties,
    count_gaps,
)


def cut(rows, even=(True, False)):
    """Edges, float64 (scores, bins - 1), and gaps of reference scores, float64 (n, scores)."""
    ranks = [bin_ranks(len(rows), flag) for flag in even]
    ranked = np.sort(rows, axis=0)
    edges = np.stack([ranked[rank - 1, row] for row, rank in enumerate(ranks)])
    return edges, np.stack([count_gaps(rank, len(rows)) for rank in ranks])


def split(edges, rows):
    """The bins of `rows`, `TOGETHER` at a time."""
    bins = (edges < rows[:, :, None]).sum(axis=2)
    return np.split(bins, range(TOGETHER, len(bins), TOGETHER))


def bet(edges, gaps, rows):
    """The capitals after each of `rows`."""
    martingale = Martingale(gaps)
    return np.concatenate([martingale.update(bins) for bins in split(edges, rows)]), martingale


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("count", [100, 101, 237, 1000, 5000, 50_000])
def test_every_bin_has_gaps_and_all_gaps_a_bin(count, even):
    gaps = count_gaps(bin_ranks(count, even), count)

    assert gaps.sum() == count + 1
    assert gaps.min() >= 1
    assert len(gaps) == min(100, count // 10 // 2 * 2)


def test_too_small_a_reference_is_refused():
    with pytest.raises(ValueError, match="count must be at least 100 reference images, got 99; validate on more"):
        bin_ranks(99)


@pytest.mark.parametrize("levels", [None, 3, 40], ids=["continuous", "3 values", "40 values"])
def test_a_score_falls_into_each_bin_as_often_as_its_share_of_the_gaps_says_also_with_ties(levels):
    random, hits, images = np.random.default_rng(0), np.zeros(10), 50
    later = np.zeros(10)  # of the last image of each stream: the urn, not just the reference

    for _ in range(2000):
        values = random.random(100 + images) if levels is None else random.integers(0, levels, 100 + images)
        keys = break_ties(values.astype(np.float32), random)
        ranks = bin_ranks(100)
        bins = np.searchsorted(np.sort(keys[:100])[ranks - 1], keys[100:])
        urn = count_gaps(ranks, 100) + np.bincount(bins[:-1], minlength=10)
        below = urn[: bins[-1]].sum()
        p = (below + random.random() * urn[bins[-1]]) / urn.sum()
        later[int(p * 10)] += 1
        hits[bins[0]] += 1

    expected = 2000 * count_gaps(bin_ranks(100), 100) / 101
    for found, wanted in ((hits, expected), (later, np.full(10, 200.0))):
        assert ((found - wanted) ** 2 / wanted).sum() < 27.9  # chi-squared, 9 degrees: 1 chance in 1,000


def test_ties_are_broken_and_everything_else_keeps_its_order():
    values = np.array([-2, -2, np.nextafter(np.float32(-2), np.float32(0)), 0, 0, 1, 1, 1.0000001], np.float32)

    keys = break_ties(values, np.random.default_rng(1))

    assert len(set(keys)) == len(values)
    for first, second in zip(range(7), range(1, 8), strict=True):
        if values[first] < values[second]:
            assert keys[first] < keys[second]


def test_a_bet_pays_one_in_the_mean_and_never_nothing():
    gaps = count_gaps(bin_ranks(1000), 1000)[None]

    payoffs = _normal_payoffs(gaps)[0]

    assert payoffs.shape == (100, len(BETS))
    np.testing.assert_allclose(gaps[0] @ payoffs / gaps.sum(), 1)
    assert payoffs.min() >= CAUTION


def test_clean_streams_seldom_reach_the_line():
    random, highest = np.random.default_rng(3), []

    for _ in range(150):
        rows = random.random((100 + 300, 2))
        capitals, _ = bet(*cut(rows[:100]), rows[100:])
        highest.append(capitals.max(axis=0))

    assert (np.array(highest) >= 20).sum(axis=0).max() <= 15  # 7.5 expected at most; more has 1 chance in 200


def test_a_small_reference_taken_for_the_truth_would_ring_but_the_urn_does_not():
    random = np.random.default_rng(0)
    rows = random.random((100 + 5000, 2))
    edges, gaps = cut(rows[:100])
    fixed = Martingale(gaps * 10**9)  # as if the reference's shares were known for certain

    for bins in split(edges, rows[100:]):
        fixed.update(bins)

    assert fixed.capital.max() > 800
    assert bet(edges, gaps, rows[100:])[0].max() < 20


@pytest.mark.parametrize("clean", [0, 500, 5000])
def test_a_late_change_is_seen_about_as_fast_as_an_early_one_and_dated(clean):
    random = np.random.default_rng(4)
    reference = random.standard_normal((2000, 2))
    rows = random.standard_normal((clean + 60, 2))
    rows[clean:, 1] += 1.5

    capitals, martingale = bet(*cut(reference), rows)

    assert capitals[:clean].max(initial=0) < 800
    assert 0 < np.argmax(capitals[:, 1] >= 800) - clean < 40
    assert abs(martingale.since(1) - clean - 1) <= 5


def test_the_learning_bets_find_classes_that_vanish():
    random = np.random.default_rng(5)
    rows = random.random((1000, 2))
    rows[400:, 0] *= 0.5

    capitals, martingale = bet(*cut(random.random((2000, 2))), rows)

    assert capitals[:400].max() < 800
    assert 400 < np.argmax(capitals[:, 0] >= 800) < 600
    assert 100 < martingale.since(0) < 450  # as well as a memory of 300 images can tell


def test_capital_stays_finite_however_long_a_drift_lasts():
    random = np.random.default_rng(6)

    capitals, _ = bet(*cut(random.random((100, 2))), np.full((3000, 2), 2.0))

    assert np.isfinite(capitals).all()
    assert CEILING / 100 < capitals.max() < CEILING * 1e200


def test_images_one_by_one_and_together_give_the_same_capital_and_dates():
    random = np.random.default_rng(7)
    edges, gaps = cut(random.standard_normal((1000, 2)))
    rows = random.standard_normal((300, 2)) + 0.8 * (np.arange(300) > 200)[:, None]
    bins = (edges < rows[:, :, None]).sum(axis=2)
    one, many = Martingale(gaps), Martingale(gaps)

    for start in range(0, 300, 30):
        together = many.update(bins[start : start + 30])
        for index in range(30):
            alone = one.update(bins[start + index : start + index + 1])
            np.testing.assert_allclose(alone[0], together[index], rtol=1e-9)
            assert [one.since(row) for row in (0, 1)] == [many.since(row, index) for row in (0, 1)]
    assert one.images == many.images == 300


def test_of_a_test_that_may_only_rise_a_fall_is_not_bet_on():
    random = np.random.default_rng(8)
    edges, gaps = cut(random.standard_normal((1000, 3)), (True, False, False))
    rows = random.standard_normal((200, 3)) - 1
    martingale = Martingale(gaps, rising=1)

    for bins in split(edges, rows):
        martingale.update(bins)

    assert martingale.capital[1] > 1e6
    assert martingale.capital[2] < 10
