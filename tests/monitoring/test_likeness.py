"""monitoring/likeness.py: many small changes in the scores, seen as one."""

import numpy as np
import pytest

from helpers.data.corruptions import CORRUPTIONS
from helpers.monitoring.likeness import LIKENESSES, STEPS, learn_likeness
from helpers.monitoring.scores import NAMES

MOVES = np.zeros((len(CORRUPTIONS), len(NAMES)))
MOVES[0, 1:] = 0.5  # a little of everything
MOVES[1, 3] = 1.0


def draw(count, seed, move=0.0):
    rows = np.random.default_rng(seed).standard_normal((count, len(NAMES)))
    return (rows + move).astype(np.float32)


@pytest.fixture(scope="module")
def likeness():
    return learn_likeness(draw(1000, 0), [draw(1500, 1 + row, move) for row, move in enumerate(MOVES)])


def distance(values, others):
    """Between means, in standard deviations."""
    return (others.mean() - values.mean()) / values.std()


def test_there_is_one_number_for_each_known_corruption(likeness):
    found = likeness.score(draw(7, 100))

    assert (found.shape, found.dtype) == ((7, len(LIKENESSES)), np.float32)
    assert tuple(f"like {name}" for name in CORRUPTIONS) == LIKENESSES
    assert likeness.weights.shape == (len(NAMES), STEPS, len(CORRUPTIONS))


def test_a_little_of_everything_is_seen_as_well_as_the_best_of_all_tests_would(likeness):
    clean, changed = (likeness.score(draw(4000, seed, move))[:, 0] for seed, move in ((100, 0.0), (101, MOVES[0])))

    assert distance(clean, changed) > 0.85 * np.sqrt((MOVES[0] ** 2).sum())  # that of the likelihood ratio


def test_a_likeness_heeds_what_its_corruption_moves_and_little_else(likeness):
    clean = likeness.score(draw(4000, 100))[:, 1]

    for column in range(len(NAMES)):
        moved = distance(clean, likeness.score(draw(4000, 101, np.eye(len(NAMES))[column]))[:, 1])
        assert moved > 0.85 if column == 3 else abs(moved) < 0.3


def test_a_corruption_that_moves_nothing_has_a_likeness_near_0(likeness):
    assert np.abs(likeness.score(draw(1000, 100))[:, 2]).mean() < 0.5


def test_an_image_has_the_same_likeness_alone_and_among_others(likeness):
    rows = draw(100, 100)

    np.testing.assert_array_equal(np.concatenate([likeness.score(row[None]) for row in rows]), likeness.score(rows))
