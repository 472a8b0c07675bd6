"""Puts another model in the place of the one that answers: loaded, checked and compared beside it, one at a time."""

import ctypes
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from helpers.inference.loader import LoadedModel, ModelRejected
from helpers.inference.predictor import Predictor

log = logging.getLogger(__name__)


class ChangeUnderWay(RuntimeError):
    """Another change of the model has begun and not ended."""


class NoModelBefore(LookupError):
    """A way back where no model served before."""


@dataclass(frozen=True)
class Replay:
    """What two models answer to the same images.

    Attributes:
        images: how many.
        flips: how many went from one class to another: (before, now, count), most first.
        milliseconds_before, milliseconds_now: an image, in batches.
    """

    images: int
    flips: tuple[tuple[str, str, int], ...]
    milliseconds_before: float
    milliseconds_now: float


@dataclass(frozen=True)
class Swap:
    """A change that was made: the versions, where the new one came from, and the replay if one was asked for."""

    old: str
    new: str
    model_dir: str
    replay: Replay | None


class Swapper:
    """Changes the model of `predictor`.

    Args:
        load: gives the checked model for a model_dir.
        model_dir: where the model of `predictor` came from.
    """

    def __init__(self, predictor: Predictor, load: Callable[[str], LoadedModel], model_dir: str) -> None:
        self.predictor, self.load = predictor, load
        self._places = [(predictor.model, model_dir)]  # of the model that answers and the one before
        self._one_at_a_time = threading.Lock()

    @property
    def model_dir(self) -> str:
        """Where the model that answers came from."""
        model, places = self.predictor.model, self._places
        return next((place for known, place in places if known is model), places[-1][1])

    def change(self, model_dir: str, replay: int = 0) -> Swap:
        """Loads the model of `model_dir` and puts it in place; if it cannot be loaded, nothing changes.

        Args:
            replay: images, the last that were answered, to compare both models on before.

        Raises:
            ChangeUnderWay: if another change is under way.
            What `load` raises.
        """
        with self._alone():
            new = self.load(model_dir)
            replayed = self._replay(self.predictor.model, new, replay)  # before it serves: it may fail on these
            self._places = [*self._places, (new, model_dir)]
            old, kept = self.predictor.swap(new), (self.predictor.model, self.predictor.previous)
            self._places = [place for place in self._places if any(place[0] is model for model in kept)]
            return self._report(old, new, model_dir, replayed)

    def roll_back(self, replay: int = 0) -> Swap:
        """Puts the model before in place again, which is still in memory. Arguments and errors as `change`.

        Raises:
            NoModelBefore: if there is none.
        """
        with self._alone():
            old = self.predictor.roll_back()
            if old is None:
                raise NoModelBefore("no model served before this one; name the one you want")
            try:
                replayed = self._replay(old, self.predictor.model, replay)
            except ModelRejected as error:  # that may be why it goes
                log.warning("version %s cannot be compared with the one before: %s", old.version, error)
                replayed = None
            return self._report(old, self.predictor.model, self.model_dir, replayed)

    def _report(self, old, new, model_dir, replayed):
        log.info("version %s of %s serves in place of %s", new.version, model_dir, old.version)
        return Swap(old.version, new.version, model_dir, replayed)

    def _replay(self, old, new, count):
        images = self.predictor.recent(count) if count else ()
        return compare(old, new, images) if len(images) else None

    @contextmanager
    def _alone(self):
        if not self._one_at_a_time.acquire(blocking=False):
            raise ChangeUnderWay("another change of the model is under way; try again when it is done")
        try:
            yield
        finally:
            _give_memory_back()
            self._one_at_a_time.release()


def _give_memory_back():
    """Lets glibc return what models that are gone have left in its arenas, which it would keep."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def compare(old: LoadedModel, new: LoadedModel, images: np.ndarray) -> Replay:
    """The answers of both models to uint8 (n, 32, 32, 3) `images`, n at least 1."""
    answers, milliseconds = [], []
    for model in (old, new):
        started = time.perf_counter()
        indices = model.predict(images).probabilities.argmax(axis=1)
        milliseconds.append((time.perf_counter() - started) * 1000 / len(images))
        answers.append([model.labels.fine[index] for index in indices])
    flips = Counter((before, now) for before, now in zip(*answers, strict=True) if before != now)
    return Replay(len(images), tuple((*pair, count) for pair, count in flips.most_common()), *milliseconds)
