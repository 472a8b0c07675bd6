"""training/loop.py: it learns, it is repeatable, and a killed run goes on as if nothing had happened."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
from small_task import CLASSES, TRAINING, VALIDATION, build, compiled, drawn

from helpers.training import loop as module
from helpers.training.batches import make_batches
from helpers.training.loop import EpochResult, TrainingDiverged, predict_logits, train
from helpers.training.model import build_vgg16, get_weights, set_weights
from helpers.training.recipe import Recipe

ALL_ON = Recipe(epochs=3, batch_size=20, policy="trivial", cutout=8, mixup=0.4, cutmix=1.0, average=0.9, seed=3)
RECIPE = Recipe(epochs=6, batch_size=20, learning_rate=0.1, weight_decay=0.001, resolutions="16 16 32", seed=3)


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
from test_loop import run
run(Path(sys.argv[1]), on_epoch=lambda result: print(result.epoch, flush=True))
"""


def test_a_run_that_was_killed_goes_on_to_the_same_weights_bit_for_bit(uninterrupted, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        assert process.stdout.readline() == "1\n"
        assert process.stdout.readline() == "2\n"
        process.send_signal(signal.SIGKILL)

    resumed = run(tmp_path)

    assert resumed[2][0] >= 3
    assert resumed[2][-1] == 6
    assert_the_same(resumed, uninterrupted)


def test_a_checkpoint_holds_no_images_and_each_weight_once(tmp_path):
    run(tmp_path, recipe=Recipe(batch_size=60, average=0.9))

    with np.load(tmp_path / "epoch-0001.npz") as arrays:
        shapes = [arrays[name].shape for name in arrays.files]
    assert not any(shape[1:] == (32, 32, 3) for shape in shapes)
    assert shapes.count((3, 3, 3, 8)) == 3  # the kernel, its momentum, its average


ON_JAX = """
import sys
from pathlib import Path
import numpy as np
from test_loop import ALL_ON, run
weights, results, _ = run(Path(sys.argv[1]), int(sys.argv[2]) or None, recipe=ALL_ON)
np.savez(sys.argv[3], **weights)
print(results[-1].validation_accuracy)
"""


def test_on_jax_a_stopped_run_learns_and_goes_on_to_the_same_weights_bit_for_bit(tmp_path):
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs JAX, which the suite does not install: pip install jax")

    def on_jax(folder, stop_after, name):
        environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)}
        arguments = [sys.executable, "-c", ON_JAX, str(tmp_path / folder), str(stop_after), str(tmp_path / name)]
        return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)

    whole = on_jax("whole", 0, "whole.npz")
    stopped = on_jax("stopped", 1, "none.npz")
    resumed = on_jax("stopped", 0, "resumed.npz")

    assert stopped.stderr.endswith("KeyboardInterrupt\n")
    assert [path.name for path in (tmp_path / "stopped").iterdir()] != []
    assert float(whole.stdout) == float(resumed.stdout) > 0.4
    with np.load(tmp_path / "whole.npz") as expected, np.load(tmp_path / "resumed.npz") as found:
        assert expected.files == found.files
        assert all(np.array_equal(found[name], expected[name]) for name in expected.files)


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
    def poison(split, recipe, epoch):
        batches = make_batches(split, recipe, epoch)

        class Poisoned(type(batches)):
            def __getitem__(self, index):
                batch = batches[index]
                return batch | {"share": batch["share"] * np.float32(np.nan if (epoch, index) == (1, 2) else 1)}

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


# --- the schedule and the loss


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
