"""A candidate that answers a share of the requests itself, until it turns out to be worse than production."""

import logging
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
from fastapi import FastAPI

from helpers.inference.batcher import PredictorClosed, QueueFull
from helpers.inference.job import DeadlineExceeded
from helpers.inference.listener import Batch
from helpers.inference.predictor import Predictor
from helpers.inference.source import ModelSource
from helpers.inference.trial import Rule, Scorebook
from helpers.serving.shadow import Comparison, Shadow, shadow

PATIENCE_S = 1.0  # that a request waits for the candidate before production answers it

log = logging.getLogger(__name__)


class Canary(Shadow):
    """Sends a share of the single predictions to the candidate instead of `predictor` while the block runs.

    Which ones the request id decides, so that the same request goes the same way. What the candidate fails to answer,
    or not within a second, production answers. Once it is worse by the rule of the trial (`inference.trial.Rule`) it
    gets no further request until the alias names another version.

    Args:
        As `Shadow`; `share` is of the requests.
        rule: what is worse.
    """

    def __init__(self, *arguments, rule: Rule | None = None, **options) -> None:
        super().__init__(*arguments, **options)
        self.rule, self.scores = rule or Rule(), Scorebook()
        self._trying: Predictor | None = None
        self._retired: Predictor | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._retire()
        self._close()

    def route(self, request_id: str) -> Callable[..., Future]:
        """What the image of that request is submitted to, in place of `Predictor.submit`."""
        trying = self._trying
        if trying and trying.model.version == self.predictor.model.version:  # it was promoted
            self._retire()
            trying = None
        if trying is None or not self.takes(request_id):
            return self.predictor.submit
        return partial(self._submit, trying)

    def takes(self, request_id: str) -> bool:
        """Whether that request is one of the candidate's share."""
        return zlib.crc32(request_id.encode()) < self.share * 2**32

    def answered(self, batch: Batch) -> None:
        """Of either: notes it, and judges the candidate."""
        self.scores.answered(batch)
        if batch.version == self._version:
            self._images += len(batch.images)
            self._judge()

    def failed(self, version: str, error: Exception) -> None:
        """Of either: notes it, and judges the candidate."""
        self.scores.failed(version, error)
        if version == self._version:
            self._judge()

    def comparison(self) -> Comparison | None:
        """So far; None without a candidate that differs from what serves."""
        with self._lock:
            production, version = self.predictor.model.version, self._version
            if version in (None, production):
                return None
            figures = {"agreement": None, "problem": self._problem}
            for name, record in (
                ("candidate", self.scores.record(version)),
                ("production", self.scores.record(production)),
            ):
                figures[f"confidence_{name}"] = float(np.mean(record.confidences or 0))
                figures[f"milliseconds_{name}"] = 1000 * float(np.mean(record.seconds or 0))
            return Comparison(version, production, self._images, **figures)

    def _submit(self, trying: Predictor, image: np.ndarray, future: Future | None = None) -> Future:
        """As `Predictor.submit`; waits for the candidate, and so must not be called in an event loop."""
        try:
            waiting = trying.submit(image)
            try:
                answer = waiting.result(PATIENCE_S)
            finally:
                waiting.cancel()  # takes it out of the queue
        except PredictorClosed:
            pass  # it was retired at this moment
        except (TimeoutError, DeadlineExceeded, QueueFull) as error:
            self.failed(trying.model.version, error)
        except Exception:  # noqa: BLE001, S110 - its predictor has logged it, and told the listeners, this one too
            pass
        else:
            future = Future() if future is None else future
            if future.set_running_or_notify_cancel():
                future.set_result(answer)
            return future
        return self.predictor.submit(image, future)

    def _judge(self):
        with self._lock:
            production, version = self.predictor.model.version, self._version
            if self._trying is None or production == version:
                return
            if reason := self.rule.judge(self.scores.record(production), self.scores.record(version)):
                log.error("candidate %s is sent back: %s", version, reason)
                self._problem = f"sent back: {reason}"
                self._retire()

    def _look(self):
        self._close()
        super()._look()

    def _begin(self, version, model, problem):
        self._retire()
        self._close()
        super()._begin(version, model, problem)
        if model:
            self.scores.forget(model.version)
            trying = Predictor(model, deadline_s=PATIENCE_S)
            trying.listeners = self.predictor.listeners  # they tell versions apart
            self._trying = trying

    def _retire(self):
        # What waits there is answered still; the thread that judges is the predictor's own, and cannot wait for itself.
        self._retired, self._trying = self._trying or self._retired, None

    def _close(self):
        if retired := self._retired:
            self._retired = None
            retired.close(timeout=PATIENCE_S)


def canary(app: FastAPI, source: ModelSource, share: float) -> AbstractContextManager:
    """A `Canary` of the alias "candidate" of the model that `app` serves; ``/candidate`` shows it."""
    running = shadow(app, source, share, Canary)
    predictor = app.state.swapper.predictor
    app.state.inference.route = running.route
    app.state.recorder.watch.passes_by = lambda version: version != predictor.model.version
    return running
