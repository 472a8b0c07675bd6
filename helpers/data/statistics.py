"""What is in a dataset: counts, pixel statistics and exact duplicates."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from hashlib import sha256

import numpy as np

from helpers.data.dataset import Dataset, Split


@dataclass(frozen=True)
class SplitStatistics:
    """One split.

    Attributes:
        samples: number of images.
        per_class, per_superclass: number of images of each.
        mean, std: of the red, green and blue values, on a scale of 0 to 1.
    """

    samples: int
    per_class: tuple[int, ...]
    per_superclass: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Duplicates:
    """Images that are equal in every pixel.

    Attributes:
        within_train, within_test: surplus copies: images less different images.
        across: test images that are in the training split too.
        conflicting: groups of equal images that carry different labels.
        groups: the equal images, each as (split name, index).
    """

    within_train: int
    within_test: int
    across: int
    conflicting: int
    groups: tuple[tuple[tuple[str, int], ...], ...]


@dataclass(frozen=True)
class Statistics:
    """A whole dataset."""

    classes: int
    superclasses: int
    train: SplitStatistics
    test: SplitStatistics
    duplicates: Duplicates

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self)


def describe(dataset: Dataset) -> Statistics:
    """Statistics of `dataset`, exact: nothing is sampled."""
    return Statistics(
        classes=len(dataset.labels.fine),
        superclasses=len(dataset.labels.superclasses),
        train=_describe_split(dataset.train, dataset.labels),
        test=_describe_split(dataset.test, dataset.labels),
        duplicates=find_duplicates(dataset),
    )


def pixel_histogram(images: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel of `images`, uint8 (n, height, width, 3): int64 (3, 256)."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])


def channel_statistics(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of `images`, uint8 (n, height, width, 3): float64 (3,), 0 to 255."""
    histogram, values = pixel_histogram(images), np.arange(256)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    return mean, np.sqrt(share @ values**2 - mean**2)


def find_duplicates(dataset: Dataset) -> Duplicates:
    """Images of `dataset` that are equal in every pixel, within and across its splits."""
    places = defaultdict(list)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        for index, image in enumerate(split.images):
            places[sha256(image.tobytes()).digest()].append((name, index))
    groups = [tuple(group) for group in places.values() if len(group) > 1]
    by_split = [[sum(name == split for name, _ in group) for group in groups] for split in ("train", "test")]
    labels = {"train": dataset.train.labels, "test": dataset.test.labels}
    return Duplicates(
        within_train=sum(max(0, count - 1) for count in by_split[0]),
        within_test=sum(max(0, count - 1) for count in by_split[1]),
        across=sum(test for train, test in zip(*by_split, strict=True) if train),
        conflicting=sum(len({int(labels[name][index]) for name, index in group}) > 1 for group in groups),
        groups=tuple(groups),
    )


def _describe_split(split: Split, labels):
    mean, std = channel_statistics(split.images)
    per_class = np.bincount(split.labels, minlength=len(labels.fine))
    per_superclass = np.bincount(labels.superclass_of, per_class, minlength=len(labels.superclasses)).astype(int)
    return SplitStatistics(
        samples=len(split),
        per_class=tuple(per_class.tolist()),
        per_superclass=tuple(per_superclass.tolist()),
        mean=tuple((mean / 255).tolist()),
        std=tuple((std / 255).tolist()),
    )
