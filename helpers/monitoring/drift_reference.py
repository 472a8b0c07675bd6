"""What the drift tests compare served images with: made of validation images, kept in a bundle's reference.npz."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from helpers.data.corruptions import CORRUPTIONS
from helpers.data.labels import Labels
from helpers.delivery.bundle import Bundle, BundleError, read_npz
from helpers.inference.engine import Scores
from helpers.monitoring.likeness import LIKENESSES, STEPS, Likeness
from helpers.monitoring.martingale import bin_ranks, count_gaps
from helpers.monitoring.scores import NAMES, score_images

SEVERITIES = (1, 2, 3, 4, 5)
TESTS = (*NAMES, *LIKENESSES)  # what is bet on: the scores, and how much they look like each known corruption
EVEN = ("class",)  # scores whose bins are even in rank: windows of them are superclasses, more or less


class DriftReferenceError(BundleError):
    """A reference that is not whole, or not of this model."""


@dataclass(frozen=True)
class Reference:
    """Facts of n validation images, as the engine that serves sees them.

    Attributes:
        labels: of the model.
        temperature: of the model; tells its reference from that of another.
        count: n.
        edges: float64 (tests, bins - 1), order statistics of each of `TESTS`, ties broken.
        cuts, weights: of `likeness`, which other validation images gave.
        class_means: float32 (classes, units), mean features of training images of each class. Of validation images
            they would not do: these lie nearer to a mean that they are part of than images to come.
        class_counts: int (classes,), answers.
        accuracy: share of right answers, 0 to 1.
        calibration: float64 (15, 3), rows of `training.evaluation.reliability`.
        moves: float32 (corruptions, severities, scores), mean rank of each score under each corruption, 0 to 1.
        losses: float32 (corruptions, severities), accuracy lost to each, 0 to 1.
    """

    labels: Labels
    temperature: float
    count: int
    edges: np.ndarray
    cuts: np.ndarray
    weights: np.ndarray
    class_means: np.ndarray
    class_counts: np.ndarray
    accuracy: float
    calibration: np.ndarray
    moves: np.ndarray
    losses: np.ndarray

    @cached_property
    def likeness(self) -> Likeness:
        return Likeness(self.cuts, self.weights)

    def tests(self, rows: np.ndarray) -> np.ndarray:
        """What is bet on, float32 (n, tests), of scores, float32 (n, scores)."""
        return np.concatenate([rows, self.likeness.score(rows)], axis=1)

    @property
    def class_order(self) -> np.ndarray:
        """The place of each class, int (classes,), where superclasses are contiguous."""
        return order_classes(self.labels)

    @property
    def gaps(self) -> np.ndarray:
        """Gaps between reference scores in each bin, int (tests, bins)."""
        return np.stack([count_gaps(ranks, self.count) for ranks in cut_ranks(self.count)])

    def score(self, images: np.ndarray, scores: Scores) -> np.ndarray:
        """See `monitoring.scores.score_images`."""
        return score_images(images, scores, self.class_means, self.class_order)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """What `reference.npz` holds; all but the labels, which the bundle has."""
        return {name: np.asarray(getattr(self, name)) for name in _ARRAYS}


_ARRAYS = tuple(name for name in Reference.__annotations__ if name != "labels")


def read_reference(bundle: Bundle) -> Reference:
    """The reference that travels in `bundle`.

    Raises:
        DriftReferenceError: if it is not whole, or of another model than the bundle's.
    """
    path, labels = bundle.path / "reference.npz", bundle.labels
    arrays, classes = read_npz(path), len(labels.fine)
    if absent := [name for name in _ARRAYS if name not in arrays]:
        raise DriftReferenceError(f"{path} does not hold {absent[0]}; train and publish the model again")
    try:
        count = int(arrays["count"])
        bins = len(cut_ranks(count)[0]) + 1
    except (TypeError, ValueError) as error:
        raise DriftReferenceError(f"{path}: {error}") from error
    units, table = arrays["class_means"].shape[-1:], (len(CORRUPTIONS), len(SEVERITIES))
    shapes = dict.fromkeys(("temperature", "count", "accuracy"), ())
    shapes |= {"edges": (len(TESTS), bins - 1), "cuts": (len(NAMES), STEPS - 1)}
    shapes |= {"weights": (len(NAMES), STEPS, len(CORRUPTIONS))}
    shapes |= {"class_means": (classes, *units), "class_counts": (classes,)}
    shapes |= {"calibration": (15, 3), "moves": (*table, len(NAMES)), "losses": table}
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise DriftReferenceError(f"{path}: {name} must be finite numbers {shape}, got {array.dtype} {array.shape}")
    if (np.diff(arrays["edges"], axis=1) < 0).any():
        raise DriftReferenceError(f"{path}: edges must not fall; train and publish the model again")
    if float(arrays["temperature"]) != bundle.manifest.temperature:
        raise DriftReferenceError(
            f"{path} is the reference of another model: its temperature is {float(arrays['temperature']):.6g}, "
            f"the model's {bundle.manifest.temperature:.6g}; make it with the model"
        )
    scalars = {"temperature": float(arrays["temperature"]), "count": count, "accuracy": float(arrays["accuracy"])}
    return Reference(labels=labels, **{name: arrays[name] for name in _ARRAYS} | scalars)


def order_classes(labels: Labels) -> np.ndarray:
    """The place of each class, int (classes,), where superclasses are contiguous."""
    return np.argsort(np.argsort(labels.superclass_of, kind="stable"))


def cut_ranks(count: int) -> list[np.ndarray]:
    """For each of `TESTS`, the ranks of the `count` reference images that cut its bins."""
    return [bin_ranks(count, even=name in EVEN) for name in TESTS]
