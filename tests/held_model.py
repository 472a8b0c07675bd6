"""Models whose engine can be kept busy, or does worse than it should, for tests of what happens then."""

import threading
import time
from dataclasses import replace

import numpy as np

from helpers.inference.engine import ModelRejected


class HeldModel:
    """A loaded model that answers only while its gate is open, and notes the size of each batch and if it shared."""

    def __init__(self, model):
        self.model, self.gate, self.sizes, self.shared = model, threading.Event(), [], []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def predict(self, images, *, shared=False):
        self.sizes.append(len(images))
        self.shared.append(shared)
        assert self.gate.wait(10)
        return self.model.predict(images, shared=shared)


class Slow(HeldModel):
    """Takes 30 ms an image."""

    def predict(self, images, *, shared=False):
        time.sleep(0.03 * len(images))
        return self.model.predict(images, shared=shared)


class Confused(HeldModel):
    """Holds all classes for equally likely."""

    def predict(self, images, *, shared=False):
        scores = self.model.predict(images, shared=shared)
        return replace(scores, probabilities=np.full_like(scores.probabilities, 0.01))


class Insane(HeldModel):
    """Gives answers that are refused."""

    def predict(self, images, *, shared=False):
        raise ModelRejected("probabilities must be finite; 1 of 100 are not")


def wait_until(condition, seconds=10):
    """Returns when `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
