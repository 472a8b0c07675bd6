"""Answers single images, in batches of whatever waits, by a model that may be swapped meanwhile."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from helpers.inference.batcher import Batcher
from helpers.inference.engine import ModelRejected
from helpers.inference.job import Job
from helpers.inference.listener import Batch, Listeners
from helpers.inference.loader import IMAGE_SHAPE, LoadedModel
from helpers.inference.prediction import Prediction

WORKERS = 3  # one has the engine, one comes next, and one tells the answers
RECENT = 256  # images kept for a replay, 3 kB each

log = logging.getLogger(__name__)


class Predictor:
    """Answers images from many threads by one engine, in batches of whatever waits when the engine is ready.

    Which requests are a batch says `inference.batcher`. A model that fails while it serves is replaced by the one
    before it, and its batch answered by that.

    Args:
        model: serves until `swap`.
        queue_size: where as many images wait `submit` raises QueueFull; a request of several may go past it.
        max_batch: images a batch; fewer where `model.batch_size` says so. A request of more is a batch of its own.
        deadline_s: seconds a request may wait for a place in a batch; past it its future raises DeadlineExceeded.

    Attributes:
        listeners: told of every batch.
    """

    def __init__(
        self, model: LoadedModel, *, queue_size: int = 256, max_batch: int = 64, deadline_s: float = 5.0
    ) -> None:
        for name, value in (("queue_size", queue_size), ("max_batch", max_batch), ("deadline_s", deadline_s)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.queue_size, self.max_batch, self.deadline_s = queue_size, max_batch, deadline_s
        self.listeners = Listeners()
        self._model, self._previous, self._swapping = model, None, threading.Lock()
        self._batcher = Batcher(queue_size, self._capacity)
        self._recent: deque[np.ndarray] = deque(maxlen=RECENT)
        self._free_at = 0.0  # when the engine was done with a batch last
        self._workers = [threading.Thread(target=self._work, name="predictor", daemon=True) for _ in range(WORKERS)]
        for worker in self._workers:
            worker.start()

    @property
    def model(self) -> LoadedModel:
        """The model that the next batch will run on."""
        return self._model

    @property
    def previous(self) -> LoadedModel | None:
        """The model that served before, while there is a way back to it."""
        return self._previous

    @property
    def waiting(self) -> int:
        """Images that no batch has taken yet."""
        return self._batcher.waiting

    @property
    def closed(self) -> bool:
        return self._batcher.closed

    def recent(self, count: int = RECENT) -> np.ndarray:
        """The last images that were answered, uint8 (n, 32, 32, 3), at most `count`, oldest first."""
        images = list(self._recent)[-count:]
        return np.stack(images) if images else np.empty((0, *IMAGE_SHAPE), np.uint8)

    def submit(self, image: np.ndarray, future: "Future[Prediction] | None" = None) -> "Future[Prediction]":
        """Queues one uint8 (32, 32, 3) RGB image; cancelling the future before its batch starts takes it out.

        Args:
            future: a pending one that shall hold the answer; else a new one.

        Raises:
            QueueFull, PredictorClosed: if it cannot be queued.
        """
        if image.shape != IMAGE_SHAPE or image.dtype != np.uint8:
            raise ValueError(f"image must be uint8 (32, 32, 3), got {image.dtype} {image.shape}")
        return self._queue(Job(image[None], future or Future(), single=True))

    def submit_encoded(self, decode: Callable[[], np.ndarray | None], future: "Future[Prediction]") -> bool:
        """As `submit`, for an image that the predictor shall decode itself, but only if the engine has nothing to do.

        Then a thread less comes between. Where there is something to do, decoding belongs beside it.

        Args:
            decode: gives uint8 (1, 32, 32, 3) within a few milliseconds, or None if it sees to `future` in another way;
                what it raises becomes the future's.

        Returns:
            whether it was taken.
        """
        if not self._batcher.idle:
            return False
        self._queue(Job(None, future, single=True, decode=decode))
        return True

    def submit_many(
        self, images: np.ndarray, future: "Future[list[Prediction]] | None" = None
    ) -> "Future[list[Prediction]]":
        """As `submit`, for uint8 (n, 32, 32, 3) images that one version answers together."""
        if images.shape[1:] != IMAGE_SHAPE or images.dtype != np.uint8 or not len(images):
            raise ValueError(
                f"images must be uint8 (n, 32, 32, 3) with n at least 1, got {images.dtype} {images.shape}"
            )
        return self._queue(Job(images, future or Future(), single=False))

    def check_room(self, coming: int = 0) -> None:
        """Raises what `submit` would, if `coming` images were queued before, without queueing any."""
        self._batcher.check_room(coming)

    def swap(self, model: LoadedModel) -> LoadedModel:
        """From the next batch on, `model` answers; returns the model it replaces, to which `roll_back` leads."""
        with self._swapping:
            old, self._model = self._model, model
            if model.version != old.version:  # loaded again, it is no way back
                self._previous = old
        return old

    def roll_back(self) -> LoadedModel | None:
        """From the next batch on, the model before answers again; returns the one it replaces, None if none is left."""
        with self._swapping:
            if self._previous is None:
                return None
            old, self._model, self._previous = self._model, self._previous, None
        return old

    def close(self, timeout: float | None = None) -> None:
        """Refuses new requests, answers those that wait, and ends the threads; a second call does nothing."""
        self._batcher.close()
        last = time.monotonic() + (timeout or 0)  # for all of them together
        for worker in self._workers:
            worker.join(None if timeout is None else max(0.0, last - time.monotonic()))

    def _queue(self, job):
        self._batcher.put(job)
        return job.future

    def _capacity(self):
        model = self._model
        return min(self.max_batch, model.batch_size), model.engine.streams

    def _work(self):
        while turn := self._batcher.take():
            live = [job for job in turn.jobs if job.begin(self.deadline_s)]
            batch = self._run(live, turn.shared) if live else None
            self._batcher.done(turn)
            if batch:
                self._answer(live, *batch)
            del batch  # its model may be replaced while there is nothing to do

    def _run(self, jobs, shared):
        model = self._model  # read once: a swap must not split a batch
        try:
            images, started = np.concatenate([job.images for job in jobs]), time.monotonic()
            try:
                scores = model.predict(images, shared=shared)
            except ModelRejected as error:
                model = self._give_up(model, error)
                scores = model.predict(images, shared=shared)
        except Exception as error:
            log.exception("a batch of %d images failed on version %s", sum(job.count for job in jobs), model.version)
            for job in jobs:
                job.future.set_exception(error)
            self.listeners.failed(model.version, error)
            return None
        ended = time.monotonic()
        seconds, self._free_at = max(0.0, ended - max(started, self._free_at)), ended  # no second counts twice
        return model, images, scores, seconds

    def _give_up(self, bad, error):
        """The model that serves in the place of `bad`; raises `error` where there is none."""
        with self._swapping:
            if self._model is bad:  # nobody has changed it meanwhile
                if self._previous is None:
                    raise error
                self._model, self._previous = self._previous, None
            good = self._model
        log.exception("version %s failed; version %s serves again", bad.version, good.version)
        self.listeners.failed(bad.version, error)
        return good

    def _answer(self, jobs, model, images, scores, seconds):
        self._recent.extend(images)
        names, now, version = model.labels.fine, time.monotonic(), model.version
        indices, at = scores.probabilities.argmax(axis=1).tolist(), 0
        for job in jobs:
            about = (names, version, now - job.arrived, model.bundle)
            answers = [
                Prediction(indices[i], names[indices[i]], scores.probabilities[i], *about, images[i], scores.row(i))
                for i in range(at, at + job.count)
            ]
            at += len(answers)
            job.future.set_result(answers[0] if job.single else answers)
        self.listeners.answered(Batch(images, scores.probabilities, version, seconds))
