"""data/statistics.py: exact counts, against NumPy's own and planted duplicates."""

import json

import numpy as np
import pytest

from helpers.data.dataset import Dataset, Split, draw_dataset
from helpers.data.labels import Labels
from helpers.data.statistics import channel_statistics, describe, find_duplicates, pixel_histogram

LABELS = Labels(("a", "b", "c"), ("s", "t"), (0, 1, 0))


def images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def dataset(train, test, train_labels=None, test_labels=None):
    labels = [
        np.arange(len(part)) % 3 if given is None else np.array(given)
        for part, given in ((train, train_labels), (test, test_labels))
    ]
    return Dataset(Split(train, labels[0]), Split(test, labels[1]), LABELS, "a test", "0" * 64, True)


def test_the_real_channels_have_their_published_statistics(cifar100):
    statistics = describe(cifar100)

    assert statistics.train.mean == pytest.approx((0.50707516, 0.48654887, 0.44091784), abs=5e-9)
    assert statistics.train.std == pytest.approx((0.26733429, 0.25643846, 0.27615047), abs=5e-9)
    assert (statistics.classes, statistics.superclasses) == (100, 20)
    assert (statistics.train.samples, statistics.test.samples) == (50_000, 10_000)
    assert statistics.train.per_class == (500,) * 100
    assert statistics.test.per_superclass == (500,) * 20


@pytest.mark.parametrize(
    "values",
    [images(20), images(3) // 64, np.full((4, 32, 32, 3), 77, np.uint8), np.full((2, 5, 7, 3), 255, np.uint8)],
    ids=["noise", "few values", "one value", "other sides"],
)
def test_channel_statistics_are_numpys(values):
    mean, std = channel_statistics(values)

    np.testing.assert_allclose(mean, values.mean(axis=(0, 1, 2), dtype=float), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(axis=(0, 1, 2), dtype=float), rtol=1e-9, atol=1e-6)


def test_a_histogram_counts_each_value_of_each_channel():
    values = np.zeros((2, 32, 32, 3), np.uint8)
    values[..., 1] = 255
    values[1, 5, 5, 2] = 9

    histogram = pixel_histogram(values)

    assert histogram.shape == (3, 256)
    assert histogram[0, 0] == 2048
    assert histogram[1, 255] == 2048
    assert histogram[2, [0, 9]].tolist() == [2047, 1]
    assert histogram.sum() == 3 * 2048


def test_counts_are_by_class_and_superclass():
    statistics = describe(dataset(images(6), images(2, seed=1), [0, 0, 0, 1, 1, 2], [2, 2]))

    assert statistics.train.per_class == (3, 2, 1)
    assert statistics.train.per_superclass == (4, 2)
    assert statistics.test.per_class == (0, 0, 2)
    assert statistics.test.per_superclass == (2, 0)


def test_statistics_are_json():
    value = json.loads(json.dumps(describe(draw_dataset(0, 1, 1)).as_dict()))

    assert value["train"]["samples"] == 100
    assert value["duplicates"]["groups"] == []


def plant(*copies):
    """Ten training and six test images, with each (split, from, split, to) of `copies` made in turn."""
    splits = {"train": images(10, seed=1), "test": images(6, seed=2)}
    for source, index, target, place in copies:
        splits[target][place] = splits[source][index]
    return splits["train"], splits["test"]


TRAIN_LABELS, TEST_LABELS = [0] * 5 + [1] * 5, [0] * 3 + [1] * 3
PLANTED = {
    "none": ((), (0, 0, 0, 0)),
    "a pair in train": ((("train", 0, "train", 3),), (1, 0, 0, 0)),
    "three of a kind in train": ((("train", 0, "train", 3), ("train", 0, "train", 4)), (2, 0, 0, 0)),
    "a pair in test": ((("test", 1, "test", 2),), (0, 1, 0, 0)),
    "one across": ((("train", 1, "test", 1),), (0, 0, 1, 0)),
    "two test images of one training image": ((("train", 1, "test", 1), ("train", 1, "test", 2)), (0, 1, 2, 0)),
    "one test image of two training images": ((("train", 1, "train", 2), ("train", 1, "test", 2)), (1, 0, 1, 0)),
    "another label in train": ((("train", 0, "train", 9),), (1, 0, 0, 1)),
    "another label across": ((("train", 0, "test", 5),), (0, 0, 1, 1)),
    "two groups": ((("train", 0, "train", 9), ("test", 0, "test", 5), ("train", 1, "test", 1)), (1, 1, 1, 2)),
}


@pytest.mark.parametrize(("copies", "counts"), PLANTED.values(), ids=PLANTED)
def test_planted_duplicates_are_found(copies, counts):
    found = find_duplicates(dataset(*plant(*copies), TRAIN_LABELS, TEST_LABELS))

    assert (found.within_train, found.within_test, found.across, found.conflicting) == counts


def test_the_groups_name_the_equal_images():
    train, test = plant(("train", 2, "train", 7), ("train", 2, "test", 4), ("test", 0, "test", 1))
    found = find_duplicates(dataset(train, test))

    assert set(found.groups) == {(("train", 2), ("train", 7), ("test", 4)), (("test", 0), ("test", 1))}


def test_images_that_differ_in_one_value_are_no_duplicates():
    train, test = plant(("train", 2, "train", 7))
    train[7, 31, 31, 2] ^= 1

    assert find_duplicates(dataset(train, test)).groups == ()
