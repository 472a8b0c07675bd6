"""training/batches.py: every image once an epoch, and the same batches for the same seed."""

import numpy as np
from small_task import drawn

from helpers.data.dataset import Split
from helpers.training.batches import make_batches
from helpers.training.recipe import Recipe


def numbered(count, side=32):
    """Images of which each holds its number in every pixel."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[:] = np.arange(count)[:, None, None, None]
    return Split(images, np.arange(count))


def gather(batches):
    parts = [batches[index] for index in range(len(batches))]
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def test_an_epoch_has_every_image_once_with_its_label():
    batches = make_batches(numbered(50), Recipe(batch_size=16), epoch=0)

    images, labels = gather(batches)

    assert [len(batches[index][1]) for index in range(len(batches))] == [16, 16, 16, 2]
    assert sorted(labels.tolist()) == list(range(50))
    np.testing.assert_array_equal(images, np.broadcast_to(labels[:, None, None, None], images.shape))


def test_an_image_left_over_joins_the_batch_before():
    batches = make_batches(numbered(33), Recipe(batch_size=16), epoch=0)

    assert [len(batches[index][1]) for index in range(len(batches))] == [16, 17]
    assert sorted(gather(batches)[1].tolist()) == list(range(33))
    assert len(make_batches(numbered(1), Recipe(batch_size=16), epoch=0)) == 1


def test_only_mixing_gives_targets_and_they_are_those_of_the_images():
    options = {"policy": "trivial", "cutout": 8, "batch_size": 16}

    _, labels = gather(make_batches(numbered(50), Recipe(**options), 0, classes=60))
    images, targets = gather(make_batches(numbered(50), Recipe(augment=False, cutmix=1.0, batch_size=16), 0, 60))

    assert sorted(labels.tolist()) == list(range(50))
    assert targets.shape == (50, 60)
    np.testing.assert_allclose(targets, [np.bincount(i.ravel(), minlength=60) / i.size for i in images], atol=1e-6)
    assert (targets.max(1) < 1).any()


def test_what_is_erased_shrinks_with_the_resolution():
    split = numbered(40)
    split.images[:, ::2, ::2] += 100

    for epoch, side in enumerate((16, 24, 32)):
        recipe = {"epochs": 3, "augment": False, "resolutions": "16 24 32", "batch_size": 40}
        whole, _ = make_batches(split, Recipe(**recipe), epoch)[0]
        erased, _ = make_batches(split, Recipe(**recipe, cutout=8), epoch)[0]
        assert (whole != erased).any(axis=(0, 3)).any()
        assert max(image.any(-1).any(0).sum() for image in whole != erased) == side // 4


def test_batches_are_the_same_for_a_seed_and_epoch_and_others_for_others():
    split = drawn(40, seed=9)

    def batches(epoch, seed):
        return gather(make_batches(split, Recipe(epochs=2, seed=seed, batch_size=8), epoch))

    first, again = batches(0, 0), batches(0, 0)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for epoch, seed in ((1, 0), (0, 1)):
        assert not np.array_equal(first[1], batches(epoch, seed)[1])


def test_the_same_image_is_augmented_otherwise_in_each_batch_epoch_and_seed():
    image = drawn(1, seed=9).images
    split = Split(np.repeat(image, 32, axis=0), np.zeros(32, int))

    batches = {
        make_batches(split, Recipe(epochs=2, seed=seed, batch_size=16), epoch)[index][0].tobytes()
        for seed in (0, 1)
        for epoch in (0, 1)
        for index in (0, 1)
    }

    assert len(batches) == 8


def test_without_augmentation_images_are_as_they_were():
    split = drawn(10, seed=9)

    images, labels = gather(make_batches(split, Recipe(augment=False, batch_size=4), 0))

    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in split.images)
    assert not np.array_equal(labels, split.labels)
