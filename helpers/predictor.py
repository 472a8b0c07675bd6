"""Answers single images: one thread gathers the requests that wait into batches."""

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from helpers.loader import IMAGE_SHAPE, LoadedModel, ModelRejected, Scores, load_model

__all__ = [
    "DeadlineExceeded",
    "LoadedModel",
    "ModelRejected",
    "Prediction",
    "Predictor",
    "PredictorClosed",
    "QueueFull",
    "Scores",
    "load_model",
]

log = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """As many requests wait as may; the caller should come back later."""


class DeadlineExceeded(RuntimeError):
    """A request that waited longer than it may."""


class PredictorClosed(RuntimeError):
    """A request after `Predictor.close`."""


@dataclass(frozen=True)
class Prediction:
    """One answer, with the version that gave it.

    Attributes:
        probabilities: float32 (classes,).
        class_names: of that version, in index order.
        seconds: in the queue and in the engine.
    """

    class_index: int
    class_name: str
    probabilities: np.ndarray
    class_names: tuple[str, ...]
    version: str
    seconds: float


@dataclass(frozen=True)
class _Job:
    image: np.ndarray
    future: Future
    arrived: float


class Predictor:
    """Answers single images from many threads by one engine, in batches of whatever waits when the engine is ready.

    It never waits for a batch to fill: an idle engine takes a lone request at once, a busy one finds the next batch
    already there.

    Args:
        model: serves until `swap`.
        queue_size: requests that may wait; past it `submit` raises QueueFull.
        max_batch: images a batch.
        deadline_s: seconds a request may wait for the engine; past it its future raises DeadlineExceeded.
    """

    def __init__(
        self, model: LoadedModel, *, queue_size: int = 256, max_batch: int = 32, deadline_s: float = 5.0
    ) -> None:
        for name, value in (("queue_size", queue_size), ("max_batch", max_batch), ("deadline_s", deadline_s)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.queue_size, self.max_batch, self.deadline_s = queue_size, max_batch, deadline_s
        self._model = model
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._worker.start()

    @property
    def model(self) -> LoadedModel:
        """The model that the next batch will run on."""
        return self._model

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._jobs)

    @property
    def closed(self) -> bool:
        return self._closed

    def submit(self, image: np.ndarray) -> "Future[Prediction]":
        """Queues one uint8 (32, 32, 3) RGB image; cancelling the future before its batch starts takes it out.

        Raises:
            QueueFull, PredictorClosed: if it cannot be queued.
        """
        if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 (32, 32, 3), got {image.dtype} {image.shape}")
        job = _Job(image, Future(), time.monotonic())
        with self._changed:
            if self._closed:
                raise PredictorClosed("the predictor is closed; make a new one")
            if len(self._jobs) >= self.queue_size:
                raise QueueFull(f"{self.queue_size} requests are waiting already; try again in a second")
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def swap(self, model: LoadedModel) -> LoadedModel:
        """From the next batch on, `model` answers; returns the model it replaces."""
        with self._changed:
            old, self._model = self._model, model
        return old

    def close(self, timeout: float | None = None) -> None:
        """Refuses new requests, answers those that wait, and ends the thread; a second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._worker.join(timeout)

    def _work(self):
        while jobs := self._take():
            if live := [job for job in jobs if self._is_live(job)]:
                self._answer(live)

    def _take(self):
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            return [self._jobs.popleft() for _ in range(min(self.max_batch, len(self._jobs)))]

    def _is_live(self, job):
        if not job.future.set_running_or_notify_cancel():
            return False
        if (waited := time.monotonic() - job.arrived) > self.deadline_s:
            job.future.set_exception(
                DeadlineExceeded(f"waited {waited:.1f} s, {self.deadline_s:g} s are allowed; try again")
            )
            return False
        return True

    def _answer(self, jobs):
        model = self._model  # read once: a swap must not split a batch
        try:
            probabilities = model.predict(np.stack([job.image for job in jobs])).probabilities
        except Exception as error:
            log.exception("a batch of %d images failed on version %s", len(jobs), model.version)
            for job in jobs:
                job.future.set_exception(error)
            return
        names, now = model.labels.fine, time.monotonic()
        for job, row in zip(jobs, probabilities, strict=True):
            best = int(row.argmax())
            job.future.set_result(Prediction(best, names[best], row, names, model.version, now - job.arrived))
