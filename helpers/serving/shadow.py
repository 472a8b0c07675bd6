"""A candidate that answers a share of the real requests too, unseen: what it would say, before it is promoted."""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI

from helpers.delivery.bundle import BundleError
from helpers.delivery.model_dir import parse
from helpers.delivery.storage import StorageError
from helpers.inference.listener import Batch
from helpers.inference.loader import LoadedModel, ModelRejected
from helpers.inference.predictor import Predictor
from helpers.inference.source import ModelSource
from helpers.registry import Registry, RegistryError

CANDIDATE = "candidate"
FIGURES = (
    "agreement",
    "confidence_candidate",
    "confidence_production",
    "milliseconds_candidate",
    "milliseconds_production",
)
WAITING = 64  # batches; past it they are passed over
POLL_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What the candidate and the version in production said to the same images.

    Attributes:
        images: that the candidate saw, or as a canary answered.
        agreement: share of them that both give the same class, 0 to 1; None of a canary, which answers alone.
        confidence_candidate, confidence_production: means, 0 to 1.
        milliseconds_candidate, milliseconds_production: an image in the engine, means.
        passed_over: batches that came while too many waited.
        problem: why the candidate cannot be loaded or was sent back, or what it failed with last.
    """

    candidate: str
    production: str
    images: int = 0
    agreement: float | None = 0.0
    confidence_candidate: float = 0.0
    confidence_production: float = 0.0
    milliseconds_candidate: float = 0.0
    milliseconds_production: float = 0.0
    passed_over: int = 0
    problem: str = ""


class Shadow:
    """Runs the candidate beside `predictor` while the block runs, in a thread of its own and only for comparison.

    It takes processor time: the share should be small where the server is busy. The comparison begins anew when either
    version changes.

    Args:
        find: the version that is candidate now, None without one.
        load: the checked model of the candidate.
        share: of the batches that the candidate sees, above 0 and at most 1.
    """

    def __init__(
        self,
        predictor: Predictor,
        find: Callable[[], str | None],
        load: Callable[[], LoadedModel],
        *,
        share: float = 0.1,
        poll_s: float = POLL_S,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        self.predictor, self.find, self.load, self.share, self.poll_s = predictor, find, load, share, poll_s
        self._model: LoadedModel | None = None
        self._version, self._problem, self._passed_over, self._away = None, "", 0, False
        self._production, self._sums, self._images = "", np.zeros(len(FIGURES)), 0
        self._batches: queue.Queue[Batch | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Shadow":
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()
        self.predictor.listeners.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.predictor.listeners.remove(self)
        with suppress(queue.Full):  # a candidate that hangs must not hold the server
            self._batches.put(None, timeout=10)
        self._thread.join(10)

    def answered(self, batch: Batch) -> None:
        """Takes its share of what was answered; never waits."""
        if self._model is None or random.random() >= self.share:
            return
        try:
            self._batches.put_nowait(batch)
        except queue.Full:
            self._passed_over += 1

    def failed(self, version: str, error: Exception) -> None:
        """Of production: nothing to compare with."""

    def comparison(self) -> Comparison | None:
        """So far; None without a candidate that differs from what serves."""
        with self._lock:
            if self._version in (None, self.predictor.model.version):
                return None
            sums = self._sums / max(self._images, 1)
            figures = dict(zip(FIGURES, sums.tolist(), strict=True))
            production = self._production or self.predictor.model.version
            rest = {"passed_over": self._passed_over, "problem": self._problem}
            return Comparison(self._version, production, self._images, **figures, **rest)

    def _run(self):
        looked = -self.poll_s
        while True:
            if time.monotonic() - looked >= self.poll_s:
                self._look()
                looked = time.monotonic()
            try:
                batch = self._batches.get(timeout=self.poll_s)
            except queue.Empty:
                continue
            if batch is None:
                return
            self._compare(batch)

    def _look(self):
        try:
            version = self.find()
            absent = self._model is None and not self._problem  # it may have served when it became the candidate
            if version != self._version or (absent and version not in (None, self.predictor.model.version)):
                self._begin(version, None, "")
                if version not in (None, self.predictor.model.version):
                    model = self.load()
                    self._begin(model.version, model, "")
        except (BundleError, ModelRejected) as error:
            log.warning("candidate %s is refused: %s", version, error)
            self._begin(version, None, str(error))
        except Exception as error:
            if not self._away:  # an outage must not flood the log
                known = isinstance(error, StorageError | RegistryError)
                log.warning("cannot look at the candidate: %s; each look tries again", error, exc_info=not known)
            self._away = True
            self._version = self._version if self._model else None
        else:
            self._away = False

    def _begin(self, version, model, problem):
        with self._lock:
            self._version, self._model, self._problem = version, model, problem
            self._production, self._sums, self._images, self._passed_over = "", np.zeros(len(FIGURES)), 0, 0

    def _compare(self, batch):
        model, serving = self._model, self.predictor.model
        if model is None or batch.version != serving.version or batch.version == model.version:
            return
        started = time.perf_counter()
        try:
            probabilities = model.predict(batch.images).probabilities
        except Exception as error:
            if str(error) != self._problem:
                log.exception("candidate %s failed on a batch", model.version)
            self._problem = str(error)
            return
        seconds = time.perf_counter() - started
        ours = [model.labels.fine[index] for index in probabilities.argmax(axis=1)]
        theirs = [serving.labels.fine[index] for index in batch.probabilities.argmax(axis=1)]
        same = sum(one == other for one, other in zip(ours, theirs, strict=True))
        confidences = probabilities.max(axis=1).sum(), batch.probabilities.max(axis=1).sum()
        if batch.version != self._production:
            self._begin(model.version, model, self._problem)
        with self._lock:
            self._production = batch.version
            self._sums += (same, *confidences, 1000 * seconds, 1000 * batch.seconds)
            self._images += len(batch.images)


def shadow(
    app: FastAPI, source: ModelSource, share: float | None, kind: type[Shadow] = Shadow
) -> AbstractContextManager:
    """A `kind` of the alias "candidate" of the model that `app` serves; ``/candidate`` shows it. None: no candidate."""
    if share is None:
        return nullcontext()
    swapper = app.state.swapper
    name, _, _ = parse(source.store, swapper.model_dir)
    place = f"models/{name}/aliases/{CANDIDATE}"
    # Of its own: the source of the server must not take the candidate for a model that it has served.
    own = ModelSource(source.bucket, model_dir=place, cache=source.cache, engine=source.engine, threads=source.threads)

    def find():
        found = Registry(own.store, name).alias(CANDIDATE)
        return found.version if found else None

    app.state.shadow = kind(swapper.predictor, find, lambda: own.load(place), share=share)
    return app.state.shadow
