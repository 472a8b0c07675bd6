"""Augmentation keeps what an image shows or mixes it by known shares; resizing keeps its place and brightness."""

import numpy as np
import pytest

from helpers.data import augmentation
from helpers.data.augmentation import (
    LUMA,
    OPERATIONS,
    augment_images,
    cut_out,
    mix_images,
    resize_images,
    vary_images,
)
from helpers.data.synthetic import draw_images


def drawn(count, seed):
    """Images of the stand-in."""
    return draw_images(np.arange(count), seed)


def coordinates(count, side):
    """Images whose red is the row and whose green the column of each pixel."""
    rows, columns = np.mgrid[:side, :side]
    return np.broadcast_to(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8), (count, side, side, 3))


def mirrored(index, side):
    """Where an index outside an image lies inside, mirrored at the border pixel."""
    index = np.abs(index)
    return np.where(index >= side, 2 * (side - 1) - index, index)


@pytest.mark.parametrize("side", [16, 24, 32])
def test_every_image_is_shifted_by_up_to_an_eighth_and_flipped_or_not_and_nothing_else(side):
    images = augment_images(coordinates(300, side), np.random.default_rng(0)).astype(int)
    reach, places = side // 8, np.arange(side)
    seen = set()

    for image in images:
        matches = [
            (down, across, flipped)
            for down in range(-reach, reach + 1)
            for across in range(-reach, reach + 1)
            for flipped in (False, True)
            if (image[:, 0, 0] == mirrored(places + down, side)).all()
            and (image[0, :: -1 if flipped else 1, 1] == mirrored(places + across, side)).all()
        ]
        assert len(matches) == 1
        assert (image[..., 0] == image[:, :1, 0]).all()
        assert (image[..., 1] == image[:1, :, 1]).all()
        seen.update(matches)

    downs, acrosses, flips = (set(values) for values in zip(*seen, strict=True))
    assert downs == acrosses == set(range(-reach, reach + 1))
    assert flips == {False, True}


def test_half_of_the_images_are_flipped():
    images = augment_images(coordinates(2000, 16), np.random.default_rng(0)).astype(int)

    flipped = np.mean(images[:, 0, 3, 1] > images[:, 0, 12, 1])

    assert 0.45 < flipped < 0.55


def test_what_is_the_same_everywhere_stays_as_it_is():
    images = np.full((9, 32, 32, 3), np.arange(9, dtype=np.uint8)[:, None, None, None])

    np.testing.assert_array_equal(augment_images(images, np.random.default_rng(0)), images)


def mix(images, random, **alphas):
    return mix_images(images, np.eye(len(images), dtype=np.float32), random, **alphas)


@pytest.mark.parametrize(
    "change",
    [
        augment_images,
        vary_images,
        lambda images, random: cut_out(images, random, 8),
        lambda images, random: mix(images, random, mixup=1.0, cutmix=1.0)[0],
    ],
    ids=["augment", "vary", "cut out", "mix"],
)
def test_augmentation_is_the_same_for_the_same_generator_and_leaves_its_input_alone(change):
    images = drawn(20, seed=4)
    before = images.copy()

    first, again, other = (change(images, np.random.default_rng(seed)) for seed in (0, 0, 1))

    assert first.dtype == np.uint8
    assert first.shape == images.shape
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(images, before)


