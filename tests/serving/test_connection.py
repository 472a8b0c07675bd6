"""serving/connection.py: what never ends, more connections than are served, and offers that nobody takes up."""

import socket
import time
from contextlib import ExitStack

import pytest
from fastapi import FastAPI, Request

from helpers.hosting import Server
from helpers.serving import connection

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def port():
    app = FastAPI()
    app.get("/")(lambda: "here")

    @app.post("/echo")
    async def echo(request: Request):
        return {"body": (await request.body()).decode(), "headers": [name for name, _ in request.headers.items()]}

    with Server(app, port=0) as server:
        yield server.port


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def read(client):
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(65536), b"")).decode()


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_headers_that_do_not_end_are_408_in_time_and_others_are_served_meanwhile(port, monkeypatch, sent):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    started = time.monotonic()
    with connect(port) as slow, connect(port) as other:
        slow.sendall(sent)
        other.sendall(REQUEST)
        assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
        answer = read(slow)
    assert answer.startswith("HTTP/1.1 408 ")
    assert "the request's headers took more than 0.3 s; send it again" in answer
    assert 0.29 <= time.monotonic() - started < 3  # uvloop counts in whole milliseconds


def test_headers_that_trickle_are_408_too(port, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    with connect(port) as client:
        try:
            for byte in REQUEST[:-1]:
                client.sendall(bytes([byte]))
                time.sleep(0.05)
        except ConnectionError:
            pass
        assert read(client).startswith("HTTP/1.1 408 ")


def test_the_deadline_is_of_each_request_and_not_of_the_connection(port, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    with connect(port) as client:
        for _ in range(5):
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.1)
        client.sendall(REQUEST[:-2])
        time.sleep(0.1)
        client.sendall(REQUEST[-2:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_headers_without_end_are_431(port):
    with connect(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        for _ in range(66):
            client.sendall(b"x: " + b"y" * 1000 + b"\r\n")
            time.sleep(0.001)  # so that nothing is under way when the server closes: it would take the answer with it
        answer = read(client)
    assert answer.startswith("HTTP/1.1 431 ")
    assert "the request's headers have more than 65536 bytes; send fewer" in answer


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400_in_a_sentence(port, request_bytes):
    with connect(port) as client:
        client.sendall(request_bytes)
        answer = read(client)
    assert answer.startswith("HTTP/1.1 400 ")
    assert answer.endswith('{"detail":"the request is not valid HTTP; check how it was written"}')


def test_past_the_limit_connections_are_told_to_come_back_and_those_before_are_served(port, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    with ExitStack() as stack:
        first = [stack.enter_context(connect(port)) for _ in range(4)]
        for client in first:
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        with connect(port) as fifth:
            fifth.sendall(REQUEST)
            answer = read(fifth)
        assert answer.startswith("HTTP/1.1 503 ")
        assert "retry-after: 1" in answer
        assert "4 connections are open already; try again in a second" in answer
        with connect(port) as fifth:
            fifth.sendall(2 * REQUEST)
            assert read(fifth).count("HTTP/1.1 503 ") == 1
        first[0].sendall(REQUEST)
        assert first[0].recv(65536).startswith(b"HTTP/1.1 200 ")


POST = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n"


def test_trailers_are_left_out(port):
    with connect(port) as client:
        client.sendall(POST + b"Authorization: Bearer x\r\n\r\n")
        answer = client.recv(65536).decode()
    assert answer.endswith('{"body":"body","headers":["host","transfer-encoding"]}')


@pytest.mark.parametrize("line", [b"x: " + b"y" * 1000 + b"\r\n", b"y" * 1000])
@pytest.mark.parametrize("head", [POST, POST.replace(b"POST /echo", b"GET /", 1)], ids=["before", "after the answer"])
def test_trailers_without_end_end_the_connection(port, head, line):
    with connect(port) as client, pytest.raises(ConnectionError):  # noqa: PT012 - which fails is the system's affair
        client.sendall(head + b"x: ")
        for _ in range(1000):
            client.sendall(line)
            time.sleep(0.001)


def test_a_long_body_in_small_chunks_is_no_header(port):
    with connect(port) as client:
        client.sendall(POST[: POST.index(b"4\r\n")])
        for _ in range(300):
            client.sendall(b"1\r\nx\r\n" * 50)
        client.sendall(b"0\r\n\r\n")
        answer = client.recv(65536).decode()
    assert "HTTP/1.1 200 " in answer
    assert '"body":"xxx' in answer


def assert_closed_within_2_s(client, piece):
    """Sends `piece` again and again until the server has closed the connection."""
    started = time.monotonic()
    with pytest.raises(ConnectionError):  # noqa: PT012 - which of them fails is the system's affair
        for _ in range(100):
            client.sendall(piece)
            time.sleep(0.05)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("target", [b"GET /", b"GET /nowhere", b"PUT /"])
def test_a_body_that_goes_on_after_the_answer_has_its_time_and_no_more(port, monkeypatch, target):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    with connect(port) as client:
        client.sendall(target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 ")
        assert_closed_within_2_s(client, b"x")


def test_a_body_that_ends_after_the_answer_leaves_the_connection_to_the_next_request(port):
    with connect(port) as client:
        client.sendall(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nfive.")
        assert client.recv(65536).startswith(b"HTTP/1.1 404 ")
        client.sendall(b"five." + REQUEST)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("first", [REQUEST, b""], ids=["between requests", "before any"])
def test_empty_lines_keep_no_connection_open(port, monkeypatch, first):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    made = connection.Connection.connection_made

    def keep_short(self, transport):
        made(self, transport)
        self.timeout_keep_alive = 0.3

    monkeypatch.setattr(connection.Connection, "connection_made", keep_short)
    with connect(port) as client:
        if first:
            client.sendall(first)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert_closed_within_2_s(client, b"\r\n")


def test_many_requests_in_one_read_are_no_long_headers(port):
    requests = 3 * (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000)
    with connect(port) as client:
        client.sendall(REQUEST[:10])
        time.sleep(0.05)
        client.sendall(REQUEST[10:] + requests + REQUEST[:10])
        time.sleep(0.05)
        client.sendall(REQUEST[10:-2] + b"Connection: close\r\n\r\n")
        assert read(client).count("HTTP/1.1 200 ") == 5


OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"


@pytest.mark.parametrize("pieces", [1, 7, 500])
@pytest.mark.parametrize("offer", [OFFER, b"Upgrade: websocket\r\nConnection: keep-alive, upgrade\r\n", b""])
def test_an_offer_to_upgrade_is_ignored(port, caplog, offer, pieces):
    body = b"".join(b"%d." % number for number in range(200))
    post = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(body) + body
    sent = post + REQUEST[:-2] + offer + b"Connection: close\r\n\r\n"
    with connect(port) as client:
        step = -(-len(sent) // pieces)
        for at in range(0, len(sent), step):
            client.sendall(sent[at : at + step])
            time.sleep(0.001)
        answers = read(client)
    assert answers.count("HTTP/1.1 200 ") == 2
    assert f'{{"body":"{body.decode()}"' in answers
    assert not caplog.text


def test_a_tunnel_through_the_server_is_refused(port):
    with connect(port) as client:
        client.sendall(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 4")
