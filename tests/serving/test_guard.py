import json
import socket
import time
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from held_model import wait_until

from helpers.hosting import Server
from helpers.serving.guard import RequestFrame
from helpers.serving.problems import FAILED, body_too_large, handle_errors


async def measure(request: Request) -> dict:
    return {"bytes": len(await request.body())}


async def fail() -> None:
    raise OSError("/srv/secret/place")


async def fail_half_way() -> StreamingResponse:
    async def begin():
        yield b"the first half"
        raise OSError("/srv/secret/place")

    return StreamingResponse(begin())


@pytest.fixture(scope="module")
def address():
    app, answered = FastAPI(), []
    handle_errors(app)
    app.post("/")(measure)
    app.post("/v2/models/tiny/infer")(measure)
    app.get("/fail")(fail)
    app.get("/v2/fail")(fail)
    app.get("/half")(fail_half_way)
    app.add_middleware(RequestFrame, max_body_bytes=100, body_s=0.3, answered=lambda *told: answered.append(told))
    with Server(app, port=0) as server:
        yield SimpleNamespace(port=server.port, answered=answered)


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


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize(("path", "key"), [("/fail", "detail"), ("/v2/fail", "error")])
def test_what_nobody_thought_of_is_a_500_that_is_counted_logged_once_and_bears_the_headers(address, path, key, caplog):
    address.answered.clear()
    answer = talk(address, get(path))
    assert answer.startswith("HTTP/1.1 500 ")
    assert answer.endswith(f'{{"{key}":"{FAILED}"}}')
    for header in ("x-request-id: ", "cache-control: no-store", "x-content-type-options: nosniff"):
        assert answer.count(header) == 1
    wait_until(lambda: address.answered)
    assert [told[:2] for told in address.answered] == [(path, 500)]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["a request failed"]


def test_an_answer_that_fails_half_way_is_cut_off_and_logged_once(address, caplog):
    address.answered.clear()
    answer = talk(address, get("/half"))
    assert answer.startswith("HTTP/1.1 200 ")
    assert "the first half" in answer
    assert FAILED not in answer
    wait_until(lambda: address.answered and caplog.records)
    assert [told[:2] for told in address.answered] == [("/half", 200)]
    assert len([record for record in caplog.records if record.exc_info]) == 1
