"""helpers/training.py: it learns, it is repeatable, and a killed run goes on as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from helpers import training as module
from helpers.dataset import Split
from helpers.model import build_vgg16, get_weights, set_weights
from helpers.synthetic import HUES, draw_images
from helpers.training import (
    EpochResult,
    Recipe,
    RecipeError,
    TrainingDiverged,
    choose_precision,
    make_batches,
    predict_logits,
    train,
)
from helpers.workspace import ROOT

CLASSES = len(HUES)
ALL_ON = Recipe(epochs=3, batch_size=20, policy="trivial", cutout=8, mixup=0.4, cutmix=1.0, average=0.9, seed=3)
RECIPE = Recipe(epochs=6, batch_size=20, learning_rate=0.1, weight_decay=0.001, resolutions="16 16 32", seed=3)


def drawn(count, seed):
    """Images of the stand-in and their hues, as a small task: chance is 0.2."""
    labels = np.random.default_rng(seed).integers(0, 100, count)
    return Split(draw_images(labels, seed), labels % CLASSES)


TRAINING, VALIDATION = drawn(180, seed=0), drawn(100, seed=1)


def build():
    """A shallow network with every kind of state that VGG16 has; TensorFlow needs 1 s to trace it, VGG16 10."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(11)
    return keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Rescaling(1 / 64, offset=-2),
            layers.Conv2D(8, 3, strides=2, use_bias=False, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(),
            layers.MaxPooling2D(2),
            layers.GlobalMaxPooling2D(),
            layers.Dropout(0.1, name="dropout"),
            layers.Dense(CLASSES, name="logits"),
        ]
    )


def run(folder, stop_after=None, on_epoch=None, recipe=RECIPE):
    """A training in a new network: weights, and the epochs that were trained here."""
    network, here = build(), []

    def note(result):
        here.append(result.epoch)
        if on_epoch:
            on_epoch(result)
        if result.epoch == stop_after:
            raise KeyboardInterrupt

    results = train(network, TRAINING, VALIDATION, recipe, checkpoints=folder, on_epoch=note)
    return get_weights(network), results, here


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("checkpoints"))


def assert_the_same(found, expected):
    assert all(np.array_equal(array, expected[0][name]) for name, array in found[0].items())
    timeless = [
        [{k: v for k, v in asdict(r).items() if "second" not in k} for r in results]
        for _, results, _ in (found, expected)
    ]
    assert timeless[0] == timeless[1]


# --- training


def test_training_learns_what_can_be_learned(uninterrupted):
    _, results, here = uninterrupted

    assert here == [1, 2, 3, 4, 5, 6]
    assert results[-1].loss < 0.9 * results[0].loss
    assert results[-1].validation_accuracy > 0.4
    assert [result.resolution for result in results] == [16, 16, 16, 16, 32, 32]
    assert all(result.images_per_second > 0 and result.seconds > 0 for result in results)


def test_vgg16_learns_a_few_images_by_heart():
    import keras

    keras.utils.set_random_seed(0)
    network = build_vgg16((100, 100, 100), (60, 60, 60), num_classes=CLASSES, width=0.125, dropout=0.1)
    recipe = Recipe(epochs=40, batch_size=16, learning_rate=0.05, weight_decay=0, label_smoothing=0, augment=False)

    results = train(network, TRAINING.take(slice(64)), VALIDATION, recipe)

    assert results[-1].loss < 0.5 * results[0].loss
    assert results[-1].accuracy > 0.6  # chance: 0.2


def test_the_validation_accuracy_is_that_of_the_weights_at_32_pixels(uninterrupted):
    weights, results, _ = uninterrupted
    network = build()
    set_weights(network, weights)

    answers = predict_logits(network, VALIDATION.images).argmax(1)

    assert results[-1].validation_accuracy == np.mean(answers == VALIDATION.labels)


