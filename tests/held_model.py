"""A model whose engine can be kept busy, for tests of what happens meanwhile."""

import threading
import time


class HeldModel:
    """A loaded model that answers only while its gate is open, and notes the size of each batch."""

    def __init__(self, model):
        self.model, self.gate, self.sizes = model, threading.Event(), []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def predict(self, images):
        self.sizes.append(len(images))
        assert self.gate.wait(10)
        return self.model.predict(images)


def wait_until(condition, seconds=10):
    """Returns when `condition()` is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.002)
