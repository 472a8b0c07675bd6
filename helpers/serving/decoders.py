"""Threads that make images of what was sent, away from the event loop and straight on to the engine."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue

import numpy as np

from helpers.data.images import MAX_PIXELS, ImageTooLarge

QUICK_PIXELS = 2**16  # decoded in less than 3 ms
PATIENT = 2  # threads; each may need 200 MB for the largest image

Decode = Callable[[int], np.ndarray]  # of at most so many pixels; raises ImageTooLarge of more
Submit = Callable[[np.ndarray, Future], Future]


class Decoders:
    """One thread for small images, which need not wait for large ones, and a few for all else.

    More threads for small images only contend for the interpreter: two answered a tenth less than one.
    """

    def __init__(self) -> None:
        self._quick: SimpleQueue = SimpleQueue()  # a third of what a ThreadPoolExecutor costs
        self._patient: ThreadPoolExecutor | None = None
        self._waiting: set[Future] = set()

    @property
    def waiting(self) -> int:
        """Requests that are being decoded, or wait for that."""
        return len(self._waiting)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Has the threads while the block runs."""
        thread = threading.Thread(target=self._work, name="decoder", daemon=True)
        with ThreadPoolExecutor(PATIENT, "patient decoder") as self._patient:
            thread.start()
            try:
                yield
            finally:
                self._quick.put(None)
                thread.join()

    def put(self, decode: Decode, submit: Submit, future: Future, *, quick: bool = False) -> None:
        """Calls ``submit(decode(max_pixels), future)`` in a thread; what they raise becomes the future's.

        Args:
            quick: whether it is worth trying if the image is a small one; then `submit` must return at once.
        """
        self._waiting.add(future)
        if quick:
            self._quick.put((decode, submit, future))
        else:
            self._patient.submit(self._do, decode, submit, future)

    def _work(self):
        for job in iter(self._quick.get, None):
            try:
                self._do(*job, QUICK_PIXELS)
            except ImageTooLarge:
                self.put(*job)

    def _do(self, decode, submit, future, max_pixels=MAX_PIXELS):
        try:
            if not future.cancelled():
                submit(decode(max_pixels), future)
        except Exception as error:
            if isinstance(error, ImageTooLarge) and max_pixels < MAX_PIXELS:
                raise
            with suppress(InvalidStateError):  # cancelled by now: nobody waits for it
                future.set_exception(error)
        self._waiting.discard(future)
