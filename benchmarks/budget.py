"""Accuracy after a given time of training, ours and stock Keras', both from the same weights."""

import math
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measuring import rate
from benchmarks.plain import CLASSES, SIDE, build_plain, compile_plain
from helpers.data.dataset import Split
from helpers.training.backend import load_keras
from helpers.training.batches import make_batches, make_feed
from helpers.training.loop import compile_model, predict_logits, train
from helpers.training.model import build_vgg16, set_weights
from helpers.training.recipe import Recipe, choose_precision

SHORT = {  # a recipe for minutes, found on the validation images with a network of half the width
    "batch_size": 128,
    "learning_rate": 0.05,
    "warmup": 0.2,
    "label_smoothing": 0.0,
    "augment": False,
    "resolutions": "16 16 32",
}
RESERVE = 0.97  # share of the remaining time that a plan may fill
SEED = 0
FULL, OVER = 0.93, 1.01  # a run that takes less or more of its time than this was planned by a probe that was disturbed
TRIES = 3
STOP = 1.5  # of its time: what takes so long need not be waited for


def fill(train: Callable[[float], dict], seconds: float) -> dict:
    """The first result of `train` that takes about `seconds`, or the one of `TRIES` that comes nearest.

    `train` is given by how much its plan is to be made longer, 1 at first, then by what the run before took.
    """
    results, longer = [], 1.0
    while len(results) < TRIES:
        results.append(train(longer))
        taken = results[-1]["seconds"]
        if FULL * seconds <= taken <= OVER * seconds:
            return results[-1]
        longer *= RESERVE * seconds / taken
    return min(results, key=lambda result: abs(result["seconds"] - seconds))


def plan_recipe(seconds: float, speeds: dict, check_seconds: float, available: int, **changes) -> tuple[Recipe, int]:
    """The recipe with the fewest epochs that fills `seconds`, and how many images an epoch of it has.

    `speeds` are images/s by resolution; `check_seconds` is what follows each epoch; `changes` are of `SHORT`.
    """
    options = {**SHORT, "seed": SEED, **changes}
    epochs, batch_size = len(options["resolutions"].split()), options["batch_size"]
    while True:
        recipe = Recipe(epochs=epochs, **options)
        seconds_per_image = sum(1 / speeds[recipe.resolution(epoch)] for epoch in range(epochs))
        images = (seconds - epochs * check_seconds) / seconds_per_image
        images = int(images * (1 + 1e-9)) // batch_size * batch_size  # one that is whole but for its last bit is whole
        if images <= available:
            return recipe, max(images, batch_size)
        epochs += 1


def probe(network, training: Split, few: Split) -> tuple[dict, float, float]:
    """Images/s of `network` by resolution, the seconds of the check after an epoch, and those of all compilation.

    Speeds are of the steps after the first of an epoch, so that what an epoch costs once does not count; a plan that
    took it for the speed of steps would leave a third of its time unused.
    """
    batch_size, sides = SHORT["batch_size"], list(dict.fromkeys(SHORT["resolutions"].split()))
    recipe = Recipe(**SHORT | {"epochs": len(sides), "resolutions": " ".join(sides)})

    some = training.take(slice(18 * batch_size))

    def ends(feed, epoch):
        started, times = time.perf_counter(), []
        note = load_keras().callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: times.append(time.perf_counter() - started)
        )
        feed.fit(make_batches(some, recipe, epoch), shuffle=False, verbose=0, callbacks=[note])
        return times

    compile_model(network, recipe, steps=100)
    first_check, check_seconds = (1 / rate(1, lambda: predict_logits(network, few.images)) for _ in range(2))
    speeds, compiling = {}, first_check - check_seconds
    for epoch, side in enumerate(map(int, sides)):
        feed = make_feed(network, some.images, side)
        first, times = ends(feed, epoch), ends(feed, epoch)
        speeds[side] = (len(times) - 1) * batch_size / (times[-1] - times[0])
        compiling += first[0] - times[0]
    return speeds, check_seconds, max(0.0, compiling)


def train_ours(config, weights, training: Split, validation: Split, seconds: float, longer: float = 1.0) -> dict:
    """Our `train` from `weights`, planned to end within `seconds` by a short probe, which counts; its accuracy.

    `longer` is what the plan is multiplied by; see `fill`.
    """
    started, few = time.perf_counter(), validation.take(slice(250))
    probed, network = (our_network(config, weights) for _ in range(2))
    speeds, check_seconds, compiling = probe(probed, training, few)
    remaining = seconds - (time.perf_counter() - started) - compiling
    recipe, images = plan_recipe(longer * RESERVE * remaining, speeds, check_seconds, len(training))
    train(network, draw(training, images), few, recipe, progress=False)
    taken = time.perf_counter() - started
    how = f"{recipe.epochs} epochs of {images} images at {recipe.resolutions} px, {choose_precision()}"
    seen = recipe.epochs * images
    return {"accuracy": accuracy(network, validation), "seconds": taken, "images": seen, "how": how}


def our_network(config, weights, precision: str = "auto"):
    """The suite's VGG16 that starts from `weights`."""
    network = build_vgg16(**config, dtype=choose_precision(precision))
    set_weights(network, weights)
    return network


def draw(split: Split, count: int) -> Split:
    """The same `count` images of it each time."""
    return split.take(np.random.default_rng(SEED).permutation(len(split))[:count])


def train_plain(config, weights, training, validation, seconds: float, jit_compile: bool, longer: float = 1.0) -> dict:
    """Stock `fit` from `weights` with the batches, rate and loss of `SHORT`, planned to end within `seconds`.

    Its schedule is sized by a short probe, which counts, and multiplied by `longer`; see `fill`.
    """
    recipe = Recipe(**SHORT | {"resolutions": str(SIDE)})
    batch_size = recipe.batch_size
    keras, started = load_keras(), time.perf_counter()
    keras.utils.set_random_seed(SEED)
    network, count, targets = build_plain(**config), 6 * batch_size, np.eye(CLASSES, dtype=np.float32)[training.labels]
    compile_plain(network, recipe, 10_000, jit_compile)
    durations = []
    for _ in ("compiles", "warm"):
        begun = time.perf_counter()
        network.fit(training.images[:count], targets[:count], batch_size=batch_size, verbose=0)
        durations.append(time.perf_counter() - begun)
    remaining = seconds - (time.perf_counter() - started) - (durations[0] - durations[1])
    steps = max(1, int(longer * RESERVE * remaining / durations[1] * 6))
    set_weights(network, weights)
    compile_plain(network, recipe, steps, jit_compile)

    class Stop(keras.callbacks.Callback):
        done = 0

        def on_train_batch_end(self, batch, logs=None):
            self.done += 1
            self.model.stop_training = self.done >= steps or time.perf_counter() - started >= STOP * seconds

    stop, epochs = Stop(), math.ceil(steps / (len(training) // batch_size))
    network.fit(training.images, targets, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[stop])
    taken = time.perf_counter() - started
    xla = "on" if jit_compile else "off"
    how = f"{stop.done} of {steps} planned steps at {SIDE} px, float32, not augmented, XLA {xla}"
    seen = stop.done * batch_size
    return {"accuracy": accuracy(network, validation), "seconds": taken, "images": seen, "how": how}


def accuracy(network, split: Split) -> float:
    """Share of `split` classified as its labels say, 0 to 1."""
    return float(np.mean(predict_logits(network, split.images).argmax(1) == split.labels))
