"""A connection to the server: uvicorn's own, with a deadline and a limit for headers, and few enough at a time."""

from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from helpers.serving.exchange import STATE
from helpers.serving.problems import RETRY, Problem
from helpers.serving.raw_answer import raw_answer
from helpers.serving.request_id import new_request_id

ARRIVAL_S = 10.0  # of headers, and of the body of an exchange
MAX_HEADER_BYTES = 64 * 2**10
MAX_CONNECTIONS = 512


class Connection(HttpToolsProtocol):
    """Answers 408 where headers take more than `ARRIVAL_S` seconds, 431 past some `MAX_HEADER_BYTES` of them.

    uvicorn would wait for ever, and gather for ever. What is no HTTP is answered 400. Past `MAX_CONNECTIONS` a
    connection is told 503 and when to come back, whatever it asks; past twice as many it is closed. A request that
    `serving.shedding.Shedder` takes is refused here; where it is not whole by then the connection is closed, for nobody
    would wait for the rest. One that `serving.exchange.Exchanges` begin never comes to the app. Neither is done for a
    client that does not read its answers: the app waits for that, and nothing piles up.
    """

    _is_one_too_many = False
    _refusal = None  # while a request is refused: gives the bytes, as `serving.shedding.Shedder.refuse`
    _awaited = "headers"  # or the body of an exchange, or None: what has a deadline
    _deadline = None
    _header_bytes = 0

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
            return
        self._is_one_too_many = len(self.connections) > MAX_CONNECTIONS
        self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)

    def data_received(self, data):
        before = self._awaited
        super().data_received(data)
        if before == self._awaited == "headers":
            self._header_bytes += len(data)
        if self.transport.is_closing():
            self._forget_deadline()
        elif self._refusal:
            self._send_refusal(closes=True)
        elif self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the request's headers have more than {MAX_HEADER_BYTES} bytes; send fewer")
        elif self._awaited and not self._deadline:  # most requests come whole, and need none
            self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)
        elif not self._awaited:
            self._forget_deadline()

    def on_message_begin(self):
        self._unset_keepalive_if_required()  # the request before may have ended in the same read
        super().on_message_begin()
        self._awaited = "headers"

    def on_headers_complete(self):
        self._forget_deadline()
        self._awaited, self._header_bytes = None, 0
        if self._is_one_too_many:
            self._refusal = _too_many
            return
        shedder, exchanges = self.app_state.get(STATE, (None, None))
        if shedder and not self.flow.write_paused and not self._owes_an_answer():
            if shedder.takes(self.parser.get_method(), self.url) and not self.parser.should_upgrade():
                self._refusal = shedder.refuse
                return
            if exchange := exchanges.begin(self):
                self.cycle, self._awaited = exchange, "body"
                return
        super().on_headers_complete()

    def on_body(self, body):
        if not self._refusal:
            super().on_body(body)

    def on_message_complete(self):
        self._awaited = None
        if self._refusal:
            kept = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self._send_refusal(closes=self._is_one_too_many or not kept)
        else:
            super().on_message_complete()

    def connection_lost(self, exc):
        self._forget_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg):
        self._refuse(400, "the request is not valid HTTP; check how it was written")

    def _should_upgrade(self):
        return not self.transport.is_closing() and super()._should_upgrade()

    def _send_refusal(self, closes):
        refusal, self._refusal = self._refusal, None
        if self.transport.is_closing():  # one request was enough
            return
        self.transport.write(refusal(self.url, self.server_state.default_headers, closes=closes))
        if closes:
            self.transport.close()
        self.on_response_complete()

    def _owes_an_answer(self):
        return self.cycle is not None and not self.cycle.response_complete

    def _forget_deadline(self):
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self):
        sentence = f"the request's {self._awaited} took more than {ARRIVAL_S:g} s; send it again"
        if self._awaited == "body":
            self.cycle.refuse(HTTPException(408, sentence))
        elif self._owes_an_answer():  # to the request before, which may take its time
            self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)
        else:
            self._refuse(408, sentence)

    def _refuse(self, status, sentence):
        self._forget_deadline()
        self._refusal = None
        if self._awaited == "headers" and self._owes_an_answer():  # the client would take this one for that
            self.transport.close()
            return
        self.transport.write(_answer(status, sentence, {}, self.server_state.default_headers))
        self.transport.close()


def _too_many(target, defaults, *, closes):
    sentence = f"{MAX_CONNECTIONS} connections are open already; try again in a second"
    return _answer(503, sentence, RETRY, defaults)


def _answer(status, sentence, headers, defaults):
    body = Problem(detail=sentence).model_dump_json().encode()
    return raw_answer(status, body, headers, new_request_id(), defaults, closes=True)
