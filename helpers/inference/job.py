"""One request on its way to the engine."""

import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np


class DeadlineExceeded(RuntimeError):
    """A request that waited longer than it may."""


@dataclass
class Job:
    """Images that are answered together, by one version.

    Attributes:
        images: uint8 (n, 32, 32, 3); None while they are to be decoded.
        single: whether the future gets one prediction, and not a list.
        decode: gives the images of a single request; None if it sees to its future in another way.
    """

    images: np.ndarray | None
    future: Future
    single: bool
    decode: Callable[[], np.ndarray | None] | None = None
    arrived: float = field(default_factory=time.monotonic)

    @property
    def count(self) -> int:
        """Images."""
        return 1 if self.images is None else len(self.images)

    def begin(self, deadline_s: float) -> bool:
        """Whether the images are there and somebody waits for their answer; where not, the future knows why.

        Args:
            deadline_s: seconds that it may have waited.
        """
        if self.future.cancelled():
            return self.future.set_running_or_notify_cancel()
        if (waited := time.monotonic() - self.arrived) > deadline_s:
            return self._fail(DeadlineExceeded(f"waited {waited:.1f} s, {deadline_s:g} s are allowed; try again"))
        if self.images is None:
            try:
                self.images = self.decode()
            except Exception as error:  # noqa: BLE001 - of whoever asked
                return self._fail(error)
            if self.images is None:
                return False
        return self.future.set_running_or_notify_cancel()

    def _fail(self, error):
        with suppress(InvalidStateError):  # cancelled by now: nobody waits for it
            self.future.set_exception(error)
        return False
