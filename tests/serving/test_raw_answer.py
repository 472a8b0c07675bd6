"""serving/raw_answer.py: what is written at the connection is HTTP as a client reads it."""

import http.client
import io

import pytest

from helpers.serving.raw_answer import raw_answer


def parse(answer):
    """As Python's own client reads it."""

    class Socket:
        def makefile(self, *_):
            return io.BytesIO(answer)

    response = http.client.HTTPResponse(Socket())
    response.begin()
    return response


@pytest.mark.parametrize(("status", "phrase"), [(200, "OK"), (408, "Request Timeout"), (503, "Service Unavailable")])
def test_status_headers_and_body_arrive(status, phrase):
    answer = raw_answer(status, b'"caf\xc3\xa9"', {"Retry-After": "1"}, "an id", [(b"date", b"today")], closes=False)
    response = parse(answer)
    assert (response.status, response.reason, response.read()) == (status, phrase, b'"caf\xc3\xa9"')
    sent = {"content-type": "application/json", "retry-after": "1", "x-request-id": "an id", "date": "today"}
    assert {name: response.headers[name] for name in sent} == sent
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "connection" not in response.headers


def test_an_answer_says_that_it_is_the_last():
    assert parse(raw_answer(200, b"1", {}, "an id", closes=True)).headers["connection"] == "close"