def test_a_run_that_was_stopped_goes_on_to_the_same_weights_bit_for_bit(uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_after=3)

    resumed = run(tmp_path)

    assert resumed[2] == [4, 5, 6]
    assert_the_same(resumed, uninterrupted)


def test_with_every_option_on_a_stopped_run_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    expected = run(tmp_path / "uninterrupted", recipe=ALL_ON)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", stop_after=1, recipe=ALL_ON)

    resumed = run(tmp_path / "stopped", recipe=ALL_ON)

    assert resumed[2] == [2, 3]
    assert_the_same(resumed, expected)
    finished = run(tmp_path / "stopped", recipe=ALL_ON)
    assert finished[2] == []
    assert_the_same(finished, expected)
    network = build()
    set_weights(network, expected[0])
    answers = predict_logits(network, VALIDATION.images).argmax(1)
    assert expected[1][-1].validation_accuracy == np.mean(answers == VALIDATION.labels)


KILLED = """
import sys
from pathlib import Path
from tests.test_training import run
run(Path(sys.argv[1]), on_epoch=lambda result: print(result.epoch, flush=True))
"""


def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(uninterrupted, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "2\n"
        process.send_signal(signal.SIGKILL)

    resumed = run(tmp_path)

    assert resumed[2][0] >= 3
    assert resumed[2][-1] == 6
    assert_the_same(resumed, uninterrupted)


def test_a_finished_run_is_not_trained_again(uninterrupted, tmp_path):
    run(tmp_path, recipe=Recipe(batch_size=60))

    weights, results, here = run(tmp_path, recipe=Recipe(batch_size=60))

    assert here == []
    assert [type(result) for result in results] == [EpochResult]
    assert not np.array_equal(weights["logits/kernel"], get_weights(build())["logits/kernel"])


def test_what_was_learned_is_a_start_for_other_images(uninterrupted):
    network, more = build(), drawn(180, seed=5)
    set_weights(network, uninterrupted[0])

    (result,) = train(network, more, VALIDATION, Recipe(batch_size=30, learning_rate=0.01))

    assert result.validation_accuracy > 0.4
    assert result.validation_accuracy > uninterrupted[1][0].validation_accuracy


def test_a_loss_that_is_no_number_stops_training_with_what_to_do(tmp_path):
    network = build()
    weights = get_weights(network)
    set_weights(network, weights | {"logits/bias": np.full(CLASSES, np.nan, np.float32)})

    sentence = r"^loss became nan in step 1 of 3 of epoch 1 of 1; lower learning_rate \(now 0.2\) and start again$"
    with pytest.raises(TrainingDiverged, match=sentence):
        train(network, TRAINING.take(slice(60)), VALIDATION, Recipe(batch_size=20), checkpoints=tmp_path)

    assert int(network.optimizer.iterations) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_amid_an_epoch_stops_at_that_step_and_names_the_last_checkpoint(tmp_path, monkeypatch):
    def poison(split, recipe, epoch, classes):
        batches = make_batches(split, recipe, epoch, classes)

        class Poisoned(type(batches)):
            def __getitem__(self, index):
                images, targets = batches[index]
                return images, targets * np.float32(np.nan if (epoch, index) == (1, 2) else 1)

        return Poisoned()

    monkeypatch.setattr(module, "make_batches", poison)
    network, recipe = build(), Recipe(epochs=3, batch_size=20, learning_rate=0.01, mixup=1.0)
    checkpoint = tmp_path / "epoch-0001.npz"

    with pytest.raises(TrainingDiverged) as caught:
        train(network, TRAINING, VALIDATION, recipe, checkpoints=tmp_path)

    assert str(caught.value) == (
        "loss became nan in step 3 of 9 of epoch 2 of 3; lower learning_rate (now 0.01) and start again; "
        f"the last good checkpoint is {checkpoint}"
    )
    assert int(network.optimizer.iterations) == 9 + 3
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_weights_that_the_last_step_of_an_epoch_ruined_are_noticed_and_not_kept(tmp_path):
    recipe = Recipe(batch_size=60, learning_rate=1e38, warmup=0)

    with pytest.raises(TrainingDiverged, match=r"^logits became -?(nan|inf) after epoch 1 of 1; lower learning_rate"):
        train(build(), TRAINING.take(slice(60)), VALIDATION, recipe, checkpoints=tmp_path)

    assert list(tmp_path.iterdir()) == []


# --- the average of the weights


def test_the_trained_network_holds_the_moving_average_and_batch_statistics_that_fit_it():
    recipe = {"epochs": 6, "batch_size": 180, "learning_rate": 0.05}  # a step an epoch
    plain, averaged, steps, before = build(), build(), [], []

    train(plain, TRAINING, VALIDATION, Recipe(**recipe), on_epoch=lambda _: steps.append(get_weights(plain)))
    train(
        averaged,
        TRAINING,
        VALIDATION,
        Recipe(**recipe, average=0.3),
        on_epoch=lambda _: before.append(get_weights(averaged)),
    )

    found = get_weights(averaged)
    for name in ("conv/kernel", "bn/gamma", "bn/beta", "logits/kernel", "logits/bias"):
        mean = steps[0][name]
        for count, step in enumerate(steps[1:], start=2):
            decay = min(0.3, (count - 1) / (count + 9))
            mean = decay * mean + (1 - decay) * step[name]
        np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["conv/kernel"], steps[-1]["conv/kernel"], rtol=1e-4)
    for ours, theirs in zip(before, steps, strict=True):  # averaging leaves no trace in training
        assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())
    outputs = np.asarray(averaged.get_layer("conv")(TRAINING.images / np.float32(64) - 2))
    np.testing.assert_allclose(found["bn/moving_mean"], outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["bn/moving_variance"], outputs.var((0, 1, 2)), rtol=1e-3)
    assert averaged.get_layer("bn").momentum == 0.99


