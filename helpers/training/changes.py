"""What is to happen to each image of a training batch: a few random numbers, drawn on the host.

So a seed means the same images on every backend and device; their pixels are the work of `training.augmentation`.
"""

import math

import numpy as np

from helpers.training.recipe import MAX_RESOLUTION, Recipe

OPERATIONS = (
    "brightness",
    "contrast",
    "saturation",
    "posterize",
    "solarize",
    "shear rows",
    "shear columns",
    "translate rows",
    "translate columns",
)


def draw_changes(count: int, side: int, recipe: Recipe, random: np.random.Generator) -> dict[str, np.ndarray]:
    """What happens to each of `count` images of `side` pixels, int32 or float32 (count, ...) by name.

    Rectangles are top, left, bottom and right, the last two exclusive, in pixels. Nothing is drawn for what is off.

    - ``shift`` (count, 2) pixels down and right, each up to side / 8, and ``flip``, 0 or 1: by `recipe.augment`.
    - ``operation``, a place in `OPERATIONS` or the number after them for nothing, each as likely, and ``strength``, -1
      to 1: by `recipe.policy`, after TrivialAugment (Müller & Hutter 2021).
    - ``hole``, the square that is erased: by `recipe.cutout` (DeVries & Taylor 2017). Its centre may be any pixel, so
      that part of it may lie outside the image.
    - ``other``, a second image of the batch, ``share``, the weight of the first, 0 to 1, and ``patch``, a rectangle
      where it is 0: for half of the batches by `recipe.mixup` (Zhang et al. 2018), without a patch, for the other half
      by `recipe.cutmix` (Yun et al. 2019), without a weight. Both are the parameter of the Beta distribution of the
      first image's share.
    """
    changes = {}
    if recipe.augment:
        reach = side // 8
        changes["shift"] = random.integers(-reach, reach + 1, (2, count)).T
        changes["flip"] = random.random(count) < 0.5
    if recipe.policy == "trivial":
        changes["operation"] = random.integers(0, len(OPERATIONS) + 1, count)
        changes["strength"] = random.uniform(-1, 1, count)
    if recipe.cutout:
        size = math.ceil(recipe.cutout * side / MAX_RESOLUTION)
        start = random.integers(0, side, (2, count)).T - size // 2
        changes["hole"] = np.concatenate([start, start + size], axis=1)
    if recipe.mixup or recipe.cutmix:
        other, share, patch = _draw_mixture(count, side, recipe, random)
        changes |= {"other": other, "share": np.full(count, share), "patch": np.tile(patch, (count, 1))}
    return {name: values.astype(np.float32 if values.dtype == float else np.int32) for name, values in changes.items()}


def _draw_mixture(count, side, recipe, random):
    by_weight = random.random() < 0.5
    alpha = recipe.mixup if by_weight else recipe.cutmix
    nothing = np.zeros(4, int)
    if not alpha:
        return np.arange(count), 1.0, nothing
    share, other = random.beta(alpha, alpha), random.permutation(count)
    if by_weight:
        return other, share, nothing
    reach = round(side * np.sqrt(1 - share)) / 2
    start = random.integers(0, side, 2) + 0.5 - reach
    return other, 1.0, np.rint([*start, *(start + 2 * reach)]).astype(int).clip(0, side)