def test_at_half_the_side_each_pixel_is_the_mean_of_four():
    images = drawn(5, seed=2)

    found = resize_images(images, 16)

    means = images.reshape(5, 16, 2, 16, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(found - means).max() <= 1  # rounded once across and once down
    assert found.dtype == np.uint8


@pytest.mark.parametrize("side", [16, 20, 24, 28])
def test_a_resized_image_keeps_its_place_and_brightness(side):
    images = coordinates(1, 32) * 8

    found = resize_images(images, side).astype(float)

    assert found.shape == (1, side, side, 3)
    assert found.mean() == pytest.approx(images.mean(), abs=2)
    assert (np.diff(found[0, :, 0, 0]) > 0).all()
    assert (np.diff(found[0, 0, :, 1]) > 0).all()


def test_at_the_same_side_nothing_is_done():
    images = drawn(2, seed=0)

    assert resize_images(images, 32) is images


# --- one square erased


def test_a_square_of_each_image_has_the_mean_colour_and_the_rest_is_as_it_was():
    images = np.zeros((400, 32, 32, 3), np.uint8)
    images[::2] = (200, 100, 50)

    erased = cut_out(images, np.random.default_rng(0), 8)

    changed = (erased != images).all(-1)
    assert (erased[changed] == (100, 50, 25)).all()
    np.testing.assert_array_equal(erased[~changed], images[~changed])
    heights, widths = changed.any(2).sum(1), changed.any(1).sum(1)
    np.testing.assert_array_equal(heights * widths, changed.sum((1, 2)))  # a rectangle
    assert set(heights) == set(widths) == {4, 5, 6, 7, 8}  # centres are inside, so half a side at least
    assert np.mean(heights == 8) > 0.6
    assert len({tuple(np.argwhere(image)[0]) for image in changed}) > 200  # places


# --- one of several operations


def operate(name, images, amount):
    return OPERATIONS[name](images, np.full((len(images), 1, 1, 1), amount, np.float32)).astype(int)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_without_strength_changes_nothing_and_with_it_something(name):
    images = drawn(6, seed=1)

    np.testing.assert_array_equal(operate(name, images, 0), images)
    for amount in (-1, 1):
        assert (operate(name, images, amount) != images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize(("amount", "factor"), [(-1, 0.1), (-0.5, 0.55), (1, 1.9)])
def test_brightness_contrast_and_saturation_scale_what_they_are_named_for(amount, factor):
    images = drawn(6, seed=1).astype(np.uint8) // 2 + 40  # far from the ends of the scale
    mean, grey = (images @ LUMA).mean((1, 2))[:, None, None, None], (images @ LUMA)[..., None]

    for name, base in (("brightness", 0), ("contrast", mean), ("saturation", grey)):
        wanted = np.clip(base + factor * (images - base), 0, 255)
        assert np.abs(operate(name, images, amount) - wanted).max() <= 0.51, name


def test_posterizing_keeps_the_high_bits_and_solarizing_inverts_what_is_bright():
    images = drawn(6, seed=1)

    np.testing.assert_array_equal(operate("posterize", images, 1), images & 0b11110000)
    np.testing.assert_array_equal(operate("posterize", images, -0.5), images & 0b11111100)
    np.testing.assert_array_equal(operate("solarize", images, 0.5), np.where(images >= 128, 255 - images, images))
    np.testing.assert_array_equal(operate("solarize", images, -1), 255 - images)


@pytest.mark.parametrize("side", [16, 24, 32])
@pytest.mark.parametrize("amount", [-1.0, 0.43, 1.0])
def test_shears_and_translations_move_whole_pixels(side, amount):
    images, places = coordinates(2, side), np.arange(side)
    far = round(amount * 10 / 32 * side)
    tilt = np.rint(0.3 * amount * (places - (side - 1) / 2)).astype(int)
    ones, down, right = np.ones((side, side), int), places[:, None], places[None, :]

    for name, rows, columns in (
        ("translate rows", down * ones, mirrored(right + far, side) * ones),
        ("translate columns", mirrored(down + far, side) * ones, right * ones),
        ("shear rows", down * ones, mirrored(right + tilt[:, None], side)),
        ("shear columns", mirrored(down + tilt[None, :], side), right * ones),
    ):
        found = operate(name, images, amount)
        assert (found[..., 0] == rows).all(), name
        assert (found[..., 1] == columns).all(), name


def test_each_image_gets_one_operation_or_none_all_as_often_and_at_any_strength(monkeypatch):
    images, amounts = np.zeros((3000, 8, 8, 3), np.uint8), []

    def mark(number):
        return lambda images, given: (amounts.extend(given.ravel()), np.full_like(images, number))[1]

    monkeypatch.setattr(augmentation, "OPERATIONS", {name: mark(n) for n, name in enumerate(OPERATIONS, start=1)})
    varied = vary_images(images, np.random.default_rng(0))

    assert (np.ptp(varied, axis=(1, 2, 3)) == 0).all()
    shares = np.bincount(varied[:, 0, 0, 0], minlength=10) / 3000
    np.testing.assert_allclose(shares, np.full(10, 0.1), atol=0.02)
    assert np.percentile(amounts, [0, 25, 50, 75, 100]) == pytest.approx([-1, -0.5, 0, 0.5, 1], abs=0.05)


# --- mixtures


def flat(count):
    """Images of which each holds its own number, times ten, in every pixel."""
    return np.full((count, 16, 16, 3), 10 * np.arange(count, dtype=np.uint8)[:, None, None, None])


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_shows_a_rectangle_of_one_other_image_and_targets_are_shares_of_pixels(seed):
    images, targets = mix(flat(8), np.random.default_rng(seed), cutmix=1.0)

    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        shares = np.bincount(image[..., 0].ravel() // 10, minlength=8) / 256
        np.testing.assert_allclose(target, shares, atol=1e-6)
        assert target[number] == shares[number]
        pasted = image[..., 0] != 10 * number
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()


@pytest.mark.parametrize("seed", range(20))
def test_mixup_shows_the_weighted_mean_of_two_images_and_targets_are_the_weights(seed):
    images, targets = mix(flat(8), np.random.default_rng(seed), mixup=1.0)

    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)
    assert ((targets > 0).sum(1) <= 2).all()
    wanted = targets @ (10 * np.arange(8))
    assert np.abs(images - wanted[:, None, None, None]).max() <= 0.51


@pytest.mark.parametrize(
    ("alphas", "mixed", "rectangles"),
    [({}, 0, 0), ({"mixup": 1.0}, 0.5, 0), ({"cutmix": 1.0}, 0.5, 0.5), ({"mixup": 1.0, "cutmix": 1.0}, 1, 0.5)],
)
def test_each_way_of_mixing_takes_half_of_the_batches(alphas, mixed, rectangles):
    batches = [mix(flat(8), np.random.default_rng(seed), **alphas) for seed in range(400)]

    found = np.mean([(targets < 1).all(axis=1).any() for _, targets in batches])
    uneven = np.mean([(np.ptp(images, axis=(1, 2, 3)) > 0).any() for images, _ in batches])

    assert found == pytest.approx(mixed, abs=0.08 if mixed else 0)
    assert uneven == pytest.approx(rectangles, abs=0.08 if rectangles else 0)


def test_the_shares_of_mixup_follow_the_beta_distribution():
    def shares(alpha):
        batches = (mix(flat(8), np.random.default_rng(seed), mixup=alpha)[1] for seed in range(1000))
        return np.array([targets[0, 0] for targets in batches if 0 < targets[0, 0] < 1])

    assert shares(1.0).std() == pytest.approx(12**-0.5, abs=0.03)  # uniform
    assert shares(100.0).std() == pytest.approx(804**-0.5, abs=0.005)
    assert shares(100.0).mean() == pytest.approx(0.5, abs=0.005)