def test_batch_statistics_of_the_average_are_plain_means_over_batches(monkeypatch):
    network, images = compiled(Recipe(average=0.5), steps=10), np.concatenate([TRAINING.images] * 4)[:600]
    network.optimizer.build(network.trainable_variables)
    for weight, mean in zip(network.trainable_variables, network.optimizer.averages, strict=True):
        mean.assign(weight)

    module._use_average(network, images)

    outputs = np.asarray(network.get_layer("conv")(images / np.float32(64) - 2))
    found = get_weights(network)["bn/moving_mean"]
    np.testing.assert_allclose(found, outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)


# --- the recipe


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0, got inf"),
        ({"momentum": 1}, "momentum must be from 0 to below 1, got 1"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0 to below 1, got -0.1"),
        ({"label_smoothing": 1}, "label_smoothing must be from 0 to below 1, got 1"),
        ({"policy": "auto"}, "policy must be none or trivial, got auto"),
        ({"cutout": -1}, "cutout must be from 0 to 32, got -1"),
        ({"cutout": 33}, "cutout must be from 0 to 32, got 33"),
        ({"mixup": -0.1}, "mixup must be from 0 to 100, got -0.1"),
        ({"mixup": float("nan")}, "mixup must be from 0 to 100, got nan"),
        ({"cutmix": float("inf")}, "cutmix must be from 0 to 100, got inf"),
        ({"cutmix": float("nan")}, "cutmix must be from 0 to 100, got nan"),
        ({"average": 1.0}, "average must be from 0 to below 1, got 1.0"),
        ({"average": -0.5}, "average must be from 0 to below 1, got -0.5"),
        ({"average": float("nan")}, "average must be from 0 to below 1, got nan"),
        ({"warmup": 1}, "warmup must be from 0 to below 1, got 1"),
        ({"warmup": -0.5}, "warmup must be from 0 to below 1, got -0.5"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"resolutions": ""}, "resolutions must be sides from 16 to 32, such as '16 24 32', got ''"),
        ({"resolutions": "8 32"}, "resolutions must be sides from 16 to 32, .* got '8 32'"),
        ({"resolutions": "16,32"}, "resolutions must be sides from 16 to 32, .* got '16,32'"),
        ({"resolutions": "32 64"}, "resolutions must be sides from 16 to 32, .* got '32 64'"),
        ({"resolutions": "32 16", "epochs": 2}, "resolutions must end with 32, what is served, got '32 16'"),
        (
            {"resolutions": "16 24 32", "epochs": 2},
            r"resolutions must be at most as many as epochs \(2\), got '16 24 32'",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes, sentence):
    with pytest.raises(RecipeError, match=f"^{sentence}$"):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("epochs", "resolutions", "sides"),
    [
        (1, "32", [32]),
        (4, "16 32", [16, 16, 32, 32]),
        (6, "16 24 32", [16, 16, 24, 24, 32, 32]),
        (5, "16 24 32", [16, 16, 24, 24, 32]),
        (3, "16 24 32", [16, 24, 32]),
    ],
)
def test_resolutions_are_phases_and_the_last_epoch_is_at_32(epochs, resolutions, sides):
    recipe = Recipe(epochs=epochs, resolutions=resolutions)

    assert [recipe.resolution(epoch) for epoch in range(epochs)] == sides


