"""Changes the pixels of training images where the network is trained, on every backend of Keras alike.

Images are float32 (n, side, side, 3) of whole numbers from 0 to 255; changes are those of `training.changes`.
"""

import numpy as np

from helpers.training.backend import load_keras
from helpers.training.changes import OPERATIONS

LUMA = np.array(((0.299,), (0.587,), (0.114,)), np.float32)  # ITU-R BT.601


def change_images(images, changes: dict):
    """`images` after the changes of each, in the order in which `draw_changes` names them; not mixed."""
    if "shift" in changes or "operation" in changes:
        images = _move(images, changes)
    if "operation" in changes:
        images = _recolour(images, changes)
    if "hole" in changes:
        ops = load_keras().ops
        mean = ops.round(ops.mean(images, axis=(0, 1, 2)))  # colour of them all
        images = ops.where(_inside(changes["hole"], images.shape[1])[..., None], mean, images)
    return images


def mix_images(images, targets, changes: dict):
    """Images and targets, the share of each class in each image (n, classes), mixed by the same shares."""
    if "other" not in changes:
        return images, targets
    ops = load_keras().ops

    inside = ops.cast(_inside(changes["patch"], images.shape[1]), "float32")
    weights = changes["share"][:, None, None] * (1 - inside)
    shares = ops.mean(weights, axis=(1, 2))[:, None]
    weights, other = weights[..., None], changes["other"]
    images = ops.round(weights * images + (1 - weights) * ops.take(images, other, axis=0))
    return images, shares * targets + (1 - shares) * ops.take(targets, other, axis=0)


def resize_images(images, side: int):
    """`images` at fewer pixels, each the mean of those with their centres in its area."""
    ops = load_keras().ops

    whole = images.shape[1]
    if whole == side:
        return images
    weights = _resampling_weights(whole, side)
    images = ops.floor(ops.matmul(weights, images) + 0.5)  # of each row; rounded both times, as Pillow does
    images = ops.floor(ops.matmul(weights, ops.reshape(images, (-1, whole, side * 3))) + 0.5)
    return ops.reshape(images, (-1, side, side, 3))


def _resampling_weights(whole, side):
    """What each of `side` pixels takes of each of `whole`: a box where sides divide, otherwise Hamming's window."""
    scale = whole / side
    x = (np.arange(whole) + 0.5) / scale - (np.arange(side)[:, None] + 0.5)
    window = np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)
    weights = np.abs(x) < 0.5 if whole % side == 0 else window
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _inside(rectangles, side):
    """Whether each pixel (n, side, side) lies in the rectangle (n, 4) of its image."""
    places, edges = np.arange(side, dtype=np.int32), rectangles[:, :, None]
    rows, columns = ((edges[:, axis] <= places) & (places < edges[:, axis + 2]) for axis in (0, 1))
    return rows[:, :, None] & columns[:, None, :]


def _move(images, changes):
    """Takes each pixel from so many whole pixels away; beyond the border, images are mirrored.

    Shears and translations come after shifts and flips, so they are first in asking where a pixel comes from.
    """
    ops = load_keras().ops
    side, last = images.shape[1], images.shape[1] - 1
    places = np.arange(side, dtype=np.float32)

    def mirror(places):
        return last - ops.abs(last - ops.abs(places))

    rows, columns = places[:, None], places
    if "operation" in changes:
        from_centre = places - last / 2
        shear_rows, shear_columns, translate_rows, translate_columns = (_strength(n, changes) for n in OPERATIONS[5:])
        down = 0.3 * shear_columns * from_centre + 10 / 32 * side * translate_columns
        right = 0.3 * shear_rows * from_centre[:, None] + 10 / 32 * side * translate_rows
        rows, columns = mirror(rows + ops.round(down)), mirror(columns + ops.round(right))
    if "shift" in changes:
        shift, flip = (ops.cast(changes[name], "float32")[..., None, None] for name in ("shift", "flip"))
        rows, columns = mirror(rows + shift[:, 0]), mirror(columns + flip * (last - 2 * columns) + shift[:, 1])
    first = side**2 * ops.arange(ops.shape(images)[0], dtype="int32")[:, None, None]
    sources = first + ops.cast(side * rows + columns, "int32")  # among the pixels of all images
    return ops.take(ops.reshape(images, (-1, 3)), sources, axis=0)


def _recolour(images, changes):
    """Does what moves nothing. An operation of no strength changes nothing, and all but one of each image have none."""
    ops = load_keras().ops

    brightness, contrast, saturation, posterize, solarize = (_strength(n, changes)[..., None] for n in OPERATIONS[:5])
    grey = ops.reshape(ops.matmul(ops.reshape(images, (-1, 3)), LUMA), (-1, *images.shape[1:3], 1))
    base = ops.where(contrast != 0, ops.mean(grey, axis=(1, 2), keepdims=True), ops.where(saturation != 0, grey, 0.0))
    factor = 1 + 0.9 * (brightness + contrast + saturation)  # 0.1 to 1.9, away from `base` or towards it
    images = ops.clip(ops.round(factor * images + (1 - factor) * base), 0, 255)
    unit = ops.round(2.0 ** ops.round(4 * ops.abs(posterize)))  # of the lowest bit that stays; four or more of eight do
    images = unit * ops.floor(images / unit)
    return ops.where(images >= 256 * (1 - ops.abs(solarize)), 255 - images, images)


def _strength(name, changes):
    """How strongly each image gets an operation, (n, 1, 1) from -1 to 1; ranges are those of RandAugment."""
    ops = load_keras().ops
    chosen = ops.equal(changes["operation"], OPERATIONS.index(name))
    return ops.where(chosen, changes["strength"], 0.0)[:, None, None]
