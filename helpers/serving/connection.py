"""A connection to the server: uvicorn's own, with deadlines and a limit for headers, and few enough at a time."""

import httptools
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from helpers.serving.exchange import STATE
from helpers.serving.problems import RETRY, Problem
from helpers.serving.raw_answer import raw_answer
from helpers.serving.request_id import new_request_id

ARRIVAL_S = 10.0  # of headers, of the body of an exchange, and of what is left of a body after the answer
MAX_HEADER_BYTES = 64 * 2**10
MAX_CONNECTIONS = 512


class Connection(HttpToolsProtocol):
    """Answers 408 where headers take more than `ARRIVAL_S` seconds, 431 past some `MAX_HEADER_BYTES` of them.

    uvicorn would wait for ever, and gather for ever, trailers too, which are left out here. What is no HTTP is answered
    400, behind what is owed. Past `MAX_CONNECTIONS` a connection is told 503 and when to come back, whatever it asks;
    past twice as many it is closed. An offer to upgrade is ignored, which RFC 9110 allows (section 7.8): uvicorn would
    take the request for one without a body.

    A request that `serving.shedding.Shedder` takes is refused here; where it is not whole by then the connection is
    closed, for nobody would wait for the rest. One that `serving.exchange.Exchanges` begin never comes to the app.
    Neither is done for a client that does not read its answers: the app waits for that, and nothing piles up.
    """

    _is_one_too_many = False
    _refusal = None  # while a request is refused: gives the bytes, as `serving.shedding.Shedder.refuse`
    _awaited = "headers"  # or the body of an exchange, or the rest after an answer, or None: what has a deadline
    _deadline = None
    _whole = True  # no request is being read
    _unfinished = 0  # bytes since some part of a request was whole
    _deaf = False  # what comes is not read any more
    _plain_head = b""  # of a request that offers an upgrade: as it is read instead
    _running = None  # the cycle that the app answers

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > 2 * MAX_CONNECTIONS:
            transport.abort()
            return
        self._is_one_too_many = len(self.connections) > MAX_CONNECTIONS
        self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)

    def data_received(self, data):
        if self._deaf:
            return
        idle = self.timeout_keep_alive_task
        self._unset_keepalive_if_required()
        self._unfinished += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._refuse(400, "the request is not valid HTTP; check how it was written")
        if self.transport.is_closing() or self._deaf:
            self._forget_deadline()
        elif self._refusal:
            self._send_refusal(closes=True)
        elif self._unfinished > MAX_HEADER_BYTES:
            self._refuse(431, f"the request's headers have more than {MAX_HEADER_BYTES} bytes; send fewer")
        elif self._awaited and not self._deadline:  # most requests come whole, and need none
            self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)
        elif not self._awaited:
            self._forget_deadline()
            if self._whole and not self._owes_an_answer() and not self.timeout_keep_alive_task:
                again = self._unfinished and idle  # an empty line between requests is no reason to wait longer
                at = idle.when() if again else self.loop.time() + self.timeout_keep_alive
                self.timeout_keep_alive_task = self.loop.call_at(at, self.timeout_keep_alive_handler)

    def _feed(self, data):
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offered:
                head, self._plain_head = self._plain_head, b""
                data = head + data[offered.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # the one before may be done with the connection
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def on_message_begin(self):
        self._unset_keepalive_if_required()  # the request before may have ended in the same read
        super().on_message_begin()
        self._awaited, self._whole = "headers", False

    def on_header(self, name, value):
        if self._awaited == "headers":
            super().on_header(name, value)

    def on_headers_complete(self):
        self._forget_deadline()
        self._awaited, self._unfinished = None, 0
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._plain_head = _without_upgrade(self.parser, self.url, self.headers)
            return
        if self._is_one_too_many:
            self._refusal = _too_many
            return
        shedder, exchanges = self.app_state.get(STATE, (None, None))
        if shedder and not self.flow.write_paused and not self._owes_an_answer():
            if shedder.takes(self.parser.get_method(), self.url):
                self._refusal = shedder.refuse
                return
            if exchange := exchanges.begin(self):
                self.cycle, self._awaited = exchange, "body"
                return
        super().on_headers_complete()

    def on_body(self, body):
        self._unfinished = 0
        if not self._refusal:
            super().on_body(body)

    def on_message_complete(self):
        self._awaited, self._whole, self._unfinished = None, True, 0
        if self._plain_head:
            return
        if self._refusal:
            kept = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
            self._send_refusal(closes=self._is_one_too_many or not kept)
        else:
            super().on_message_complete()

    def on_response_complete(self):
        super().on_response_complete()
        if not (self._whole or self._awaited or self._owes_an_answer() or self.transport.is_closing()):
            self._awaited = "rest"  # of a body that the answer did not wait for
            self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)

    def connection_lost(self, exc):
        self._forget_deadline()
        if self._running and not self._running.response_complete:  # uvicorn tells the newest of several alone
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle, app):
        self._running = cycle
        super()._start_asgi_task(cycle, app)

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
        elif self._awaited == "rest":
            self.transport.close()
        elif self._owes_an_answer():  # to the request before, which may take its time
            self._deadline = self.loop.call_later(ARRIVAL_S, self._too_slow)
        else:
            self._refuse(408, sentence)

    def _refuse(self, status, sentence):
        """Answers the request that is being read, if it is its turn; else the connection ends behind what is owed."""
        self._forget_deadline()
        self._refusal, self._deaf = None, True
        if self._owes_an_answer() and (self._awaited == "headers" or self.pipeline):
            self.cycle.keep_alive = False
            return
        if self._awaited != "rest":
            self.transport.write(_answer(status, sentence, {}, self.server_state.default_headers))
        self.transport.close()


def _too_many(target, defaults, *, closes):
    sentence = f"{MAX_CONNECTIONS} connections are open already; try again in a second"
    return _answer(503, sentence, RETRY, defaults)


def _answer(status, sentence, headers, defaults):
    body = Problem(detail=sentence).model_dump_json().encode()
    return raw_answer(status, body, headers, new_request_id(), defaults, closes=True)


def _without_upgrade(parser, target, headers):
    """The head of a request as its sender would have written it without the offer."""
    lines = [b"%s %s HTTP/%s" % (parser.get_method(), target, parser.get_http_version().encode())]
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(token for token in value.split(b",") if token.strip().lower() != b"upgrade")
        if name != b"upgrade":
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