def test_a_precision_is_taken_at_its_word_or_chosen():
    assert choose_precision("float32") == "float32"
    assert choose_precision("mixed_bfloat16") == "mixed_bfloat16"
    assert choose_precision("auto") in ("float32", "mixed_bfloat16")
    with pytest.raises(RecipeError, match="precision must be auto, float32 or mixed_bfloat16, got 'float16'"):
        choose_precision("float16")


# --- the schedule and the loss


def compiled(recipe, steps):
    from helpers.training import _compile

    network = build()
    _compile(network, recipe, steps)
    return network


@pytest.mark.parametrize("warmup", [0.0, 0.2])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_0(warmup):
    network = compiled(Recipe(learning_rate=0.4, warmup=warmup), steps=100)
    schedule = network.optimizer._learning_rate
    rates = np.array([float(schedule(step)) for step in range(101)])

    peak = round(100 * warmup)
    assert rates.argmax() == peak
    assert rates[peak] == pytest.approx(0.4)
    assert rates[100] == pytest.approx(0, abs=1e-6)
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()


def test_only_kernels_decay():
    network = compiled(Recipe(weight_decay=0.01), steps=10)
    network.optimizer.build(network.trainable_variables)

    decayed = {
        variable.name for variable in network.trainable_variables if network.optimizer._use_weight_decay(variable)
    }

    assert decayed == {"kernel"}


@pytest.mark.parametrize("soft", [False, True])
def test_labels_and_targets_of_one_class_have_the_same_loss_and_accuracy(soft):
    network = compiled(Recipe(label_smoothing=0), steps=10)
    logits = predict_logits(network, VALIDATION.images)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.eye(CLASSES, dtype=np.float32)[VALIDATION.labels]

    loss, accuracy = network.evaluate(VALIDATION.images, targets if soft else VALIDATION.labels, verbose=0)

    assert loss == pytest.approx(-np.log((chances * targets).sum(1)).mean(), rel=1e-4)
    assert accuracy == pytest.approx(np.mean(logits.argmax(1) == VALIDATION.labels))


def test_the_bar_shows_loss_accuracy_images_a_second_and_the_time_left(capsys):
    train(build(), TRAINING.take(slice(61)), VALIDATION, Recipe(batch_size=20))

    shown = capsys.readouterr().err.split("\r")
    pattern = r"epoch 1/1: .* 20/61 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s, accuracy=[\d.]+%, loss=[\d.]+\]"
    assert any(re.search(pattern, line) for line in shown), shown


# --- batches


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
