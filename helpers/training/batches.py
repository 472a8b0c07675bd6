"""The batches of an epoch: shuffled, augmented, at its resolution; the same for the same seed.

Images stay on the device that trains; a step gets only the numbers of its images and what is to happen to them.
"""

import math
from functools import cache

import numpy as np

from helpers.data.dataset import Split
from helpers.training.augmentation import change_images, mix_images, resize_images
from helpers.training.backend import load_keras
from helpers.training.changes import draw_changes
from helpers.training.recipe import Recipe


def make_batches(split: Split, recipe: Recipe, epoch: int):
    """A Keras dataset of one epoch's batches, shuffled; the same for the same seed and epoch.

    A batch is what a feed takes: ``index``, places in `split`, their ``label``, and what `draw_changes` drew.
    """
    keras = load_keras()

    side, size = recipe.resolution(epoch), recipe.batch_size
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(split)).astype(np.int32)
    labels = split.labels.astype(np.int32)
    steps = count_steps(split, recipe)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return steps

        def __getitem__(self, index):
            chosen = order[index * size : (index + 1) * size if index + 1 < steps else None]
            random = np.random.default_rng((recipe.seed, epoch, index))
            return {"index": chosen, "label": labels[chosen]} | draw_changes(len(chosen), side, recipe, random)

    # With one worker, Keras lets tf.data tune itself, whose thread may then hold up the end of an epoch for a minute.
    return Batches(workers=2)


def count_steps(split: Split, recipe: Recipe) -> int:
    """Steps an epoch; a single image left over goes into the batch before, since one alone has no batch statistics."""
    return max(1, math.ceil((len(split) - 1) / recipe.batch_size))


def make_feed(network, images: np.ndarray, side: int):
    """A Keras model that trains the compiled `network` on the batches of `make_batches`.

    Args:
        network: its weights and its optimizer are the ones that are trained.
        images: uint8 (n, 32, 32, 3), all that batches choose from; they go to the device once, here.
        side: to which they are resized, in pixels. A step is compiled for one side; another side needs another feed.
    """
    feed = _feed_class()(network, images, side)
    feed.compile(network.optimizer, network.loss, metrics=["accuracy"], jit_compile=network.jit_compile)
    return feed


@cache
def _feed_class():
    keras = load_keras()
    ops = keras.ops

    class Feed(keras.Model):
        """Answers batches with logits, and with the targets that go with them, which only it knows."""

        def __init__(self, network, images, side):
            super().__init__()
            self.network, self.side = network, side
            self.images = self.add_weight(shape=images.shape, dtype="uint8", initializer="zeros", trainable=False)
            self.images.assign(images)
            self.built = True

        def call(self, batch, training=False):
            images, targets = self.prepare(batch)
            return self.network(images, training=training), targets

        def prepare(self, batch):
            """Images, float32 (n, side, side, 3), and targets, float32 (n, classes), as the network is shown them."""
            images = ops.cast(ops.take(self.images, batch["index"], axis=0), "float32")
            images = change_images(resize_images(images, self.side), batch)
            return mix_images(images, ops.one_hot(batch["label"], self.network.output_shape[-1]), batch)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            logits, targets = y_pred
            return super().compute_loss(x, targets, logits, sample_weight, training)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logits, targets = y_pred
            return super().compute_metrics(x, targets, logits, sample_weight)

    return Feed
