"""training/augmentation.py: what an image shows stays or is mixed by known shares; what moves, moves whole pixels."""

import numpy as np
import pytest
from PIL import Image

from helpers.data.synthetic import draw_images
from helpers.training import augmentation
from helpers.training.augmentation import LUMA
from helpers.training.changes import OPERATIONS


def change_images(images, changes):
    return np.asarray(augmentation.change_images(images.astype(np.float32), changes))


def resize_images(images, side):
    return np.asarray(augmentation.resize_images(images.astype(np.float32), side))


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


def test_without_changes_images_stay_as_they_are():
    images = drawn(3, seed=1)

    np.testing.assert_array_equal(change_images(images, {}), images)


@pytest.mark.parametrize("side", [16, 24, 32])
def test_shifts_and_flips_move_whole_pixels_and_nothing_else(side):
    reach, places = side // 8, np.arange(side)
    wanted = [(d, r, f) for d in range(-reach, reach + 1) for r in range(-reach, reach + 1) for f in (0, 1)]
    shift, flip = np.array([w[:2] for w in wanted], np.int32), np.array([w[2] for w in wanted], np.int32)

    found = change_images(coordinates(len(wanted), side), {"shift": shift, "flip": flip})

    for image, (down, right, flipped) in zip(found, wanted, strict=True):
        columns = mirrored((places[::-1] if flipped else places) + right, side)
        assert (image[..., 0] == mirrored(places + down, side)[:, None]).all()
        assert (image[..., 1] == columns).all()


# --- one square erased


def test_a_square_of_each_image_has_the_mean_colour_and_the_rest_is_as_it_was():
    images = np.zeros((4, 32, 32, 3), np.uint8)
    images[::2] = (200, 100, 51)
    holes = np.array([(3, 5, 11, 13), (-4, 28, 4, 36), (0, 0, 8, 8), (24, -3, 32, 5)], np.int32)

    erased = change_images(images, {"hole": holes})

    wanted = images.astype(float)
    for image, (top, left, bottom, right) in zip(wanted, holes, strict=True):
        image[max(top, 0) : bottom, max(left, 0) : right] = (100, 50, 26)  # 25.5 goes to the even one
    np.testing.assert_array_equal(erased, wanted)


# --- one of several operations


def operate(name, images, amount, **others):
    operation = np.full(len(images), OPERATIONS.index(name), np.int32)
    return change_images(
        images, {"operation": operation, "strength": np.full(len(images), amount, np.float32)} | others
    )


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_without_strength_changes_nothing_and_with_it_something(name):
    images = drawn(6, seed=1)

    np.testing.assert_array_equal(operate(name, images, 0), images)
    for amount in (-1, 1):
        found = operate(name, images, amount)
        assert (found != images).any(axis=(1, 2, 3)).all()
        np.testing.assert_array_equal(found, np.rint(found).clip(0, 255))


def test_images_of_a_batch_get_each_its_own_operation_or_none():
    images, strength = drawn(10, seed=1), np.linspace(-1, 1, 10, dtype=np.float32)
    together = change_images(images, {"operation": np.arange(10, dtype=np.int32), "strength": strength})

    for number, name in enumerate(OPERATIONS):
        alone = operate(name, images[number : number + 1], strength[number])
        np.testing.assert_array_equal(together[number], alone[0], err_msg=name)
    np.testing.assert_array_equal(together[9], images[9])


@pytest.mark.parametrize(("amount", "factor"), [(-1, 0.1), (-0.5, 0.55), (1, 1.9)])
def test_brightness_contrast_and_saturation_scale_what_they_are_named_for(amount, factor):
    images = drawn(6, seed=1).astype(np.uint8) // 2 + 40  # far from the ends of the scale
    grey = images @ LUMA
    mean = grey.mean((1, 2), keepdims=True)

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


