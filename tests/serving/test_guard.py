import json
import socket
import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request

from helpers.hosting import Server
from helpers.serving.guard import RequestFrame
from helpers.serving.problems import body_too_large, handle_errors


async def measure(request: Request) -> dict:
    return {"bytes": len(await request.body())}


@pytest.fixture(scope="module")
def address():
    app = FastAPI()
    handle_errors(app)
    app.post("/")(measure)
    app.post("/v2/models/tiny/infer")(measure)
    app.add_middleware(RequestFrame, max_body_bytes=100, body_s=0.3)
    with Server(app, port=0) as server:
        yield SimpleNamespace(port=server.port)


def talk(address, *parts, pause=0.0):
    """Sends the parts with a pause after each and returns all that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", address.port), timeout=5) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except ConnectionError:
            pass  # the server has said what it had to say
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


def head(*fields, path="/"):
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", *fields, "", "")).encode()


def test_a_body_within_the_limits_arrives_whole(address):
    request = head("Content-Length: 100", "Connection: close") + bytes(100)
    assert talk(address, request).endswith('{"bytes":100}')


@pytest.mark.parametrize(
    "parts",
    [
        (head("Content-Length: 101"),),
        (head("Content-Length: 9223372036854775807"),),
        (head("Transfer-Encoding: chunked"), b"60\r\n" + bytes(96) + b"\r\n", b"60\r\n" + bytes(96) + b"\r\n"),
    ],
)
def test_a_body_over_the_limit_is_413_and_ends_the_connection(address, parts):
    answer = talk(address, *parts)
    assert answer.startswith("HTTP/1.1 413 ")
    assert body_too_large(100) in answer
    assert "x-content-type-options: nosniff" in answer


@pytest.mark.parametrize(("path", "key"), [("/", "detail"), ("/v2/models/tiny/infer", "error")])
@pytest.mark.parametrize(
    ("field", "body"), [("Content-Length: 101", b""), ("Transfer-Encoding: chunked", b"65\r\n" + bytes(101) + b"\r\n")]
)
def test_a_body_over_the_limit_is_told_in_the_words_of_its_protocol(address, path, key, field, body):
    answer = talk(address, head(field, path=path), body)
    assert json.loads(answer.partition("\r\n\r\n")[2]) == {key: body_too_large(100)}


def test_a_body_that_trickles_is_408_and_ends_the_connection(address):
    start = time.monotonic()
    answer = talk(address, head("Content-Length: 100"), *[b"x"] * 8, pause=0.1)
    assert answer.startswith("HTTP/1.1 408 ")
    assert "the request body took more than 0.3 s; send it again" in answer
    assert time.monotonic() - start < 2
