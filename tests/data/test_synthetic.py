"""data/synthetic.py: a stand-in that is shaped like CIFAR-100, repeatable, and can be learned."""

import tracemalloc

import numpy as np
import pytest

from helpers.data.synthetic import FILLS, HUES, OUTLINES, draw_images, synthetic_labels

EACH_TEN_TIMES = np.tile(np.arange(100), 10)


@pytest.fixture(scope="module")
def images():
    return draw_images(EACH_TEN_TIMES, seed=0)


def test_there_are_100_classes_in_20_superclasses_all_named_differently():
    labels = synthetic_labels()

    assert len(set(labels.fine)) == 100
    assert len(set(labels.superclasses)) == 20
    assert np.bincount(labels.superclass_of).tolist() == [5] * 20
    for name, superclass in zip(labels.fine, labels.superclass_of, strict=True):
        assert name.split(" ", 1)[1] == labels.superclasses[superclass]


def test_images_have_the_shape_of_cifar_100(images):
    assert images.shape == (1000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.min() == 0
    assert images.max() == 255


def test_the_same_seed_draws_the_same_and_another_seed_another():
    labels = np.arange(100)

    first, again, other = (draw_images(labels, seed) for seed in (7, 7, 8))

    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.9


def test_every_image_is_another(images):
    assert len({image.tobytes() for image in images}) == len(images)


def features(images):
    """Of the part that is not background: the mean colour, the length of its outlines, and its size."""
    pixels = images.astype(np.float32) / 255
    edge = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], axis=1)
    away = np.abs(pixels - np.median(edge, axis=1)[:, None, None]).sum(-1, keepdims=True) ** 2
    colour = (pixels * away).sum((1, 2)) / away.sum((1, 2))
    colour = colour - colour.mean(1, keepdims=True)
    colour /= np.linalg.norm(colour, axis=1, keepdims=True) + 1e-6
    steps = [np.abs(np.diff(pixels, axis=axis)).mean((1, 2, 3)) for axis in (1, 2)]
    size = np.sqrt(away).mean((1, 2))
    return np.concatenate([colour, 5 * sum(steps)[:, None] / size, size], axis=1)


def nearest_class_mean_accuracy(labels_of, count):
    train, test = EACH_TEN_TIMES, np.tile(np.arange(100), 5)
    seen, unseen = features(draw_images(train, seed=1)), features(draw_images(test, seed=2))
    means = np.stack([seen[labels_of[train] == index].mean(0) for index in range(count)])
    answers = ((unseen[:, None] - means) ** 2).sum(-1).argmin(1)
    return np.mean(answers == labels_of[test])


@pytest.mark.parametrize(
    ("labels_of", "count", "at_least"),
    [
        (np.arange(100), 100, 0.05),  # chance: 0.01
        (np.arange(100) % len(HUES), len(HUES), 0.6),  # chance: 0.2
        (np.arange(100) // len(HUES) % len(FILLS), len(FILLS), 0.35),  # chance: 0.25
    ],
    ids=["class", "hue", "fill"],
)
def test_what_was_drawn_can_be_told_from_simple_features(labels_of, count, at_least):
    assert nearest_class_mean_accuracy(labels_of, count) > at_least


def test_an_outline_has_the_symmetry_of_its_lobes():
    star = draw_images(np.full(200, list(OUTLINES).index("star") * 20), seed=0)
    disc = draw_images(np.full(200, list(OUTLINES).index("disc") * 20), seed=0)

    assert (star != disc).any(axis=(1, 2, 3)).all()  # the same place, size and colours, but for the outline


def test_memory_is_bounded_however_many_are_drawn():
    def peak(count):
        tracemalloc.start()
        draw_images(np.zeros(count, int), seed=0)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    pixels = 32 * 32 * 3
    assert peak(3000) - peak(1000) < 2.5 * 2000 * pixels  # the images themselves, and once more while they are joined
