"""From a bundle to a model that may serve: verified, compiled, warm, and replaying its golden images."""

import time
import traceback
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from helpers.data.labels import Labels
from helpers.delivery.bundle import Bundle, read_bundle
from helpers.inference.engine import KerasEngine, ModelRejected, OpenVinoEngine, Scores, open_engine, run_batches

IMAGE_SHAPE = (32, 32, 3)
BATCH_S, MAX_BATCH = 0.05, 32  # more images at once are no faster an image
GOLDEN_TOLERANCE = 0.05  # in probability; bf16 stays within 0.01, 8 bits within 0.02


@dataclass(frozen=True)
class LoadedModel:
    """A network that is compiled, warm, and gives its golden images the probabilities they had in training.

    Attributes:
        batch_size: images that a batch may hold to be done in 50 ms if it has the engine for itself, as measured when
            it was loaded; 1 to 32.
    """

    bundle: Bundle
    engine: OpenVinoEngine | KerasEngine
    batch_size: int = MAX_BATCH

    @property
    def version(self) -> str:
        return self.bundle.version

    @property
    def labels(self) -> Labels:
        return self.bundle.labels

    @property
    def engine_name(self) -> str:
        return self.engine.name

    @property
    def precision(self) -> str:
        """What the engine computes in, read from the compiled network."""
        return self.engine.precision

    @property
    def threads(self) -> int:
        return self.engine.threads

    def predict(self, images: np.ndarray, *, shared: bool = False) -> Scores:
        """Scores of uint8 (n, 32, 32, 3) RGB images, n at least 1, of any length.

        Args:
            shared: see `OpenVinoEngine.run`.

        Raises:
            ValueError: if `images` has another shape or dtype.
            ModelRejected: if the answer has the wrong shape or holds NaN or infinity.
        """
        if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
            raise ValueError(
                f"images must be uint8 (n, 32, 32, 3) with n at least 1, got {images.dtype} {images.shape}"
            )
        scores = run_batches(self.engine, images, shared=shared)
        expected = (len(images), len(self.labels.fine))
        for name, array in vars(scores).items():
            if name != "features" and array.shape != expected:
                raise ModelRejected(f"{name} must have shape {expected} for {expected[1]} labels, got {array.shape}")
            if not np.isfinite(array).all():
                raise ModelRejected(
                    f"{name} must be finite; {np.count_nonzero(~np.isfinite(array))} of {array.size} are not"
                )
        return scores


def load_model(path: Path, *, engine: str = "auto", threads: int | None = None) -> LoadedModel:
    """The bundle at `path`: verified, compiled, warm, and checked against its golden images.

    Args:
        engine: see `inference.engine.open_engine`.
        threads: of the engine; None is what the container's CPU quota allows.

    Raises:
        BundleError: if the bundle is not whole.
        ModelRejected: if its network does not compile, or answers otherwise than it did in training.
        ValueError: if `engine` is unknown or cannot run here.
    """
    try:
        return _load(path, engine, threads)
    except Exception as error:
        # Whoever waits for a thread keeps its error in a circle, and the error what was compiled, a hundred megabytes.
        for cause in (error, error.__context__):
            traceback.clear_frames(cause and cause.__traceback__)
        raise


def _load(path, engine, threads):
    bundle = read_bundle(path)
    model = LoadedModel(bundle, open_engine(bundle, engine, threads))
    try:
        images, expected = bundle.golden()
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ModelRejected("golden.npz does not hold the arrays images and probabilities; export it again") from error
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE or not 0 < len(images) == len(expected):
        raise ModelRejected(
            f"golden images must be uint8 (n, 32, 32, 3) with n answers, got {images.dtype} {images.shape}"
        )
    for count in (1, len(images)):  # the first also readies the engine for single images
        got = model.predict(images[:count]).probabilities
        if expected.shape[1:] != got.shape[1:]:
            raise ModelRejected(f"golden probabilities must be {got.shape[1:]} an image, got {expected.shape[1:]}")
        if not (distance := float(np.abs(got - expected[:count]).max())) <= GOLDEN_TOLERANCE:
            raise ModelRejected(
                f"golden images must get their recorded probabilities within {GOLDEN_TOLERANCE}; off by {distance:.3g}"
            )
    return replace(model, batch_size=_measure_batch_size(model))


def _measure_batch_size(model):
    images, seconds = np.zeros((16, *IMAGE_SHAPE), np.uint8), []
    for _ in range(3):  # the first readies the engine for this size
        started = time.perf_counter()
        model.predict(images)
        seconds.append(time.perf_counter() - started)
    return int(np.clip(BATCH_S * len(images) / min(seconds), 1, MAX_BATCH))
