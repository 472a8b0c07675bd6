"""Requests that wait for the engine, and how many of them it has next."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from helpers.inference.job import Job

STOPPING = "the server is stopping; send requests elsewhere"


class QueueFull(RuntimeError):
    """As many requests wait as may; the caller should come back later."""


class PredictorClosed(RuntimeError):
    """A request after `Batcher.close`."""


@dataclass(frozen=True, eq=False)
class Turn:
    """Requests that the engine has together.

    Attributes:
        images: of all of them.
        shared: whether another turn was under way when this one was taken.
    """

    jobs: tuple[Job, ...]
    images: int
    shared: bool


class Batcher:
    """Gathers requests from many threads, for threads that take turns of them; two may be under way.

    It never waits for a batch to fill: an idle engine takes a lone request at once. While it is busy, requests gather,
    and a quarter of a full batch goes and shares the engine with the one that runs, so that it need not wait for the
    interpreter; where one of two that shared it is done, an eighth will do. It is at most a third of all there are, so
    that nobody waits for a long one. Where the engine computes one after the other, half of a full batch goes and
    stands behind the one that runs.

    Args:
        queue_size: where as many images wait `put` raises QueueFull; a request of several may go past it.
        capacity: gives the images of a full batch, and the batches that the engine computes at once, 1 or 2; asked
            each time, for both may change.
    """

    def __init__(self, queue_size: int, capacity: Callable[[], tuple[int, int]]) -> None:
        self.queue_size = queue_size
        self._capacity = capacity
        self._jobs: deque[Job] = deque()
        self._waiting = 0  # images
        self._under_way: list[Turn] = []
        self._shared = False  # whether the turn that was taken last shares the engine
        self._changed = threading.Condition()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Images that no turn has taken yet."""
        return self._waiting

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._under_way and not self._jobs

    @property
    def closed(self) -> bool:
        return self._closed

    def check_room(self, coming: int = 0) -> None:
        """Raises what `put` would, if `coming` images were put before.

        Raises:
            QueueFull: if too many wait already.
            PredictorClosed: after `close`.
        """
        if self._closed:
            raise PredictorClosed(STOPPING)
        if self._waiting + coming >= self.queue_size:
            raise QueueFull(f"{self._waiting + coming} images are waiting already; try again in a second")

    def put(self, job: Job) -> None:
        """Queues a request, or raises as `check_room`."""
        with self._changed:
            self.check_room()
            self._jobs.append(job)
            self._waiting += job.count
            if self._is_worth_a_turn():
                self._changed.notify()

    def take(self) -> Turn | None:
        """Waits for requests that are worth a turn; None after `close`, once none are left.

        A request of more images than a batch holds is a turn of its own. Whoever takes one says when it is `done`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_worth_a_turn() or self._closed)
            if not self._jobs:
                return None
            _, most = self._limits()
            jobs, images = [], 0
            while self._jobs and (not jobs or images + self._jobs[0].count <= most):
                jobs.append(self._jobs.popleft())
                images += jobs[-1].count
            self._waiting -= images
            self._shared = bool(self._under_way)
            turn = Turn(tuple(jobs), images, self._shared)
            self._under_way.append(turn)
            return turn

    def done(self, turn: Turn) -> None:
        """The engine is through with `turn`."""
        with self._changed:
            self._under_way.remove(turn)
            self._changed.notify()

    def close(self) -> None:
        """Refuses new requests; those that wait may still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_worth_a_turn(self):
        least, _ = self._limits()
        return len(self._under_way) < 2 and self._waiting >= least

    def _limits(self):
        """How many images the next turn must have at least and may have at most, apart from one large request."""
        full, streams = self._capacity()
        if not self._under_way:
            return 1, full
        if streams == 1:  # what stands behind another cannot grow
            return full / 2, full
        least = full / (8 if self._shared else 4)
        there = self._waiting + sum(turn.images for turn in self._under_way)
        return least, max(least, min(full, there // 3))
