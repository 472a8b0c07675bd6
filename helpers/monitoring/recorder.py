"""Between the answers and whoever counts them: predictions are taken off the requests' path, and written in batches."""

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import groupby

import numpy as np

from helpers.inference.prediction import Prediction
from helpers.monitoring.feedback import (
    LabelConflict,
    Labelled,
    LogUnavailable,
    UnknownRequest,
    WrongPosition,
    keep_label,
)
from helpers.monitoring.log_row import Answer, make_rows
from helpers.monitoring.metrics import Metrics
from helpers.monitoring.outage import Outage
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.running_statistics import RunningStatistics
from helpers.monitoring.watch import Watch

CAPACITY = 4096  # predictions, of about 6 kB each while they wait
INTERVAL_S = 0.5
BURSTS, MIN_BURST = 24, 12  # answers are counted in so many goes, each less than 2 ms at 2,000 requests a second
PAUSE_S = 0.002  # between them: who answers a request needs the interpreter several times, and meets one go at most
REPORT_S = 10.0

_logger = logging.getLogger(__name__)


class Recorder:
    """Counts predictions and writes them to a log, in order, from a thread that looks every half second.

    Where the disk does not keep up, up to `capacity` predictions wait; further ones are lost to the log, counted, and
    said once. What fails here is logged and never reaches a request.

    Args:
        log: the prediction log, which stays the caller's to close; None only counts.
    """

    def __init__(
        self,
        log: PredictionLog | None = None,
        metrics: Metrics | None = None,
        watch: Watch | None = None,
        *,
        capacity: int = CAPACITY,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.log, self.metrics, self.watch = log, metrics, watch or Watch()
        self.capacity, self.interval_s = capacity, interval_s
        self._refused = self._failed = 0  # by the event loop, and in the thread
        self._statistics = RunningStatistics()
        self._answers: deque[Answer] = deque()
        self._rows: list[tuple] = []  # counted, and not on the disk yet
        self._labels: deque[tuple[Future, tuple]] = deque()
        self._taken_in = self._dealt_with = 0
        self._wake, self._running, self._reported = threading.Event(), False, time.monotonic()
        self._disk = Outage("the prediction log takes no rows now; they wait, and predictions go on")
        self._trouble = Outage("predictions could not be recorded; they were answered")

    @property
    def waiting(self) -> int:
        """Predictions on their way to the log."""
        return self._taken_in - self._dealt_with

    @property
    def lost(self) -> int:
        """Predictions that are not in the log, for want of room or after an error."""
        return self._refused + self._failed

    def put(self, request_id: str, predictions: Sequence[Prediction], seconds: float) -> None:
        """Hands over the predictions of one request, from the event loop; does nothing outside `running`."""
        if not self._running:
            return
        count = len(predictions)
        if self.waiting + count > self.capacity:
            if not self._refused:
                _logger.warning("the prediction log is slower than the predictions; from here on some are not in it")
            self._refused += count
            return
        self._taken_in += count
        if self.log:
            self.log.accept(count)
        self._answers.append(Answer(request_id, predictions, seconds, time.time()))

    def label(self, request_id: str, position: int | None, label: int) -> "Future[Labelled]":
        """As `monitoring.feedback.keep_label`, in the thread; what waits is written first, so that it is found.

        The future raises LogUnavailable where the disk takes nothing.

        Raises:
            UnknownRequest: where no log is kept at all.
        """
        if not self.log or not self._running:
            raise UnknownRequest("this server keeps no prediction log; start it with --log to send feedback")
        future: Future = Future()
        self._labels.append((future, (request_id, position, label)))
        self._wake.set()
        return future

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits at most `timeout` seconds until what was put is written; whether it is."""
        deadline = time.monotonic() + timeout
        while self.waiting and self._running and time.monotonic() < deadline:
            self._wake.set()
            time.sleep(0.01)
        return not self.waiting

    @contextmanager
    def running(self) -> Iterator[None]:
        """Records while the block runs; at its end, what has arrived is written if the disk takes it."""
        self._running = True
        thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._running = False
            self._wake.set()
            thread.join(10)
            if self.waiting:
                _logger.warning("%d predictions could not be written to the prediction log", self.waiting)

    def _work(self):
        running = True
        while running:
            self._wake.wait(self.interval_s)
            self._wake.clear()
            running = self._running
            labels = len(self._labels)  # counted first: the answers that they are for have been put before them
            answers = [self._answers.popleft() for _ in range(len(self._answers))]
            burst = max(MIN_BURST, len(answers) // BURSTS)
            for start in range(0, len(answers), burst):
                for bundle, group in groupby(answers[start : start + burst], lambda a: a.predictions[0].bundle):
                    self._count(bundle, list(group))
                time.sleep(PAUSE_S)
            with self._disk:
                self._write(not running)
            for _ in range(labels):
                with self._trouble:
                    self._keep(*self._labels.popleft())

    def _count(self, bundle, answers):
        predictions = [prediction for answer in answers for prediction in answer.predictions]
        rows = None
        with self._trouble:
            if self.metrics:
                self.metrics.predicted(
                    [p.class_name for p in predictions], np.array([p.confidence for p in predictions])
                )
            scores = self.watch.look(bundle, predictions)
            rows = make_rows(answers, scores, self._statistics, keep_images=self.log.keep_images) if self.log else []
        self._rows += rows or []
        if not rows:  # nowhere to write them, or something is wrong with them
            self._dealt_with += len(predictions)
            self._failed += len(predictions) if rows is None else 0

    def _write(self, last):
        if self._rows:
            self.log.append(self._rows, self.lost)
            self._dealt_with += len(self._rows)
            self._rows = []
        if self.log and (last or time.monotonic() - self._reported >= REPORT_S):
            self._reported = time.monotonic()
            for kind, report in self.watch.reports().items():
                self.log.report(kind, report)

    def _keep(self, future, feedback):
        if not future.set_running_or_notify_cancel():  # told already that it was not kept
            return
        try:
            labelled = keep_label(self.log, *feedback)
            if not labelled.known:
                self.watch.labelled(labelled.version, labelled.right, labelled.confidence)
            future.set_result(labelled)
        except sqlite3.Error as error:
            future.set_exception(LogUnavailable(f"the prediction log takes nothing now ({error}); try again later"))
        except (UnknownRequest, WrongPosition, LabelConflict) as error:
            if isinstance(error, UnknownRequest) and self._rows:  # it may be among those that the disk did not take
                error = LogUnavailable("the prediction log takes nothing now; try again later")
            future.set_exception(error)
