"""Actors that share a store in memory and take turns, at each operation, in an order that a test decides."""

import threading

from helpers.delivery.layout import RegistryError
from helpers.delivery.objects import Object, ObjectInfo, StorageError, Store


class Killed(BaseException):
    """Raised in an actor in place of its next operation, as if its process had ended."""


class MemoryStore(Store):
    """The contract of `delivery.objects` in a dict, for tests that need a great many operations."""

    url = "memory:"

    def __init__(self):
        self.objects, self.last, self._lock = {}, 0, threading.Lock()

    def read(self, key):
        with self._lock:
            if key not in self.objects:
                raise self._absent(key)
            return self.objects[key]

    def write(self, key, data, *, if_generation):
        with self._lock:
            self._check(key, if_generation)
            self.last += 1
            self.objects[key] = Object(data, self.last)
            return self.last

    def list(self, prefix=""):
        with self._lock:
            found = [(key, value) for key, value in self.objects.items() if key.startswith(prefix)]
        return [ObjectInfo(key, len(value.data), value.generation) for key, value in sorted(found)]

    def delete(self, key, *, if_generation):
        with self._lock:
            if key not in self.objects:
                raise self._absent(key)
            self._check(key, if_generation)
            del self.objects[key]

    def _check(self, key, expected):
        if expected is not None and expected != (self.objects[key].generation if key in self.objects else 0):
            raise self._conflict(key, expected)


class Actor(threading.Thread, Store):
    """Runs ``action(store)`` in steps, one operation on `inner` each; `result` or `error` says how it ended."""

    def __init__(self, inner, action):
        super().__init__(daemon=True)
        self.inner, self.action, self.url = inner, action, inner.url
        self.result = self.error = None
        self.done = self.killed = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.start()
        self._back.acquire()

    def run(self):
        try:
            self._turn()
            self.result = self.action(self)
        except (RegistryError, StorageError, Killed) as error:  # the test looks at it
            self.error = error
        finally:
            self.done = True
            self._back.release()

    def step(self, kill=False):
        """Lets the actor do its next operation, or be killed instead."""
        self.killed = kill
        self._go.release()
        self._back.acquire()

    def _turn(self):
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def read(self, key):
        self._turn()
        return self.inner.read(key)

    def write(self, key, data, *, if_generation):
        self._turn()
        return self.inner.write(key, data, if_generation=if_generation)

    def list(self, prefix=""):
        self._turn()
        return self.inner.list(prefix)

    def delete(self, key, *, if_generation):
        self._turn()
        self.inner.delete(key, if_generation=if_generation)


def play(store, actions, random, check, kill=0.0):
    """Plays `actions` against each other on `store` in a random order, and `check()` after each operation.

    An actor goes on with a chance of nine in ten, for what goes wrong often needs one to stand while another runs.
    `kill` is the chance, at each operation, that its actor dies instead. Returns the actors, done.
    """
    actors = [Actor(store, action) for action in actions]
    actor = actors[0]
    while live := [actor for actor in actors if not actor.done]:
        if actor.done or random.random() < 0.1:
            actor = live[random.integers(len(live))]
        actor.step(kill=random.random() < kill)
        check()
    for actor in actors:
        actor.join()
    return actors
