"""From the body of a request to its predictions: decoded off the event loop, queued, and noted for the record."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import perf_counter

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from helpers.data.images import ImageError, ImageTooLarge, decode_image
from helpers.data.npy import decode_npy
from helpers.inference.batcher import STOPPING, PredictorClosed
from helpers.inference.job import DeadlineExceeded
from helpers.inference.prediction import Prediction
from helpers.inference.predictor import Predictor
from helpers.monitoring.recorder import Recorder
from helpers.serving.decoders import QUICK_PIXELS, Decoders
from helpers.serving.rate_limit import RateLimit
from helpers.serving.upload import read_files

MAX_IMAGES = 256  # in one request
NPY_TYPES = ("application/octet-stream", "application/x-npy")
OR_AN_ARRAY = f", or an array in the .npy format with Content-Type: {NPY_TYPES[0]}"


class Inference:
    """What every prediction route does, whatever its answer looks like.

    A request whose client leaves while it waits is taken out of the queue. `limit` is of the images of a client.

    Attributes:
        route: what a single image is submitted to, by the request id.
    """

    def __init__(self, predictor: Predictor, recorder: Recorder, limit: RateLimit | None = None) -> None:
        self.predictor, self.recorder, self.limit = predictor, recorder, limit
        self.route: Callable[[str], Callable[[np.ndarray, Future], Future]] = lambda request_id: predictor.submit
        self.decoders = Decoders()

    def is_full(self) -> bool:
        """Whether as many requests are decoded or wait for the engine as may wait."""
        return self.predictor.waiting + self.decoders.waiting >= self.predictor.queue_size

    def check_ready(self, request: Request) -> None:
        """Raises PredictorClosed where the server is about to stop."""
        if request.app.state.draining or self.predictor.closed:
            raise PredictorClosed(STOPPING)

    def check_rate(self, request: Request) -> None:
        """Counts the request for its client, as one image; raises HTTPException 429 where that is one too many."""
        if self.limit:
            self.limit.check(request)

    def check_images(self, request: Request, images: int) -> None:
        """Counts the rest of its images, once it is known how many it has."""
        if self.limit:
            self.limit.check_rest(request, images)

    async def one(self, request: Request) -> tuple[Prediction, float]:
        """The prediction for the one image in the form, and the seconds it took from having the whole body."""
        self.check_rate(request)
        body, content_type = await request.body(), request.headers.get("content-type", "")
        return await self._run(request, partial(self.start_one, content_type, body, request.state.request_id))

    def start_one(self, content_type: str, body: bytes, request_id: str, future: "Future[Prediction]") -> None:
        """Sees to it that `future` gets the prediction for the one image in the form, or what is wrong with that.

        Raises:
            QueueFull, PredictorClosed: at once, before decoding what will not be answered.
        """

        def decode(max_pixels):
            return decode_image(read_files(content_type, body)[0], max_pixels=max_pixels)

        submit = self.route(request_id)
        self._start(decode, submit, future, quick=submit == self.predictor.submit)  # a candidate's may take its time

    async def many(self, request: Request) -> tuple[list[Prediction], float]:
        """As `one`, for several files in the form, or an array in the .npy format; all by the same version."""
        self.check_rate(request)
        body, content_type = await request.body(), request.headers.get("content-type", "")

        def decode(max_pixels):
            if content_type.partition(";")[0].strip().lower() in NPY_TYPES:
                array = decode_npy(body, MAX_IMAGES)
                self.check_images(request, len(array))
                return array
            last = perf_counter() + self.predictor.deadline_s
            files, images = read_files(content_type, body, MAX_IMAGES, OR_AN_ARRAY), []
            self.check_images(request, len(files))
            for number, data in enumerate(files, 1):
                if perf_counter() > last:  # the answer was given already; large images must not go on taking time
                    raise DeadlineExceeded("decoding took too long; send fewer or smaller images")
                try:
                    images.append(decode_image(data, max_pixels=max_pixels))
                except ImageError as error:
                    if len(files) == 1:
                        raise
                    raise type(error)(f"file {number} of {len(files)}: {error}") from error
            return np.stack(images)

        return await self._run(request, partial(self._start, decode, self.predictor.submit_many))

    async def of(self, request: Request, decode: Callable[[], np.ndarray]) -> tuple[list[Prediction], float]:
        """As `many`, for the uint8 (n, 32, 32, 3) images that `decode` gives; called in a thread."""

        def count(_):
            images = decode()
            self.check_images(request, len(images))
            return images

        return await self._run(request, partial(self._start, count, self.predictor.submit_many))

    def too_late(self) -> DeadlineExceeded:
        """What a request is told whose answer did not come in time."""
        return DeadlineExceeded(f"no answer within {self.predictor.deadline_s:g} s; try again")

    def _start(self, decode, submit, future, quick=False):
        self.predictor.check_room(self.decoders.waiting)

        def decode_small():
            try:
                return decode(QUICK_PIXELS)[np.newaxis]
            except ImageTooLarge:
                self.decoders.put(decode, submit, future)
                return None

        if quick and not self.decoders.waiting and self.predictor.submit_encoded(decode_small, future):
            return
        self.decoders.put(decode, submit, future, quick=quick)

    async def _run(self, request, start: Callable[[Future], None]):
        started, future = perf_counter(), Future()
        start(future)
        try:
            async with asyncio.timeout(self.predictor.deadline_s):
                answer = await self._wait(request, asyncio.wrap_future(future))
        except TimeoutError:
            raise self.too_late() from None
        seconds = perf_counter() - started
        self.recorder.put(request.state.request_id, answer if isinstance(answer, list) else (answer,), seconds)
        return answer, seconds

    async def _wait(self, request, answer):
        if self.predictor.waiting <= self.predictor.max_batch:  # it comes at once; watching would cost more
            return await answer
        leaving = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            answer.cancel()  # takes it out of the queue
            leaving.cancel()
