"""Whoever wants to know of every batch of answers: told after the answers were given, in the thread that gave them."""

import logging
import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Images that were answered together: uint8 (n, 32, 32, 3), float32 (n, classes), and seconds in the engine.

    Seconds in which two batches share it are counted to one of them, so that the sum is what the engine was busy.
    """

    images: np.ndarray
    probabilities: np.ndarray
    version: str
    seconds: float


class Listener(Protocol):
    """Must return at once: answers wait for it."""

    def answered(self, batch: Batch) -> None:
        """Takes in what was answered."""

    def failed(self, version: str, error: Exception) -> None:
        """Takes in that `version` could not answer a batch."""


class Listeners:
    """Those who listen, told of one batch at a time; what one of them raises is logged, and the others are told."""

    def __init__(self) -> None:
        self._all: tuple[Listener, ...] = ()  # replaced and never changed: the predictor's threads read it
        self._telling = threading.Lock()

    def add(self, listener: Listener) -> None:
        self._all = (*self._all, listener)

    def remove(self, listener: Listener) -> None:
        self._all = tuple(known for known in self._all if known is not listener)

    def answered(self, batch: Batch) -> None:
        with self._telling:
            for listener in self._all:
                try:
                    listener.answered(batch)
                except Exception:
                    log.exception("a listener failed; the answers were given")

    def failed(self, version: str, error: Exception) -> None:
        with self._telling:
            for listener in self._all:
                try:
                    listener.failed(version, error)
                except Exception:
                    log.exception("a listener failed on a failure of version %s", version)
