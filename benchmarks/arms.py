"""What is timed: functions that do a fixed amount of work each time they are called, and give its rate.

Of training the steps after the second are timed, to the end of the last: what an epoch costs once is a thousandth of
one, and much of the few steps here; and what another arm has left behind does not count.
"""

import io
import math
import multiprocessing
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measuring import rate
from benchmarks.plain import CLASSES, build_plain, compile_plain
from helpers.data.dataset import Split
from helpers.training.backend import load_keras
from helpers.training.batches import make_batches, make_feed
from helpers.training.loop import train
from helpers.training.model import build_vgg16, set_weights
from helpers.training.recipe import Recipe, choose_precision

GEMM_SIZES = (1024, 2048)
WARM = 2  # steps
CONVOLUTIONS = ((32, 64), (16, 128), (8, 256), (4, 512))  # side, and channels in and out


def time_steps(epoch: Callable, most: float = math.inf) -> float:
    """Steps a second of what `epoch` trains with a callback: those after `WARM`, and no more than `most`."""
    ends = []

    def note(step, logs):
        float(logs["loss"])  # waits for the step
        ends.append(time.perf_counter())
        clock.model.stop_training = len(ends) == WARM + most

    clock = load_keras().callbacks.LambdaCallback(on_train_batch_end=note)
    epoch(clock)
    return (len(ends) - WARM) / (ends[-1] - ends[WARM - 1])


def plain_arm(config, weights, batches: Split, batch_size: int, jit_compile: bool):
    """A function that trains the plain network for one epoch of `batches`, `WARM` and more, and gives images/s."""
    network, targets = build_plain(**config), np.eye(CLASSES, dtype=np.float32)[batches.labels]
    set_weights(network, weights)
    compile_plain(network, Recipe(), 10_000, jit_compile)

    def epoch(clock):
        network.fit(batches.images, targets, batch_size=batch_size, verbose=0, callbacks=[clock])

    return lambda: batch_size * time_steps(epoch)


def our_arms(config, weights, batches: Split, batch_size: int) -> dict:
    """Functions that give images/s: an epoch as `train` runs it, and its step alone on one batch in memory.

    Args:
        batches: `WARM` and more.
    """
    import tensorflow as tf
    from tqdm import tqdm

    keras, recipe = load_keras(), Recipe(batch_size=batch_size)
    network = build_vgg16(**config, dtype=choose_precision())
    set_weights(network, weights)
    train(network, batches, batches.take(slice(250)), recipe, progress=False)  # leaves the network compiled
    feed = make_feed(network, batches.images, recipe.resolution(0))
    images, labels = (tf.constant(part[:batch_size]) for part in (batches.images, batches.labels))
    steps = len(batches) // batch_size - WARM

    def epoch(clock):
        bar = tqdm(total=steps, file=io.StringIO())
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: bar.update())
        feed.fit(make_batches(batches, recipe, 0), shuffle=False, verbose=0, callbacks=[callback, clock])
        bar.close()

    @tf.function(jit_compile=False)
    def step(images, labels):
        with tf.GradientTape() as tape:
            loss = network.compute_loss(images, labels, network(images, training=True))
        weights = network.trainable_variables
        network.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        return loss

    def bare(steps):
        float([step(images, labels) for _ in range(steps)][-1])

    return {
        "ours": lambda: batch_size * time_steps(epoch),
        "ours, bare step": lambda: bare(WARM) or rate(steps * batch_size, lambda: bare(steps)),
    }


def limit_arms(batch_size: int) -> dict:
    """Functions that give GFLOP/s: products of square matrices, and 3x3 convolutions of VGG16's shapes."""
    import tensorflow as tf

    def arm(operation, shapes, dtype, flop):
        inputs = [tf.cast(tf.random.stateless_normal(shape, (0, 1)), dtype) for shape in shapes]
        compiled = tf.function(operation, jit_compile=False).get_concrete_function(*inputs)
        compiled(*inputs)

        def three():
            for _ in range(3):
                compiled(*inputs)
            tf.test.experimental.sync_devices()

        return lambda: rate(3 * flop / 1e9, three)

    arms = {}
    for dtype in ("float32", "bfloat16"):
        for size in GEMM_SIZES:
            arms[f"GEMM {size} {dtype}"] = arm(tf.matmul, [(size, size)] * 2, dtype, 2 * size**3)
        for side, channels in CONVOLUTIONS:
            shapes, flop = [(batch_size, side, side, channels), (3, 3, channels, channels)], 18 * side**2 * channels**2
            arms[f"convolution {side} px {dtype}"] = arm(
                lambda x, kernel: tf.nn.conv2d(x, kernel, 1, "SAME"), shapes, dtype, flop * batch_size
            )
    return arms


def start_xla_arm(limit: float, *arguments):
    """`plain_arm` with XLA in a process of its own, which alone can be stopped; None, and why, past `limit` seconds."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_xla, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()  # it is built
        if not here.poll(limit):
            process.kill()
            return None, f"no first step within {limit:g} s"
        seconds = here.recv()
    except EOFError:
        return None, "failed"
    return lambda: here.send("go") or here.recv(), f"compiled in {seconds:.0f} s"


def _serve_xla(pipe, config, weights, batches, batch_size):
    arm = plain_arm(config, weights, batches, batch_size, jit_compile=True)
    pipe.send("built")
    started = time.perf_counter()
    arm()
    pipe.send(time.perf_counter() - started)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(arm())