@pytest.mark.parametrize("name", ["shear rows", "translate columns", "contrast"])
def test_shifts_and_flips_come_before_operations_and_erasing_after_them(name):
    images, hole = drawn(4, seed=1), np.tile(np.array([2, 3, 10, 11], np.int32), (4, 1))
    first = {"shift": np.array([(1, -4), (0, 3), (-2, 2), (4, 4)], np.int32), "flip": np.array([0, 1, 1, 0], np.int32)}

    together = operate(name, images, 0.7, **first, hole=hole)

    one_by_one = operate(name, change_images(images, first), 0.7)
    np.testing.assert_array_equal(together, change_images(one_by_one, {"hole": hole}))


# --- mixtures


def mix(share, patch, other=(3, 0, 1, 2)):
    """Four images, of which each holds ten times its number, mixed, and the targets."""
    images = np.full((4, 16, 16, 3), 10 * np.arange(4)[:, None, None, None], np.float32)
    changes = {
        "other": np.array(other, np.int32),
        "share": np.full(4, share, np.float32),
        "patch": np.tile(np.array(patch, np.int32), (4, 1)),
    }
    return [np.asarray(part) for part in augmentation.mix_images(images, np.eye(4, dtype=np.float32), changes)]


@pytest.mark.parametrize("patch", [(2, 3, 9, 15), (0, 0, 16, 16), (5, 0, 6, 16)])
def test_cutmix_shows_a_rectangle_of_one_other_image_and_targets_are_shares_of_pixels(patch):
    images, targets = mix(1.0, patch)
    top, left, bottom, right = patch

    for number, other in enumerate((3, 0, 1, 2)):
        wanted = np.full((16, 16, 3), 10 * number)
        wanted[top:bottom, left:right] = 10 * other
        np.testing.assert_array_equal(images[number], wanted)
        shares = np.bincount(wanted[..., 0].ravel() // 10, minlength=4) / 256
        np.testing.assert_allclose(targets[number], shares, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 1.0])
def test_mixup_shows_the_weighted_mean_of_two_images_and_targets_are_the_weights(share):
    images, targets = mix(share, (0, 0, 0, 0))

    for number, other in enumerate((3, 0, 1, 2)):
        np.testing.assert_array_equal(images[number], np.rint(share * 10 * number + (1 - share) * 10 * other))
        np.testing.assert_allclose(targets[number, [number, other]], (share, 1 - share), atol=1e-6)
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-6)


# --- other sizes


def test_at_half_the_side_each_pixel_is_the_mean_of_four():
    images = drawn(5, seed=2)

    found = resize_images(images, 16)

    means = images.reshape(5, 16, 2, 16, 2, 3).astype(float).mean(axis=(2, 4))
    assert np.abs(found - means).max() <= 1  # rounded once across and once down


@pytest.mark.parametrize("side", [16, 20, 24, 28])
def test_images_are_resized_as_pillow_does_it(side):
    images, filters = drawn(20, seed=2), Image.Resampling
    kind = filters.BOX if side == 16 else filters.HAMMING

    found = resize_images(images, side)

    wanted = np.stack([np.asarray(Image.fromarray(image).resize((side, side), kind)) for image in images])
    assert np.abs(found - wanted).max() <= 1
    assert np.mean(found != wanted) < 1e-3  # it computes with whole numbers


@pytest.mark.parametrize("side", [16, 20, 24, 28])
def test_a_resized_image_keeps_its_place_and_brightness(side):
    images = coordinates(1, 32) * 8

    found = resize_images(images, side)

    assert found.shape == (1, side, side, 3)
    assert found.mean() == pytest.approx(images.mean(), abs=2)
    assert (np.diff(found[0, :, 0, 0]) > 0).all()
    assert (np.diff(found[0, 0, :, 1]) > 0).all()


def test_at_the_same_side_nothing_is_done():
    images = drawn(2, seed=0)

    assert augmentation.resize_images(images, 32) is images
