"""serving/exchange.py: predictions beside the app are answered as the app answers them, whatever a client does."""

import http.client
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from held_model import HeldModel, wait_until
from PIL import Image
from served import PIXELS, PNG, bomb, encode, read_answer, send, serve

from benchmarks.load import get, post, post_file
from helpers.serving import connection
from helpers.serving.exchange import MAX_BYTES, Exchanges

FORM = "multipart/form-data; boundary=boundary"
WHOLE = post_file("/predict_single", PNG)


@pytest.fixture(scope="module")
def service(shop):
    with serve(shop) as service:
        yield service


@pytest.fixture
def begun(monkeypatch):
    """Whether each request so far was taken away from the app."""
    taken, begin = [], Exchanges.begin

    def note(self, connection):
        exchange = begin(self, connection)
        taken.append(exchange is not None)
        return exchange

    monkeypatch.setattr(Exchanges, "begin", note)
    return taken


@contextmanager
def connect(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        yield client


def ask(service, request):
    with connect(service) as client:
        client.sendall(request)
        return read_answer(client)


def by_app(request):
    """The same request, with a query, which keeps it from being taken."""
    target = request.split(b" ", 2)[1]
    return request.replace(target, target + b"?by=app", 1)


REQUESTS = {
    "PNG": WHOLE,
    "JPEG": post_file("/predict_single", encode(Image.fromarray(PIXELS), "JPEG")),
    "more pixels than are decoded beside others": post_file("/predict_single", encode(Image.new("RGB", (600, 400)))),
    "more pixels than are taken": post_file("/predict_single", bomb(20_000)),
    "cut off": post_file("/predict_single", PNG[:-20]),
    "no image": post_file("/predict_single", b"no image"),
    "nothing": post_file("/predict_single", b""),
    "two files": post_file("/predict_single", PNG + b"\r\n" + WHOLE[WHOLE.index(b"--boundary\r\n") :][:-16] + PNG),
    "another field": WHOLE.replace(b'name="file"', b'name="pile"'),
    "no form": post("/predict_single", PNG, "image/png"),
    "no type": post("/predict_single", PNG, "x").replace(b"Content-Type: x\r\n", b""),
    "no boundary": post("/predict_single", PNG, "multipart/form-data"),
    "a damaged form": post("/predict_single", b"--boundary\r\nno", FORM),
    "no body": post("/predict_single", b"", FORM),
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("route", [b"/predict_single", b"/predict"])
def test_the_answer_is_that_of_the_app(service, begun, name, route):
    request = REQUESTS[name].replace(b"/predict_single", route, 1)
    (status, headers, body), of_app = ask(service, request), ask(service, by_app(request))
    assert begun == [True, False]
    assert (status, set(headers)) == (of_app[0], set(of_app[1]))
    if status == 200 and route == b"/predict":
        found, expected = json.loads(body), json.loads(of_app[2])
        assert found.pop("request_id") == headers["x-request-id"]
        assert 0 < found.pop("milliseconds") < 10_000
        assert found == {key: expected[key] for key in found}
    else:
        assert body == of_app[2]
    different = {"x-request-id", "date", "content-length"}
    assert {k: v for k, v in headers.items() if k not in different} == {
        k: v for k, v in of_app[1].items() if k not in different
    }


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/predict_single"),
        by_app(WHOLE),
        WHOLE.replace(b"/predict_single", b"/predict_batch", 1),
        post_file("/predict_single", PNG + bytes(MAX_BYTES)),
        WHOLE.replace(b"Host", b"Expect: 100-continue\r\nHost", 1),
        WHOLE.replace(b"Host", b"Content-Type: text/plain\r\nHost", 1),
        b"POST /predict_single HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["GET", "query", "other route", "large", "100-continue", "one header twice", "chunked"],
)
def test_all_else_goes_to_the_app(service, begun, request_bytes):
    with connect(service) as client:
        client.sendall(request_bytes)
        assert client.recv(1), "there is an answer"
    assert begun == [False]


def test_where_clients_are_counted_all_go_to_the_app(shop, begun):
    with serve(shop, rate_limit="1/minute") as service:
        assert [send(service.client).status_code for _ in range(2)] == [200, 429]
    assert begun == [False, False]


def test_a_request_may_come_byte_by_byte(service, begun):
    with connect(service) as client:
        for at in range(0, len(WHOLE), 97):
            client.sendall(WHOLE[at : at + 97])
            time.sleep(0.001)
        assert read_answer(client)[0] == 200
    assert begun == [True]


def test_requests_sent_at_once_are_answered_in_their_order(shop, begun):
    held = HeldModel(shop.models[0])
    with serve(shop, held) as service, connect(service) as client:
        client.sendall(WHOLE + get("/health/live") + post_file("/predict_single", b"no image") + WHOLE)
        wait_until(lambda: held.sizes)
        time.sleep(0.05)
        held.gate.set()
        file = client.makefile("rb")
        assert [read_answer(file)[0] for _ in range(4)] == [200, 200, 415, 200]


@pytest.mark.parametrize("asks", [b"HTTP/1.0", b"HTTP/1.1\r\nConnection: close"])
def test_a_connection_ends_where_its_client_asks_for_it(service, begun, asks):
    with connect(service) as client:
        client.sendall(WHOLE.replace(b"HTTP/1.1", asks, 1))
        file = client.makefile("rb")
        status, headers, _ = read_answer(file)
        assert (status, headers["connection"]) == (200, "close")
        assert file.read() == b""
    assert begun == [True]


def test_a_body_that_does_not_end_is_408_in_time_and_counted(service, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    started = time.monotonic()
    with connect(service) as client:
        client.sendall(WHOLE[:-10])
        file = client.makefile("rb")
        status, headers, body = read_answer(file)
        assert (status, headers["connection"], file.read()) == (408, "close", b"")
    assert json.loads(body) == {"detail": "the request's body took more than 0.3 s; send it again"}
    assert 0.29 <= time.monotonic() - started < 3
    counted = 'suite_requests_total{route="/predict_single",status="408"} 1.0'
    assert counted in service.client.get("/metrics").text


def test_a_body_in_time_is_not_held_against_the_answer(shop, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.3)
    held = HeldModel(shop.models[0])
    with serve(shop, held) as service, connect(service) as client:
        client.sendall(WHOLE[:-10])
        time.sleep(0.1)
        client.sendall(WHOLE[-10:])
        wait_until(lambda: held.sizes)
        time.sleep(0.4)
        held.gate.set()
        assert read_answer(client)[0] == 200


def test_the_time_of_a_body_does_not_begin_with_the_connection(service, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.4)
    with connect(service) as client:
        for part in (WHOLE[:30], WHOLE[30:-10], WHOLE[-10:]):
            time.sleep(0.16)
            client.sendall(part)
        assert read_answer(client)[0] == 200


def test_headers_behind_a_request_may_wait_for_its_answer(shop, monkeypatch):
    monkeypatch.setattr(connection, "ARRIVAL_S", 0.2)
    held = HeldModel(shop.models[0])
    with serve(shop, held) as service, connect(service) as client:
        client.sendall(WHOLE + b"GET /health/l")
        wait_until(lambda: held.sizes)
        time.sleep(0.5)
        held.gate.set()
        file = client.makefile("rb")
        assert [read_answer(file)[0] for _ in range(2)] == [200, 408]


@pytest.mark.parametrize("more", [b"", WHOLE])
def test_what_is_no_http_behind_requests_ends_the_connection_behind_their_answers(shop, caplog, more):
    held = HeldModel(shop.models[0])
    with serve(shop, held) as service, connect(service) as client:
        client.sendall(WHOLE + more + b"\x16\x03\x01\x02\r\n\r\n")
        wait_until(lambda: held.sizes)
        client.sendall(WHOLE)  # nobody reads it
        held.gate.set()
        file = client.makefile("rb")
        assert [read_answer(file)[0] for _ in range(1 + bool(more))] == [200] * (1 + bool(more))
        assert file.read() == b""
        assert send(service.client).status_code == 200
    assert not caplog.text


@pytest.mark.parametrize("more", [b"", get("/model")])
def test_a_client_that_leaves_amid_its_requests_is_no_error(shop, caplog, more):
    held = HeldModel(shop.models[0])
    with serve(shop, held) as service:
        with connect(service) as client:
            client.sendall(by_app(post_file("/predict_single", PNG + bytes(500_000))) + more)
            wait_until(lambda: held.sizes)
        time.sleep(0.1)
        held.gate.set()
        assert send(service.client).status_code == 200
    assert not caplog.text


def test_a_client_that_is_lost_the_moment_its_answer_comes_disturbs_nothing(shop, caplog, monkeypatch):
    made, lost = connection.Connection.connection_made, []

    def note(self, transport):
        made(self, transport)
        lost.append(self)

    monkeypatch.setattr(connection.Connection, "connection_made", note)
    held = HeldModel(shop.models[0])

    def meet():
        held.gate.set()
        time.sleep(0.2)  # the answer is there, and the loop has not come to it
        lost[0].transport.abort()

    with serve(shop, held) as service, connect(service) as client:
        client.sendall(WHOLE)
        wait_until(lambda: held.sizes)
        lost[0].loop.call_soon_threadsafe(meet)
        with suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert send(service.client).status_code == 200
    assert "Exception in callback" not in caplog.text


def test_a_client_that_does_not_read_is_left_to_the_app_which_waits_for_it(service, begun, monkeypatch):
    made = connection.Connection.connection_made

    def pause(self, transport):
        made(self, transport)
        self.flow.write_paused = True

    monkeypatch.setattr(connection.Connection, "connection_made", pause)
    assert ask(service, WHOLE)[0] == 200
    assert begun == []


def test_past_the_limit_of_connections_predictions_too_are_told_to_come_back(shop, monkeypatch, begun):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 2)
    with serve(shop) as service, connect(service) as first, connect(service) as second:
        for client in (first, second):
            client.sendall(WHOLE)
            assert read_answer(client)[0] == 200
        status, headers, _ = ask(service, WHOLE)
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert (len(headers["x-request-id"]), headers["cache-control"]) == (32, "no-store")
    assert begun == [True, True]


def test_the_limit_of_a_body_is_that_of_the_app(shop):
    with serve(shop, max_body_bytes=1000) as service:
        assert ask(service, WHOLE)[0] == ask(service, by_app(WHOLE))[0] == 413


def test_what_is_on_its_way_is_answered_before_the_server_stops(shop):
    held = HeldModel(shop.models[0])
    with ExitStack() as stack, ThreadPoolExecutor(1) as pool:
        with serve(shop, held) as service:
            client = stack.enter_context(connect(service))
            client.sendall(WHOLE)
            wait_until(lambda: held.sizes)
            pool.submit(lambda: (time.sleep(0.3), held.gate.set()))
        status, headers, _ = read_answer(client)
    assert (status, headers["connection"]) == (200, "close")


def test_what_nobody_expects_is_500_and_in_the_log_alone(shop, caplog):
    class Broken(HeldModel):
        def predict(self, images, *, shared=False):
            raise ZeroDivisionError("a secret")

    with serve(shop, Broken(shop.models[0])) as service:
        response = send(service.client)
    assert (response.status_code, response.json()) == (
        500,
        {"detail": "the server failed on this request; its log says why"},
    )
    assert "a secret" in caplog.text


def test_an_answer_is_valid_http_with_the_headers_of_all_answers(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.request("POST", "/predict_single", WHOLE.partition(b"\r\n\r\n")[2], {"Content-Type": FORM})
        response = connection.getresponse()
        assert (response.status, response.reason) == (200, "OK")
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["date"]
        assert json.loads(response.read()).startswith("class_")
    finally:
        connection.close()


def test_answers_are_right_for_each_of_many_clients_at_once(service, shop):
    images = np.random.default_rng(3).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    expected = shop.models[0].predict(images).probabilities.argmax(1)
    with ThreadPoolExecutor(16) as pool:
        bodies = pool.map(
            lambda image: ask(service, post_file("/predict_single", encode(Image.fromarray(image))))[2], images
        )
    assert [json.loads(body) for body in bodies] == [f"class_{index:02d}" for index in expected]
