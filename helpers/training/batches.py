"""The batches of an epoch: shuffled, augmented, at its resolution; the same for the same seed."""

import math

import numpy as np

from helpers.data.augmentation import augment_images, cut_out, mix_images, resize_images, vary_images
from helpers.data.dataset import Split
from helpers.training.backend import load_keras
from helpers.training.recipe import MAX_RESOLUTION, Recipe


def make_batches(split: Split, recipe: Recipe, epoch: int, classes: int = 100):
    """A Keras dataset of one epoch's batches, shuffled and augmented; the same for the same seed and epoch.

    Where the recipe mixes images, the batches hold targets, float32 (n, `classes`), and labels otherwise.
    """
    keras = load_keras()

    side, size = recipe.resolution(epoch), recipe.batch_size
    images = resize_images(split.images, side)
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(split))
    steps = count_steps(split, recipe)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            chosen = order[index * size : (index + 1) * size if index + 1 < steps else None]
            random = np.random.default_rng((recipe.seed, epoch, index))
            batch, labels = images[chosen], split.labels[chosen]
            if recipe.augment:
                batch = augment_images(batch, random)
            if recipe.policy == "trivial":
                batch = vary_images(batch, random)
            if recipe.cutout:
                batch = cut_out(batch, random, math.ceil(recipe.cutout * side / MAX_RESOLUTION))
            if not (recipe.mixup or recipe.cutmix):
                return batch, labels
            targets = np.eye(classes, dtype=np.float32)[labels]
            return mix_images(batch, targets, random, mixup=recipe.mixup, cutmix=recipe.cutmix)

    return Batches(workers=1, max_queue_size=4)


def count_steps(split: Split, recipe: Recipe) -> int:
    """Steps an epoch; a single image left over goes into the batch before, since one alone has no batch statistics."""
    return max(1, math.ceil((len(split) - 1) / recipe.batch_size))
