"""data/corruptions.py: how strong each corruption is, and what it must leave alone."""

import numpy as np
import pytest

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.synthetic import draw_images

IMAGES = draw_images(np.arange(100), seed=0)
GREY = np.full((20, 32, 32, 3), 128, np.uint8)
each_corruption = pytest.mark.parametrize("name", CORRUPTIONS)


def distance(changed, images):
    return np.abs(changed.astype(int) - images).mean()


def test_there_are_the_fifteen_families():
    assert len(set(CORRUPTIONS)) == 15


@each_corruption
def test_each_severity_changes_images_more_than_the_one_before(name):
    distances = [distance(corrupt(IMAGES, name, severity), IMAGES) for severity in range(1, 6)]
    assert distances[0] > 1  # of 255
    assert (np.diff(distances) > 0).all(), distances


@each_corruption
def test_a_corrupted_image_is_an_image_and_still_resembles_its_original(name):
    before = IMAGES.copy()
    changed = corrupt(IMAGES, name, 3)
    assert (changed.dtype, changed.shape) == (np.uint8, IMAGES.shape)
    np.testing.assert_array_equal(IMAGES, before)
    others = np.roll(changed, 1, axis=0)  # those of other classes
    assert distance(changed, IMAGES) < distance(others, IMAGES)


@each_corruption
def test_the_same_seed_gives_the_same_images_and_another_seed_others_where_chance_is_at_work(name):
    first, again, other = (corrupt(IMAGES[:20], name, 3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    by_chance = name not in {
        "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"
    }  # fmt: skip
    assert (first != other).any() == by_chance


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate",
     "jpeg_compression"],
)  # fmt: skip
def test_what_moves_or_mixes_pixels_leaves_an_even_image_as_it_is(name):
    np.testing.assert_allclose(corrupt(GREY, name, 5), GREY, atol=1)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("gaussian_noise", 0.09 * 255),
        ("shot_noise", np.sqrt(128 / 255 / 75) * 255),  # a Poisson count has its mean as variance
        ("impulse_noise", np.sqrt(0.06) * 127.5),  # 6 % of values are 127.5 away
    ],
)
def test_noise_keeps_the_mean_and_has_the_deviation_that_its_strength_says(name, deviation):
    changed = corrupt(GREY, name, 3).astype(float)
    assert changed.mean() == pytest.approx(128, abs=1)
    assert changed.std() == pytest.approx(deviation, rel=0.04)


def test_blur_conserves_light_and_spreads_a_point():
    point = np.zeros((1, 32, 32, 3), np.uint8)
    point[:, 14:18, 14:18] = 255
    for name in ("defocus_blur", "motion_blur"):
        blurred = corrupt(point, name, 4).astype(float)
        assert blurred.sum() == pytest.approx(point.sum(), rel=0.02)
        assert (blurred > 0).sum() > 2 * (point > 0).sum()


def test_contrast_scales_distances_to_the_mean_and_brightness_keeps_the_hue():
    spread = IMAGES.astype(float).std(axis=(1, 2))
    np.testing.assert_allclose(corrupt(IMAGES, "contrast", 3).std(axis=(1, 2)), 0.4 * spread, rtol=0.03, atol=0.5)
    brighter = corrupt(np.full((1, 32, 32, 3), (100, 50, 0), np.uint8), "brightness", 1)[0, 0, 0]
    np.testing.assert_allclose(brighter, (100 + 0.08 * 255, 50 + 0.04 * 255, 0), atol=1)


def test_pixelate_makes_blocks():
    changed = corrupt(IMAGES, "pixelate", 5)
    assert len(np.unique(changed[0].reshape(32, -1), axis=0)) == 10


def test_fog_and_frost_make_dark_images_lighter():
    dark = np.zeros_like(GREY)
    assert corrupt(dark, "fog", 1).mean() > 20
    red, _, blue = corrupt(dark, "frost", 3).mean(axis=(0, 1, 2))
    assert blue > red > 20


@pytest.mark.parametrize(
    ("images", "name", "severity", "message"),
    [
        (GREY, "gausian_noise", 1, r"name must be one of gaussian_noise, .*, got 'gausian_noise'; did you mean 'gau"),
        (GREY, "fog", 0, "severity must be 1, 2, 3, 4 or 5, got 0"),
        (GREY, "fog", 2.5, "severity must be 1, 2, 3, 4 or 5, got 2.5"),
        (GREY / 255, "fog", 1, r"images must be uint8 \(n, 32, 32, 3\), got float64 \(20, 32, 32, 3\)"),
        (GREY[0], "fog", 1, r"images must be uint8 \(n, 32, 32, 3\), got uint8 \(32, 32, 3\)"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, name, severity, message):
    with pytest.raises(ValueError, match=message):
        corrupt(images, name, severity)
