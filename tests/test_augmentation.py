"""Augmentation keeps what an image shows; resizing keeps its place and brightness."""

import numpy as np
import pytest

from helpers.augmentation import augment_images, resize_images
from helpers.synthetic import draw_images


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


def test_augmentation_is_the_same_for_the_same_generator_and_leaves_its_input_alone():
    images = drawn(20, seed=4)
    before = images.copy()

    first, again, other = (augment_images(images, np.random.default_rng(seed)) for seed in (0, 0, 1))

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
