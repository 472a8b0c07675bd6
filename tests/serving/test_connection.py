"""serving/connection.py: headers that never end, and more connections than are served."""

import socket
import time
from contextlib import ExitStack

import pytest
from fastapi import FastAPI

from helpers.hosting import Server
from helpers.serving import connection

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def port():
    app = FastAPI()
    app.get("/")(lambda: "here")
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
