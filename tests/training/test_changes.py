"""training/changes.py: what is drawn for images, how often and how strong."""

import numpy as np
import pytest

from helpers.training.changes import OPERATIONS, draw_changes
from helpers.training.recipe import Recipe

NOTHING = {"augment": False}


def draw(count, side=32, seed=0, **recipe):
    return draw_changes(count, side, Recipe(**NOTHING | recipe), np.random.default_rng(seed))


def test_numbers_are_the_same_for_the_same_generator_and_there_is_one_of_each_for_every_image():
    everything = {"augment": True, "policy": "trivial", "cutout": 8, "mixup": 0.4, "cutmix": 1.0}
    first, again, other = (draw(50, seed=seed, **everything) for seed in (0, 0, 1))

    assert {len(values) for values in first.values()} == {50}
    assert {values.dtype for values in first.values()} == {np.dtype(np.int32), np.dtype(np.float32)}
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])
    assert any((values != other[name]).any() for name, values in first.items())


def test_nothing_is_drawn_for_what_is_off():
    assert draw(10) == {}
    assert set(draw(10, augment=True)) == {"shift", "flip"}
    assert set(draw(10, policy="trivial")) == {"operation", "strength"}
    assert set(draw(10, cutout=1)) == {"hole"}
    assert set(draw(10, cutmix=1.0)) == set(draw(10, mixup=1.0)) == {"other", "share", "patch"}


@pytest.mark.parametrize("side", [16, 24, 32])
def test_images_are_shifted_by_up_to_an_eighth_in_both_directions_and_half_of_them_are_flipped(side):
    changes, reach = draw(4000, side, augment=True), side // 8

    for shifts in changes["shift"].T:
        values, counts = np.unique(shifts, return_counts=True)
        assert values.tolist() == list(range(-reach, reach + 1))
        np.testing.assert_allclose(counts / 4000, 1 / len(values), atol=0.03)
    assert abs(np.corrcoef(changes["shift"].T)[0, 1]) < 0.06
    assert 0.47 < changes["flip"].mean() < 0.53


def test_each_image_gets_one_operation_or_none_all_as_often_and_at_any_strength():
    changes = draw(4000, policy="trivial")

    shares = np.bincount(changes["operation"], minlength=len(OPERATIONS) + 1) / 4000
    np.testing.assert_allclose(shares, np.full(10, 0.1), atol=0.02)
    assert np.percentile(changes["strength"], [0, 25, 50, 75, 100]) == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=0.05)


@pytest.mark.parametrize(("side", "size"), [(32, 7), (24, 6), (16, 4)])
def test_holes_shrink_with_the_resolution_and_their_centres_may_be_any_pixel(side, size):
    holes = draw(20 * side, side, cutout=7)["hole"]

    assert (holes[:, 2:] - holes[:, :2] == size).all()
    for starts in holes[:, :2].T:
        assert set(starts) == set(range(-(size // 2), side - size // 2))
        assert starts.mean() == pytest.approx((side - 1) / 2 - size // 2, abs=0.05 * side)


# --- mixtures


@pytest.mark.parametrize(
    ("alphas", "weighted", "patched"),
    [({"mixup": 1.0}, 0.5, 0), ({"cutmix": 1.0}, 0, 0.5), ({"mixup": 1.0, "cutmix": 1.0}, 0.5, 0.5)],
)
def test_each_way_of_mixing_takes_half_of_the_batches(alphas, weighted, patched):
    batches = [draw(8, seed=seed, **alphas) for seed in range(1000)]

    found = np.mean([(batch["share"] < 1).all() for batch in batches])
    rectangles = np.mean([batch["patch"].any() for batch in batches])

    assert found == pytest.approx(weighted, abs=0.06 if weighted else 0)
    assert rectangles == pytest.approx(patched, abs=0.06 if patched else 0)
    for batch in batches:
        assert sorted(batch["other"]) == list(range(8))
        assert len(set(batch["share"])) == 1
        assert (batch["patch"] == batch["patch"][0]).all()


def test_the_shares_of_mixup_follow_the_beta_distribution():
    def shares(alpha):
        found = np.array([draw(1, seed=seed, mixup=alpha)["share"][0] for seed in range(2000)])
        return found[found < 1]

    assert shares(1.0).std() == pytest.approx(12**-0.5, abs=0.02)  # uniform
    assert shares(100.0).std() == pytest.approx(804**-0.5, abs=0.004)
    assert shares(100.0).mean() == pytest.approx(0.5, abs=0.005)


def test_the_rectangles_of_cutmix_have_the_area_that_is_left_to_the_second_image():
    patches = np.array([draw(1, side=32, seed=seed, cutmix=100.0)["patch"][0] for seed in range(1000)])
    patches = patches[patches.any(axis=1)]
    heights, widths = (patches[:, 2:] - patches[:, :2]).T
    inside = ((patches[:, :2] > 0) & (patches[:, 2:] < 32)).all(axis=1)

    assert (patches >= 0).all()
    assert (patches <= 32).all()
    assert (heights[inside] == widths[inside]).all()
    assert (heights[inside] ** 2 / 32**2).mean() == pytest.approx(0.5, abs=0.03)
    assert inside.mean() == pytest.approx((1 - 2**-0.5) ** 2, abs=0.04)  # centres are anywhere
