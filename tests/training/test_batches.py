"""training/batches.py: every image once an epoch, and the same batches for the same seed, on every backend."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from small_task import drawn

from helpers.data.dataset import Split
from helpers.training.batches import make_batches, make_feed
from helpers.training.loop import compile_model
from helpers.training.recipe import Recipe

ALL_ON = {"policy": "trivial", "cutout": 8, "mixup": 0.4, "cutmix": 1.0}


def numbered(count, side=32):
    """Images of which each holds its number in every pixel."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[:] = np.arange(count)[:, None, None, None]
    return Split(images, np.arange(count))


def feed_of(split, recipe, epoch=0):
    """A feed for a network that shows its images: its logits are the pixels in a row."""
    import keras

    side = recipe.resolution(epoch)
    network = keras.Sequential([keras.Input((side, side, 3)), keras.layers.Flatten()])
    compile_model(network, recipe, steps=1)
    return make_feed(network, split.images, side)


def gather(split, recipe, epoch=0, index=None):
    """Images and labels, or their shares, as the network gets them: of an epoch, or of one batch."""
    feed, batches = feed_of(split, recipe, epoch), make_batches(split, recipe, epoch)
    shown = [feed.prepare(batches[step]) for step in (range(len(batches)) if index is None else (index,))]
    return [np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*shown, strict=True)]


def test_an_epoch_has_every_image_once_with_its_label():
    split, recipe = numbered(50), Recipe(batch_size=16)
    batches = make_batches(split, recipe, epoch=0)

    images, targets = gather(split, recipe)

    assert [len(batches[index]["label"]) for index in range(len(batches))] == [16, 16, 16, 2]
    labels = targets.argmax(1)
    assert sorted(labels.tolist()) == list(range(50))
    assert set(np.unique(targets)) == {0, 1}
    np.testing.assert_array_equal(images, np.broadcast_to(labels[:, None, None, None], images.shape))


def test_an_image_left_over_joins_the_batch_before():
    batches = make_batches(numbered(33), Recipe(batch_size=16), epoch=0)

    assert [len(batches[index]["label"]) for index in range(len(batches))] == [16, 17]
    assert sorted([*batches[0]["label"], *batches[1]["label"]]) == list(range(33))
    assert len(make_batches(numbered(1), Recipe(batch_size=16), epoch=0)) == 1


def test_targets_are_the_shares_of_the_images_that_are_mixed():
    images, targets = gather(numbered(50), Recipe(augment=False, cutmix=1.0, batch_size=16))

    shares = [np.bincount(image.ravel().astype(int), minlength=targets.shape[1]) / image.size for image in images]
    np.testing.assert_allclose(targets, shares, atol=1e-6)
    assert (targets.max(1) < 1).any()


def test_what_is_erased_shrinks_with_the_resolution():
    split = numbered(40)
    split.images[:, ::2, ::2] += 100

    for epoch, side in enumerate((16, 24, 32)):
        recipe = {"epochs": 3, "augment": False, "resolutions": "16 24 32", "batch_size": 40}
        whole, _ = gather(split, Recipe(**recipe), epoch)
        erased, _ = gather(split, Recipe(**recipe, cutout=8), epoch)
        assert whole.shape == (40, side, side, 3)
        assert max(image.any(-1).any(0).sum() for image in whole != erased) == side // 4


def test_batches_are_the_same_for_a_seed_and_epoch_and_others_for_others():
    split = drawn(40, seed=9)

    def batches(epoch, seed):
        return gather(split, Recipe(epochs=2, seed=seed, batch_size=8, **ALL_ON), epoch)

    first, again = batches(0, 0), batches(0, 0)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for epoch, seed in ((1, 0), (0, 1)):
        assert not np.array_equal(first[0], batches(epoch, seed)[0])


def test_the_same_image_is_augmented_otherwise_in_each_batch_epoch_and_seed():
    image = drawn(1, seed=9).images
    split = Split(np.repeat(image, 32, axis=0), np.zeros(32, int))

    batches = {
        gather(split, Recipe(epochs=2, seed=seed, batch_size=16), epoch, index)[0].tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
    }

    assert len(batches) == 8


def test_without_augmentation_images_are_as_they_were():
    split = drawn(10, seed=9)

    images, targets = gather(split, Recipe(augment=False, batch_size=4))

    shown = images.astype(np.uint8)
    assert sorted(image.tobytes() for image in shown) == sorted(image.tobytes() for image in split.images)
    assert not np.array_equal(targets.argmax(1), split.labels)


def test_an_epoch_does_not_wait_at_its_end_for_a_pipeline_that_tunes_itself():
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    pipeline = PyDatasetAdapter(make_batches(numbered(50), Recipe(batch_size=16), epoch=0)).get_tf_dataset()

    assert pipeline.options().autotune.enabled is False


@pytest.mark.parametrize("resolutions", ["32", "24 32"])
@pytest.mark.parametrize("xla", [False, True])
def test_the_compiled_step_shows_the_network_the_same_images(resolutions, xla):
    split, recipe = drawn(40, seed=9), Recipe(epochs=2, batch_size=16, resolutions=resolutions, **ALL_ON)
    feed = feed_of(split, recipe)
    feed.jit_compile = xla  # as on a GPU

    shown, targets = feed.predict(make_batches(split, recipe, 0), verbose=0)

    wanted = gather(split, recipe)
    assert np.abs(shown - wanted[0].reshape(40, -1)).max() <= 1  # where a compiler rounds a half otherwise
    assert np.mean(shown != wanted[0].reshape(40, -1)) < 1e-4
    np.testing.assert_allclose(targets, wanted[1], atol=1e-6)


SHOWN = """
import sys
import numpy as np
from small_task import drawn
from test_batches import ALL_ON, gather
from helpers.training.recipe import Recipe
for side in (16, 24, 32):
    recipe = Recipe(epochs=2, batch_size=16, resolutions=f"{side} 32", **ALL_ON)
    np.save(f"{sys.argv[1]}/{side}.npy", gather(drawn(40, seed=9), recipe)[0])
"""


def test_jax_shows_the_same_images_as_tensorflow(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs JAX, which the suite does not install: pip install jax")
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SHOWN, str(tmp_path)], env=environment, check=True, timeout=300)

    for side in (16, 24, 32):
        recipe = Recipe(epochs=2, batch_size=16, resolutions=f"{side} 32", **ALL_ON)
        ours, theirs = gather(drawn(40, seed=9), recipe)[0], np.load(tmp_path / f"{side}.npy")
        assert np.abs(ours - theirs).max() <= 1
        assert np.mean(ours != theirs) < 1e-4
