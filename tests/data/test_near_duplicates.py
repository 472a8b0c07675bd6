"""data/near_duplicates.py: copies altered in known ways are found, and lookalikes are not."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from helpers.data.near_duplicates import find_near_duplicates, match_training_images


def draw_textures(count, seed):
    """Coloured clouds with fine structure, uint8 (count, 36, 36, 3): room for a shift."""
    random = np.random.default_rng(seed)
    noise = sum(s * gaussian_filter(random.normal(size=(count, 36, 36, 3)), (0, s, s, 0)) for s in (0.7, 2, 5))
    noise += noise.mean(axis=-1, keepdims=True)
    return (128 + 45 * noise / noise.std()).clip(0, 255).astype(np.uint8)


SCENES = draw_textures(60, seed=0)
TRAIN = SCENES[:, 2:34, 2:34]


def compress(images):
    decoded = []
    for pixels in images:
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=60)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded)


ALTERATIONS = {
    "equal": TRAIN,
    "mirrored": TRAIN[:, :, ::-1],
    "shifted": SCENES[:, 1:33, 2:34],
    "brighter, flatter": (60 + 0.6 * TRAIN).astype(np.uint8),
    "recoloured": (TRAIN * np.array([1, 0.8, 0.5])).astype(np.uint8),
    "grey": TRAIN.mean(axis=-1, keepdims=True).repeat(3, axis=-1).astype(np.uint8),
    "compressed": compress(TRAIN),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_copy_is_found_and_leads_to_its_original(alteration):
    copies = ALTERATIONS[alteration][::-1]
    index, similarity = match_training_images(copies, TRAIN)
    assert find_near_duplicates(copies, TRAIN).all()
    np.testing.assert_array_equal(index, np.arange(60)[::-1])
    assert (similarity <= 1.001).all()


def test_other_images_are_not_near_duplicates():
    assert not find_near_duplicates(draw_textures(60, seed=1)[:, 2:34, 2:34], TRAIN).any()


def test_images_that_share_one_strong_edge_are_not_near_duplicates():
    """Horizons: what made plain correlation fail on CIFAR-100."""
    random = np.random.default_rng(0)
    sky = np.where(np.arange(32)[:, None, None] < 16, 200, 60)
    horizons = (sky + random.normal(0, 12, (40, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    assert not find_near_duplicates(horizons[:20], horizons[20:]).any()


def test_even_images_are_no_duplicates_of_anything():
    even = np.full((1, 32, 32, 3), 255, np.uint8)
    assert not find_near_duplicates(even, np.concatenate([even // 2, TRAIN])).any()


def test_blocks_change_nothing(monkeypatch):
    tests = np.concatenate([ALTERATIONS["shifted"], draw_textures(30, seed=1)[:, 2:34, 2:34]])
    whole = find_near_duplicates(tests, TRAIN)
    monkeypatch.setattr("helpers.data.near_duplicates._TEST_BLOCK", 7)
    monkeypatch.setattr("helpers.data.near_duplicates._TRAIN_BLOCK", 11)
    np.testing.assert_array_equal(find_near_duplicates(tests, TRAIN), whole)


def test_the_closest_of_several_blocks_is_named(monkeypatch):
    monkeypatch.setattr("helpers.data.near_duplicates._TRAIN_BLOCK", 60)
    for order in ((TRAIN, ALTERATIONS["compressed"]), (ALTERATIONS["compressed"], TRAIN)):
        index, similarity = match_training_images(TRAIN, np.concatenate(order))
        np.testing.assert_array_equal(index, np.arange(60) + 60 * (order[1] is TRAIN))
        np.testing.assert_allclose(similarity, 1, atol=1e-3)


def test_the_threshold_decides():
    assert not find_near_duplicates(ALTERATIONS["compressed"], TRAIN, threshold=1.01).any()


@pytest.mark.parametrize(
    ("images", "got"),
    [(TRAIN / 255, r"float64 \(60, 32, 32, 3\)"), (TRAIN[0], r"uint8 \(32, 32, 3\)"), (TRAIN[:0], r"uint8 \(0, 32")],
)
def test_other_arrays_than_images_are_refused(images, got):
    with pytest.raises(ValueError, match=rf"test_images must be uint8 .* with n at least 1, got {got}"):
        find_near_duplicates(images, TRAIN)
    with pytest.raises(ValueError, match="train_images must be"):
        find_near_duplicates(TRAIN, images)
