"""Trains a network: a checked recipe, augmentation, one-cycle schedule, a checkpoint after every epoch, and resume."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from helpers.augmentation import augment_images, cut_out, mix_images, resize_images, vary_images
from helpers.backend import has_gpu, load_keras
from helpers.checkpoint import checkpoint_path, latest_checkpoint, save_checkpoint
from helpers.dataset import Split

MIN_RESOLUTION, MAX_RESOLUTION = 16, 32
POLICIES = ("none", "trivial")
SETTLING_IMAGES = 4096  # give each mean of a batch normalisation to 1/64 of a standard deviation


class RecipeError(ValueError):
    """A training parameter that cannot work; the message names it, its rule and its value."""


class TrainingDiverged(ArithmeticError):
    """The loss is no longer a number; the message says since when, and names the checkpoint of the epoch before."""


@dataclass(frozen=True)
class Recipe:
    """How to train. Checked when made.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images a step, at least 2.
        learning_rate: peak of the one-cycle schedule (Smith & Topin 2018): up over the first `warmup` share of all
            steps, then down to 0 along a cosine. Above 0.
        momentum: of stochastic gradient descent with Nesterov's form, 0 to below 1.
        weight_decay: share of each kernel taken off per step and unit of learning rate (Loshchilov & Hutter 2019).
        label_smoothing: 0 to below 1 (Szegedy et al. 2016).
        augment: random flips, and shifts by up to an eighth of the image.
        policy: "trivial" for one more random operation an image (`helpers.augmentation.vary_images`), or "none".
        cutout: side in pixels of the square erased from each image at 32 pixels, and less at fewer; 0 to 32, 0 is off.
        mixup, cutmix: how strongly batches are mixed (`helpers.augmentation.mix_images`), each for half of the batches;
            0 to 100, 0 is off.
        average: decay a step of a moving average of the weights, 0 to below 1; 0 is off. Where it is on, validation
            takes the average and the trained network holds it, with batch statistics estimated for it.
        resolutions: image sides in pixels, one a phase of equal length, such as "16 24 32"; the last must be 32,
            and there must be an epoch for each.
        warmup: share of all steps, 0 to below 1.
        seed: of order and augmentation. Initial weights and dropout are seeded where the model is built.
    """

    epochs: int = 1
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 0.005
    label_smoothing: float = 0.1
    augment: bool = True
    policy: str = "none"
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    average: float = 0.0
    resolutions: str = "32"
    warmup: float = 0.2
    seed: int = 0

    def __post_init__(self):
        for name, holds, rule in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("momentum", 0 <= self.momentum < 1, "from 0 to below 1"),
            ("weight_decay", 0 <= self.weight_decay < 1, "from 0 to below 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1"),
            ("policy", self.policy in POLICIES, " or ".join(POLICIES)),
            ("cutout", 0 <= self.cutout <= 32, "from 0 to 32"),
            ("mixup", 0 <= self.mixup <= 100, "from 0 to 100"),
            ("cutmix", 0 <= self.cutmix <= 100, "from 0 to 100"),
            ("average", 0 <= self.average < 1, "from 0 to below 1"),
            ("warmup", 0 <= self.warmup < 1, "from 0 to below 1"),
            ("seed", 0 <= self.seed < 2**32, "from 0 to 4294967295"),
        ):
            if not holds:
                raise RecipeError(f"{name} must be {rule}, got {getattr(self, name)}")
        sides = self.resolutions.split()
        if not sides or not all(side.isdigit() and MIN_RESOLUTION <= int(side) <= MAX_RESOLUTION for side in sides):
            raise RecipeError(f"resolutions must be sides from 16 to 32, such as '16 24 32', got {self.resolutions!r}")
        if int(sides[-1]) != MAX_RESOLUTION:
            raise RecipeError(f"resolutions must end with 32, what is served, got {self.resolutions!r}")
        if len(sides) > self.epochs:
            raise RecipeError(
                f"resolutions must be at most as many as epochs ({self.epochs}), got {self.resolutions!r}"
            )

    def resolution(self, epoch: int) -> int:
        """Image side in pixels of `epoch`, counted from 0."""
        sides = [int(side) for side in self.resolutions.split()]
        return sides[epoch * len(sides) // self.epochs]


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


def choose_precision(precision: str = "auto") -> str:
    """Keras' dtype policy: `precision` itself, or by "auto" mixed_bfloat16 where the processor computes in it."""
    if precision not in ("auto", "float32", "mixed_bfloat16"):
        raise RecipeError(f"precision must be auto, float32 or mixed_bfloat16, got {precision!r}")
    if precision != "auto":
        return precision
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return "mixed_bfloat16" if has_gpu() or "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


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
    """Trains `model` (from `helpers.model.build_vgg16`) in place.

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
    _compile(model, recipe, steps=recipe.epochs * _count_steps(training, recipe))
    results, first, identity = [], 0, {**asdict(recipe), **(context or {})}
    if checkpoints and (found := latest_checkpoint(checkpoints, model, identity)):
        results = [EpochResult(**result) for result in found]
        first = len(results)
    settling = training.images[np.random.default_rng(recipe.seed).permutation(len(training))[:SETTLING_IMAGES]]
    for epoch in range(first, recipe.epochs):
        started, side = time.perf_counter(), recipe.resolution(epoch)
        batches = make_batches(training, recipe, epoch, model.output_shape[-1])
        callbacks = [_stop_at_nan(), *[_progress_bar(epoch, recipe, len(training))] * progress]
        # Shuffled already, by seed and epoch; Keras would shuffle the batches again, otherwise after a resume.
        history = model.fit(batches, shuffle=False, verbose=0, callbacks=callbacks).history
        seconds = time.perf_counter() - started
        good = checkpoint_path(checkpoints, epoch) if checkpoints and epoch else None
        if not math.isfinite(history["loss"][0]):
            step = f"step {callbacks[0].steps} of {len(batches)}"
            raise _diverged(f"loss became {history['loss'][0]} in {step} of epoch {epoch + 1}", recipe, good)
        predict = partial(_predict_with_average, settling=settling) if recipe.average else predict_logits
        logits = predict(model, validation.images)
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
        _use_average(model, settling)
    return results


def predict_logits(model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """Logits, float32 (n, classes), of `images`, uint8 (n, 32, 32, 3)."""
    return model.predict(images, batch_size=batch_size, verbose=0)


def make_batches(split: Split, recipe: Recipe, epoch: int, classes: int = 100):
    """A Keras dataset of one epoch's batches, shuffled and augmented; the same for the same seed and epoch.

    Where the recipe mixes images, the batches hold targets, float32 (n, `classes`), and labels otherwise.
    """
    keras = load_keras()

    side, size = recipe.resolution(epoch), recipe.batch_size
    images = resize_images(split.images, side)
    order = np.random.default_rng((recipe.seed, epoch)).permutation(len(split))
    steps = _count_steps(split, recipe)

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


def _count_steps(split, recipe):
    """Steps an epoch; a single image left over goes into the batch before, since one alone has no batch statistics."""
    return max(1, math.ceil((len(split) - 1) / recipe.batch_size))


def _compile(model, recipe, steps):
    keras = load_keras()

    warmup_steps = round(recipe.warmup * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else recipe.learning_rate,
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=recipe.learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    optimizer = _optimizer_class(recipe.average)(
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

    # XLA's convolutions are several times slower than oneDNN's on a processor.
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile="auto" if has_gpu() else False)


def _optimizer_class(average):
    keras = load_keras()
    ops = keras.ops

    class AveragingSGD(keras.optimizers.SGD):
        """Keeps a moving average of each weight in `averages`.

        Not by Keras' own `use_ema`, which puts the average in the place of the weights after each `fit`, and which
        holds on to the first weights for long. Here the average of `n` steps spans at most the last tenth or so.
        """

        def build(self, variables):
            if not self.built:
                super().build(variables)
                self.averaged = list(variables)
                self.averages = [self.add_variable_from_reference(variable, "average") for variable in variables]

        def apply(self, grads, trainable_variables=None):
            super().apply(grads, trainable_variables)
            step = ops.cast(self.iterations, "float32")  # 1 after the first
            decay = ops.minimum(average, (step - 1) / (step + 9))
            for weight, mean in zip(self.averaged, self.averages, strict=True):
                mean.assign(decay * mean + (1 - decay) * weight)

    return AveragingSGD if average else keras.optimizers.SGD


def _predict_with_average(model, images, settling):
    """`predict_logits` of the average; leaves `model` as it was."""
    state = [np.asarray(variable).copy() for variable in model.variables]
    _use_average(model, settling)
    logits = predict_logits(model, images)
    for variable, value in zip(model.variables, state, strict=True):
        variable.assign(value)
    return logits


def _use_average(model, images):
    """Puts the average in the place of the weights, and estimates its batch statistics anew from `images`.

    Those of the weights do not fit it (Izmailov et al. 2018): noise that averaging takes off had its share in them.
    """
    keras = load_keras()

    for weight, mean in zip(model.trainable_variables, model.optimizer.averages, strict=True):
        weight.assign(mean)
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in layers]
    for count, batch in enumerate(np.array_split(images, math.ceil(len(images) / 256))):
        for layer in layers:
            layer.momentum = count / (count + 1)  # makes the moving average a plain mean
        model(batch.astype(np.float32), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


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
