"""A prediction from the bytes of its request to those of its answer, at the connection and beside the app.

What an app does for a request (a task, middleware, routing, messages in and out) costs the interpreter half of what the
engine needs for the image.
"""

from collections.abc import Callable
from concurrent.futures import Future
from time import perf_counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from helpers.inference.prediction import Prediction
from helpers.serving.inference import Inference
from helpers.serving.problems import Problem, describe
from helpers.serving.raw_answer import raw_answer
from helpers.serving.request_id import new_request_id

STATE = "exchanges"  # where the lifespan leaves them for `serving.connection`
MAX_BYTES = 64 * 2**10  # of a body; larger ones go to the app, which sees to how many are under way

Render = Callable[[Prediction, str, float], bytes]  # of a prediction, its request id and its seconds


class Exchanges:
    """Knows which requests need no app, and begins them.

    These are POST to one of the routes exactly, without a query, with a body of known and moderate length. Where
    clients are counted, all go to the app.

    Args:
        renders: the body of a route's answer.
        answered, max_body_bytes: as `serving.guard.RequestFrame` has them.
    """

    def __init__(
        self,
        inference: Inference,
        renders: dict[bytes, Render],
        answered: Callable[[str, int, float], None],
        max_body_bytes: int = MAX_BYTES,
    ) -> None:
        self.inference, self.renders, self.answered = inference, renders, answered
        self._max_bytes = min(MAX_BYTES, max_body_bytes)

    def begin(self, connection: HttpToolsProtocol) -> "Exchange | None":
        """The exchange of the request whose headers `connection` has, if it is one of them."""
        parser, fields = connection.parser, dict(connection.headers)
        render, length = self.renders.get(connection.url), fields.get(b"content-length", b"")
        if render is None or parser.get_method() != b"POST" or self.inference.limit:
            return None
        if not length.isdigit() or int(length) > self._max_bytes or b"expect" in fields:
            return None
        if len(fields) < len(connection.headers):  # which of two counts is for the app to say
            return None
        return Exchange(self, connection, render, fields.get(b"content-type", b"").decode("latin-1"))


class Exchange:
    """One request and its answer, in the place of uvicorn's RequestResponseCycle, with the attributes of that.

    uvicorn sets `message_event` when something has come of the request, its end or the client's; here that is what
    moves the exchange on.
    """

    def __init__(self, exchanges: Exchanges, connection: HttpToolsProtocol, render: Render, content_type: str) -> None:
        self._exchanges, self._connection, self._render = exchanges, connection, render
        self._route, self._content_type = connection.url.decode(), content_type
        self._id, self._timer = new_request_id(), None
        self._begun = self._started = perf_counter()
        self._future: Future[Prediction] = Future()
        self.body, self.more_body, self.disconnected, self.response_complete = b"", True, False, False
        self.keep_alive = connection.parser.get_http_version() != "1.0" and connection.parser.should_keep_alive()

    @property
    def message_event(self) -> "Exchange":
        return self

    def set(self) -> None:
        """Something came."""
        if self.disconnected:
            if future := self._end():  # the answer may have met a connection that was being lost
                future.cancel()  # takes it out of the queue
        elif not self.more_body and not self.response_complete:
            self._start()

    def refuse(self, error: Exception) -> None:
        """Answers what `error` says, and ends the connection where the request is not whole."""
        self._end().cancel()
        self._future = Future()
        self._future.set_exception(error)
        self.keep_alive = self.keep_alive and not self.more_body
        self._answer()

    def _start(self):
        inference, loop = self._exchanges.inference, self._connection.loop

        def wake(future):
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._answer)

        self._started = perf_counter()
        self._timer = loop.call_later(inference.predictor.deadline_s, lambda: self.refuse(inference.too_late()))
        self._future.add_done_callback(wake)
        try:
            inference.start_one(self._content_type, bytes(self.body), self._id, self._future)
        except Exception as error:  # noqa: BLE001 - described to the client
            self.refuse(error)

    def _end(self):
        """Takes the future away, whose callback leads back here: the collector would have to find each such circle."""
        if self._timer:
            self._timer.cancel()
        future, self._future = self._future, None
        return future

    def _answer(self):
        if self._future is None or not self._future.done():  # the client has left, or it was refused
            return
        if self._connection.transport.is_closing():  # what came after the request was no HTTP
            self._end()
            return
        seconds = perf_counter() - self._started
        try:
            prediction = self._end().result()
            status, body, headers = 200, self._render(prediction, self._id, seconds), {}
            self._exchanges.inference.recorder.put(self._id, (prediction,), seconds)
        except Exception as error:  # noqa: BLE001 - described to the client, and logged where it is unknown
            status, sentence, headers = describe(error)
            body = Problem(detail=sentence).model_dump_json().encode()
        connection, self.response_complete = self._connection, True
        defaults, closes = connection.server_state.default_headers, not self.keep_alive
        connection.transport.write(raw_answer(status, body, headers, self._id, defaults, closes=closes))
        self._exchanges.answered(self._route, status, perf_counter() - self._begun)
        if closes:
            connection.transport.close()
        connection.on_response_complete()
