"""Between the answers and whoever counts them: predictions pass on to the monitor off the critical path."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio

from helpers.monitoring import Monitor
from helpers.predictor import Prediction

log = logging.getLogger(__name__)


class Observer:
    """Tells a monitor of predictions, in order and in a thread, so that no answer waits for it.

    What the monitor raises is logged. Past `capacity` predictions behind, further ones are dropped and counted.
    """

    def __init__(self, monitor: Monitor | None, capacity: int = 1000) -> None:
        self.monitor, self.capacity, self.dropped = monitor, capacity, 0
        self._queue: asyncio.Queue | None = None

    def put(self, prediction: Prediction, seconds: float) -> None:
        """Hands over one prediction from the event loop; does nothing outside `running`."""
        if self.monitor is None or self._queue is None:
            return
        try:
            self._queue.put_nowait((prediction, seconds))
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped in (1, 10, 100) or self.dropped % 1000 == 0:
                log.warning("the monitor is slower than the predictions; %d went unobserved", self.dropped)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Observes while the block runs; at its end, waits up to two seconds for what is left."""
        self._queue = asyncio.Queue(self.capacity)
        task = asyncio.create_task(self._run())
        try:
            yield
            with anyio.move_on_after(2):
                await self._queue.join()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self):
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            await anyio.to_thread.run_sync(self._observe, batch, abandon_on_cancel=True)
            for _ in batch:
                self._queue.task_done()

    def _observe(self, batch):
        for prediction, seconds in batch:
            try:
                self.monitor.observe(prediction, seconds)
            except Exception:
                log.exception("the monitor failed on a prediction; its answer was given")
