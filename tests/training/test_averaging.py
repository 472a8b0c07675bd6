"""training/averaging.py: the average is that of the steps, and its batch statistics are its own."""

import contextlib

import numpy as np
from small_task import TRAINING, VALIDATION, build, compiled

from helpers.training.averaging import averaged, use_average
from helpers.training.loop import train
from helpers.training.model import get_weights
from helpers.training.recipe import Recipe


def test_the_trained_network_holds_the_moving_average_and_batch_statistics_that_fit_it():
    recipe = {"epochs": 6, "batch_size": 180, "learning_rate": 0.05}  # a step an epoch
    plain, with_average, steps, before = build(), build(), [], []

    train(plain, TRAINING, VALIDATION, Recipe(**recipe), on_epoch=lambda _: steps.append(get_weights(plain)))
    train(
        with_average,
        TRAINING,
        VALIDATION,
        Recipe(**recipe, average=0.3),
        on_epoch=lambda _: before.append(get_weights(with_average)),
    )

    found = get_weights(with_average)
    for name in ("conv/kernel", "bn/gamma", "bn/beta", "logits/kernel", "logits/bias"):
        mean = steps[0][name]
        for count, step in enumerate(steps[1:], start=2):
            decay = min(0.3, (count - 1) / (count + 9))
            mean = decay * mean + (1 - decay) * step[name]
        np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found["conv/kernel"], steps[-1]["conv/kernel"], rtol=1e-4)
    for ours, theirs in zip(before, steps, strict=True):  # averaging leaves no trace in training
        assert all(np.array_equal(array, theirs[name]) for name, array in ours.items())
    outputs = np.asarray(with_average.get_layer("conv")(TRAINING.images / np.float32(64) - 2))
    np.testing.assert_allclose(found["bn/moving_mean"], outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["bn/moving_variance"], outputs.var((0, 1, 2)), rtol=1e-3)
    assert with_average.get_layer("bn").momentum == 0.99


def prepared():
    """A network whose average is three times its weights."""
    network = compiled(Recipe(average=0.5), steps=10)
    network.optimizer.build(network.trainable_variables)
    for weight, mean in zip(network.trainable_variables, network.optimizer.averages, strict=True):
        mean.assign(3 * weight)
    return network


def test_batch_statistics_of_the_average_are_plain_means_over_batches():
    network, images = prepared(), np.concatenate([TRAINING.images] * 4)[:600]

    use_average(network, images)

    outputs = np.asarray(network.get_layer("conv")(images / np.float32(64) - 2))
    found = get_weights(network)["bn/moving_mean"]
    np.testing.assert_allclose(found, outputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-4)


def test_a_network_holds_the_average_for_a_while_and_then_its_weights_even_after_an_error():
    network = prepared()
    before = get_weights(network)

    with contextlib.suppress(KeyboardInterrupt), averaged(network, TRAINING.images):
        within = get_weights(network)
        raise KeyboardInterrupt

    after = get_weights(network)
    np.testing.assert_allclose(within["conv/kernel"], 3 * before["conv/kernel"], rtol=1e-6)
    assert all(np.array_equal(array, after[name]) for name, array in before.items())
