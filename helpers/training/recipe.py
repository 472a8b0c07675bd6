"""How to train: parameters, checked when they are given, long before training."""

import math
from dataclasses import dataclass
from pathlib import Path

from helpers.training.backend import has_gpu

MIN_RESOLUTION, MAX_RESOLUTION = 16, 32
POLICIES = ("none", "trivial")


class RecipeError(ValueError):
    """A training parameter that cannot work; the message names it, its rule and its value."""


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
        policy: "trivial" for one more random operation an image (`training.changes.OPERATIONS`), or "none".
        cutout: side in pixels of the square erased from each image at 32 pixels, and less at fewer; 0 to 32, 0 is off.
        mixup, cutmix: how strongly batches are mixed (`training.changes.draw_changes`), each for half of the batches;
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


def choose_precision(precision: str = "auto") -> str:
    """Keras' dtype policy: `precision` itself, or by "auto" mixed_bfloat16 where the processor computes in it."""
    if precision not in ("auto", "float32", "mixed_bfloat16"):
        raise RecipeError(f"precision must be auto, float32 or mixed_bfloat16, got {precision!r}")
    if precision != "auto":
        return precision
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    return "mixed_bfloat16" if has_gpu() or "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
