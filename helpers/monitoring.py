"""What the running service did: statistics over its whole life, a bounded history, and scalars for W&B."""

import logging
import math
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from wandb import Run

    from helpers.predictor import Prediction

SCALARS = ("Prediction Time", "Average Prediction Time", "Output", "Average Output", "Most Occurring Output")

_logger = logging.getLogger(__name__)


class RunningStatistics:
    """Averages and the mode over every prediction so far; thread-safe, in memory that does not grow with them."""

    def __init__(self, classes: int = 100):
        self._lock = threading.Lock()
        self._counts = [0] * classes
        self._count = 0
        self._seconds = 0.0
        self._indices = 0
        self._mode = 0

    def update(self, seconds: float, class_index: int) -> dict[str, float | int]:
        """Take in one prediction and return the five scalars, by the names that the dashboards know.

        "Prediction Time" and its average are in seconds; "Output" is the class index, 0 to classes - 1, "Average
        Output" the mean of the indices, "Most Occurring Output" the index seen most often, the smaller one on a tie.

        Raises:
            ValueError: if `seconds` is negative or not finite, or `class_index` not a class; nothing is counted then.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds: expected a finite number of at least 0, got {seconds!r}")
        if not 0 <= class_index < len(self._counts):
            raise ValueError(f"class_index: expected 0 to {len(self._counts) - 1}, got {class_index!r}")
        seconds, index = float(seconds), int(class_index)
        with self._lock:
            self._count += 1
            self._seconds += seconds
            self._indices += index
            self._counts[index] += 1
            # Only the class just counted can overtake the leader, or draw level with it.
            if (self._counts[index], -index) > (self._counts[self._mode], -self._mode):
                self._mode = index
            values = (seconds, self._seconds / self._count, index, self._indices / self._count, self._mode)
        return dict(zip(SCALARS, values, strict=True))


@dataclass(frozen=True)
class Observation:
    """One prediction as the figures need it.

    Attributes:
        time: Unix time in seconds.
        seconds: from request to answer.
        confidence: probability of the predicted class, 0 to 1.
        version: of the model that answered.
        scalars: the five after this prediction.
    """

    time: float
    seconds: float
    class_index: int
    class_name: str
    confidence: float
    version: str
    scalars: dict[str, float | int]


class Sink(Protocol):
    """Takes the five scalars of each prediction, in order. `send` must return at once: it is on the request's path."""

    def send(self, scalars: dict[str, float | int]) -> None: ...


class Monitor:
    """Counts predictions, keeps the last `history` of them for figures, and passes the scalars on to a sink."""

    def __init__(self, statistics: RunningStatistics, sink: Sink | None = None, history: int = 1000):
        self._statistics, self._sink = statistics, sink
        self._history: deque[Observation] = deque(maxlen=history)
        self._scalars: dict[str, float | int] = {}
        self._lock = threading.Lock()  # keeps the sink's order equal to the order of counting
        self._failures = _FailureLog("the monitor's sink failed; predictions go on without it")

    def observe(self, prediction: "Prediction", seconds: float) -> None:
        """Take in a prediction that was answered in `seconds`. A failing sink is logged and never raised."""
        index = int(prediction.class_index)
        with self._lock:
            scalars = self._statistics.update(seconds, index)
            self._scalars = scalars
            self._history.append(
                Observation(
                    time=time.time(),
                    seconds=seconds,
                    class_index=index,
                    class_name=prediction.class_name,
                    confidence=float(prediction.probabilities[index]),
                    version=prediction.version,
                    scalars=scalars,
                )
            )
            if self._sink is not None:
                with self._failures:
                    self._sink.send(dict(scalars))

    @property
    def scalars(self) -> dict[str, float | int]:
        """The five scalars after the latest prediction; empty before the first."""
        return dict(self._scalars)

    def history(self) -> list[Observation]:
        """The latest observations, oldest first."""
        with self._lock:
            return list(self._history)


class WandbSink:
    """Logs scalars to a W&B run from a thread of its own; the run stays its owner's to finish.

    The queue is bounded: where W&B is slower than the predictions, further scalars are dropped, counted and reported.
    """

    def __init__(self, run: "Run", queue_size: int = 10_000):
        self._run = run
        self._queue: queue.Queue = queue.Queue(queue_size)
        self._closed = False
        self._failures = _FailureLog("W&B did not take a prediction's scalars; later ones are tried again")
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="wandb-sink", daemon=True)
        self._thread.start()

    def send(self, scalars: dict[str, float | int]) -> None:
        """Queue one prediction's scalars; return at once."""
        try:
            if self._closed:
                raise queue.Full
            self._queue.put_nowait(scalars)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1:
                _logger.warning("W&B falls behind: predictions are not logged there until its queue has room")

    def close(self, timeout: float = 10.0) -> int:
        """Log what is queued, waiting at most `timeout` seconds; return how many predictions W&B did not get."""
        deadline = time.monotonic() + timeout
        if not self._closed:
            self._closed = True
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                _logger.debug("no room for the end mark; W&B is stuck")
        self._thread.join(max(0.0, deadline - time.monotonic()))
        lost = self.dropped + self._failures.count + self._queue.qsize()
        if lost:
            _logger.warning("W&B did not get %d predictions (queue full, failed or still waiting)", lost)
        return lost

    def _work(self) -> None:
        while (scalars := self._queue.get()) is not None:
            with self._failures:
                self._run.log(scalars)


class _FailureLog:
    """Logs the traceback of the first failure in a row and counts the rest, so that an outage cannot flood the log."""

    def __init__(self, message: str):
        self._message, self._failing, self.count = message, False, 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if error is None:
            self._failing = False
            return False
        if not isinstance(error, Exception):
            return False
        self.count += 1
        if not self._failing:
            _logger.error(self._message, exc_info=error)
        self._failing = True
        return True
