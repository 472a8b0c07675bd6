"""Trains a network by a recipe: one-cycle schedule, a checkpoint after every epoch, and resume."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from helpers.data.dataset import Split
from helpers.training.averaging import SETTLING_IMAGES, averaged, optimizer_class, use_average
from helpers.training.backend import has_gpu, load_keras
from helpers.training.batches import count_steps, make_batches, make_feed
from helpers.training.checkpoint import checkpoint_path, latest_checkpoint, save_checkpoint
from helpers.training.recipe import Recipe


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a number; the message says since when, and names the checkpoint of the epoch before."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch came to; loss and accuracies 0 to 1 are of the augmented training and the validation images."""

    epoch: int
    resolution: int
    loss: float
    accuracy: float
    validation_accuracy: float
    images_per_second: float
    seconds: float

    def __str__(self):
        return (
            f"epoch {self.epoch} at {self.resolution} px: loss {self.loss:.3f}, training {self.accuracy:.1%}, "
            f"validation {self.validation_accuracy:.1%}, {self.images_per_second:.0f} images/s, {self.seconds:.0f} s"
        )


def train(
    model,
    training: Split,
    validation: Split,
    recipe: Recipe,
    *,
    checkpoints: Path | None = None,
    context: dict | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    progress: bool = True,
) -> list[EpochResult]:
    """Trains `model` (from `training.model.build_vgg16`) in place.

    Args:
        training, validation: images and labels; validation is taken at 32 pixels after every epoch.
        checkpoints: folder for a checkpoint after every epoch. If it holds one of the same recipe and context, training
            goes on from there.
        context: what else must be the same for that, such as the data and the start point; JSON values.
        on_epoch: called with the result of each epoch; `model` then holds its weights, not yet their average.
        progress: whether to show a bar for each epoch; headless, it would be left in the notebook as it began.

    Returns:
        One result for each epoch trained, those before a resume included.

    Raises:
        TrainingDiverged: at the first step whose loss is no longer a number.
    """
    keras = load_keras()

    keras.utils.set_random_seed(recipe.seed)
    compile_model(model, recipe, steps=recipe.epochs * count_steps(training, recipe))
    results, first, identity = [], 0, {**asdict(recipe), **(context or {})}
    if checkpoints and (found := latest_checkpoint(checkpoints, model, identity)):
        results = [EpochResult(**result) for result in found]
        first = len(results)
    settling = training.images[np.random.default_rng(recipe.seed).permutation(len(training))[:SETTLING_IMAGES]]
    feed = None
    for epoch in range(first, recipe.epochs):
        started, side = time.perf_counter(), recipe.resolution(epoch)
        if feed is None or feed.side != side:
            feed = make_feed(model, training.images, side)
        batches = make_batches(training, recipe, epoch)
        callbacks = [_stop_at_nan(), *[_progress_bar(epoch, recipe, len(training))] * progress]
        # Shuffled already, by seed and epoch; Keras would shuffle the batches again, otherwise after a resume.
        history = feed.fit(batches, shuffle=False, verbose=0, callbacks=callbacks).history
        seconds = time.perf_counter() - started
        good = checkpoint_path(checkpoints, epoch) if checkpoints and epoch else None
        if not math.isfinite(history["loss"][0]):
            step = f"step {callbacks[0].steps} of {len(batches)}"
            raise _diverged(f"loss became {history['loss'][0]} in {step} of epoch {epoch + 1}", recipe, good)
        with averaged(model, settling) if recipe.average else nullcontext():
            logits = predict_logits(model, validation.images)
        if not np.isfinite(logits).all():  # the epoch's last step did it, whose loss was still that before it
            raise _diverged(f"logits became {logits[~np.isfinite(logits)][0]} after epoch {epoch + 1}", recipe, good)
        accuracy = float(np.mean(logits.argmax(1) == validation.labels))
        results.append(
            EpochResult(
                epoch=epoch + 1,
                resolution=side,
                loss=history["loss"][0],
                accuracy=history["accuracy"][0],
                validation_accuracy=accuracy,
                images_per_second=len(training) / seconds,
                seconds=time.perf_counter() - started,
            )
        )
        if checkpoints:
            save_checkpoint(checkpoints, model, identity, [asdict(result) for result in results])
        if on_epoch:
            on_epoch(results[-1])
    if recipe.average:
        use_average(model, settling)
    return results


def predict_logits(model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """Logits, float32 (n, classes), of `images`, uint8 (n, 32, 32, 3)."""
    return model.predict(images, batch_size=batch_size, verbose=0)


def compile_model(model, recipe: Recipe, steps: int) -> None:
    """Compiles `model` with the optimizer, the schedule over `steps` steps, and the loss of `recipe`."""
    keras = load_keras()

    warmup_steps = round(recipe.warmup * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else recipe.learning_rate,
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=recipe.learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    optimizer = optimizer_class(recipe.average)(
        schedule, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=recipe.weight_decay or None
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    classes = model.output_shape[-1]

    def loss(targets, logits):
        """Of labels (n,) or (n, 1), or of targets (n, classes)."""
        if len(targets.shape) < 2 or targets.shape[-1] != classes:
            targets = keras.ops.one_hot(keras.ops.reshape(keras.ops.cast(targets, "int32"), (-1,)), classes)
        return keras.losses.categorical_crossentropy(
            targets, logits, from_logits=True, label_smoothing=recipe.label_smoothing
        )

    # XLA's convolutions are several times slower than oneDNN's on a processor; JAX has no others.
    compiled = has_gpu() or keras.backend.backend() == "jax"
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile="auto" if compiled else False)


def _diverged(what, recipe, checkpoint):
    advice = f"lower learning_rate (now {recipe.learning_rate}) and start again"
    last = f"; the last good checkpoint is {checkpoint}" if checkpoint else ""
    return TrainingDiverged(f"{what} of {recipe.epochs}; {advice}{last}")


def _stop_at_nan():
    keras = load_keras()

    class StopAtNan(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.steps = batch + 1
            if not math.isfinite(logs["loss"]):  # the mean since the epoch began, which stays NaN
                self.model.stop_training = True

    return StopAtNan()


def _progress_bar(epoch, recipe, images):
    keras = load_keras()
    from tqdm.auto import tqdm

    class Bar(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.bar = tqdm(total=images, desc=f"epoch {epoch + 1}/{recipe.epochs}", unit=" images", leave=False)

        def on_train_batch_end(self, batch, logs=None):
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.1%}", refresh=False)
            done = images if batch + 1 == self.params["steps"] else (batch + 1) * recipe.batch_size
            self.bar.update(done - self.bar.n)

        def on_train_end(self, logs=None):
            self.bar.close()

    return Bar()
