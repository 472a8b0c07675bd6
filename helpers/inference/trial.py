"""Whether a version that has begun to serve is worse than the one before it, by what both did with real requests."""

import threading
from collections import deque
from dataclasses import dataclass
from statistics import fmean, median, pvariance

from helpers.inference.engine import ModelRejected
from helpers.inference.listener import Batch

REMEMBERED = 1000  # answers and batches, of each version
VERSIONS = 4  # the last that answered


@dataclass(frozen=True)
class Rule:
    """How much worse is too much; each limit must be passed, so that noise returns nothing.

    Attributes:
        failures, failure_rate: batches that failed: at least so many, and a share of so much more than before.
        batches, times_slower, seconds_slower: the median time of an image in the engine, over so many batches of each
            version at least: so many times as before, and so many seconds more.
        answers, less_confident, standard_errors: the mean confidence, over so many answers of each version at least:
            so much lower (0 to 1), and so many standard errors of the difference.
    """

    failures: int = 3
    failure_rate: float = 0.02
    batches: int = 10
    times_slower: float = 2.0
    seconds_slower: float = 0.02
    answers: int = 30
    less_confident: float = 0.1
    standard_errors: float = 4.0

    def judge(self, before: "Record", now: "Record") -> str:
        """What is worse about `now` in one sentence; empty if nothing is, or too little is known yet."""
        if now.failed >= self.failures and now.failure_rate > before.failure_rate + self.failure_rate:
            return f"{now.failed} of {now.failed + len(now.seconds)} batches failed"
        if min(len(before.seconds), len(now.seconds)) >= self.batches:
            old, new = median(before.seconds), median(now.seconds)
            if new > old * self.times_slower and new > old + self.seconds_slower:
                return f"an image takes {1000 * new:.1f} ms, {1000 * old:.1f} ms before"
        if min(len(before.confidences), len(now.confidences)) >= self.answers:
            old, new = fmean(before.confidences), fmean(now.confidences)
            error = (before.confidence_variance + now.confidence_variance) ** 0.5
            if old - new > max(self.less_confident, self.standard_errors * error):
                return f"the mean confidence is {new:.3f}, {old:.3f} before"
        return ""


@dataclass(frozen=True)
class Record:
    """What one version did: engine seconds an image, by batch; confidences (0 to 1) by answer; batches that failed."""

    seconds: tuple[float, ...] = ()
    confidences: tuple[float, ...] = ()
    failed: int = 0

    @property
    def failure_rate(self) -> float:
        return self.failed / max(self.failed + len(self.seconds), 1)

    @property
    def confidence_variance(self) -> float:
        """Of the mean."""
        return pvariance(self.confidences) / len(self.confidences)


class _Book:
    def __init__(self):
        self.batches: deque[float | None] = deque(maxlen=REMEMBERED)  # None: it failed
        self.confidences: deque[float] = deque(maxlen=REMEMBERED)
        self.error: Exception | None = None


class Scorebook:
    """A `inference.listener.Listener` that keeps a `Record` of each of the last versions; thread-safe."""

    def __init__(self):
        self._lock = threading.Lock()
        self._books: dict[str, _Book] = {}

    def answered(self, batch: Batch) -> None:
        """Notes a batch."""
        with self._lock:
            book = self._book(batch.version)
            book.batches.append(batch.seconds / len(batch.images))
            book.confidences.extend(batch.probabilities.max(axis=1).tolist())

    def failed(self, version: str, error: Exception) -> None:
        """Notes a batch that `version` could not answer."""
        with self._lock:
            kind = ModelRejected if isinstance(error, ModelRejected) else RuntimeError
            book = self._book(version)
            book.batches.append(None)
            book.error = kind(str(error))  # a new one: the frames of that one hold the model and its images

    def forget(self, version: str) -> None:
        """Begins a new record of `version`."""
        with self._lock:
            self._books.pop(version, None)

    def record(self, version: str) -> Record:
        """Of `version`, so far."""
        with self._lock:
            book = self._books.get(version, _Book())
            seconds = tuple(each for each in book.batches if each is not None)
            return Record(seconds, tuple(book.confidences), len(book.batches) - len(seconds))

    def error(self, version: str) -> Exception | None:
        """The last that a batch of `version` failed with."""
        with self._lock:
            return self._books.get(version, _Book()).error

    def _book(self, version):
        self._books[version] = self._books.pop(version, None) or _Book()  # at the end: it answered last
        while len(self._books) > VERSIONS:
            del self._books[next(iter(self._books))]
        return self._books[version]
