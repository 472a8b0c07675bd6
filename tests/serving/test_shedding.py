"""serving/shedding.py: while as many wait as may, predictions are refused at once and everything else is answered."""

import json
import socket
import time
from contextlib import contextmanager

import pytest
from held_model import HeldModel, wait_until
from served import PNG, read_answer, send, serve

from benchmarks.load import get, post_file
from helpers.serving.connection import Connection
from helpers.serving.shedding import Shedder


@pytest.fixture
def full(shop):
    """A service whose engine is held and whose queue of two is full."""
    held, request = HeldModel(shop.models[0]), post_file("/predict_single", PNG)
    with serve(shop, held, limits={"queue_size": 2}) as service, ask(service, request) as running:
        wait_until(lambda: held.sizes)
        with ask(service, request) as second, ask(service, request) as third:
            wait_until(lambda: service.predictor.waiting == 2)
            service.waiting = running, second, third
            yield service
            held.gate.set()


@contextmanager
def ask(service, request):
    """A connection that has sent `request`."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(request)
        yield connection


def answer(connection):
    """Status, headers and decoded body of the next answer."""
    status, headers, body = read_answer(connection)
    return status, headers, json.loads(body)


@pytest.mark.parametrize("route", ["/predict_single", "/predict?top_k=3", "/predict_batch"])
def test_a_prediction_is_refused_with_when_to_come_back(full, route):
    with ask(full, post_file(route, PNG)) as connection:
        status, headers, body = answer(connection)
        assert (status, headers["retry-after"]) == (503, "1")
        assert body == {"detail": "too many requests are waiting already; try again in a second"}
        assert len(headers["x-request-id"]) == 32
        assert headers["cache-control"] == "no-store"
        connection.sendall(get("/health/live"))
        assert answer(connection)[0] == 200, "the connection was kept"


def test_everything_else_is_answered(full):
    assert full.client.get("/health/ready").status_code == 200
    assert full.client.get("/model").status_code == 200
    assert full.client.get("/predict").status_code == 405
    assert full.client.post("/predict_nothing").status_code == 404


def test_what_the_shedder_leaves_alone_is_refused_by_the_app(full):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    response = full.client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json() == {"error": "2 images are waiting already; try again in a second"}


def test_refusals_are_counted_by_route(full):
    for _ in range(3):
        assert send(full.client).status_code == 503
    assert 'suite_requests_total{route="/predict_single",status="503"} 3.0' in full.client.get("/metrics").text


def test_a_refused_request_that_is_not_whole_ends_its_connection(full):
    request = post_file("/predict_single", PNG)
    with ask(full, request[:-10]) as connection:
        status, headers, _ = answer(connection)
        assert (status, headers["connection"]) == (503, "close")
        assert connection.recv(1) == b"", "the server closed it"


def test_so_does_one_on_a_connection_that_was_kept(full):
    request = post_file("/predict_single", PNG)
    with ask(full, request) as connection:
        assert answer(connection)[0] == 503
        connection.sendall(request[:-10])
        assert answer(connection)[1]["connection"] == "close"
        assert connection.recv(1) == b"", "the server closed it"


def test_requests_that_come_together_are_answered_in_their_order(full):
    with ask(full, 2 * post_file("/predict_single", PNG) + get("/health/live")) as connection:
        file = connection.makefile("rb")
        assert [answer(file)[0] for _ in range(3)] == [503, 503, 200]


def test_none_overtakes_the_answer_before_it_on_its_connection(full):
    running = full.waiting[0]
    running.sendall(post_file("/predict_single", PNG))
    full.predictor.model.gate.set()
    file = running.makefile("rb")
    (first, _, name), (second, _, body) = answer(file), answer(file)
    assert first == 200
    assert isinstance(name, str)
    assert second == 200 or "waiting" in body["detail"]


@pytest.mark.parametrize("asks", [b"HTTP/1.0", b"HTTP/1.1\r\nConnection: close"])
def test_a_connection_ends_where_its_client_asks_for_it(full, asks):
    with ask(full, post_file("/predict_single", PNG).replace(b"HTTP/1.1", asks, 1)) as connection:
        assert answer(connection)[1]["connection"] == "close"
        assert connection.recv(1) == b"", "the server closed it"


def test_those_that_wait_are_answered_and_then_there_is_room(full):
    running, second, third = full.waiting
    full.predictor.model.gate.set()
    assert [answer(connection)[0] for connection in (running, second, third)] == [200, 200, 200]
    assert send(full.client).status_code == 200


def test_only_predictions_are_taken_and_only_while_it_is_full():
    told = []
    shedder = Shedder(lambda: True, lambda *arguments: told.append(arguments))
    assert shedder.takes(b"POST", b"/predict_single")
    assert shedder.takes(b"POST", b"/predict?top_k=1")
    assert not shedder.takes(b"GET", b"/predict_single")
    assert not shedder.takes(b"POST", b"/predict_single/more")
    assert not shedder.takes(b"POST", b"/change_model")
    assert not Shedder(lambda: False, told.append).takes(b"POST", b"/predict_single")


def test_a_request_that_offers_another_protocol_is_refused_as_others(full):
    request = post_file("/predict", PNG).replace(b"\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", 1)
    with ask(full, request) as connection:
        assert answer(connection)[0] == 503


def test_a_request_behind_a_refused_one_may_take_longer_than_a_connection_is_kept_idle(shop, monkeypatch):
    made = Connection.connection_made

    def keep_short(self, transport):
        made(self, transport)
        self.timeout_keep_alive = 0.2

    def load(model_dir):
        time.sleep(0.6)
        return shop.load(model_dir)

    monkeypatch.setattr(Connection, "connection_made", keep_short)
    held, request = HeldModel(shop.models[0]), post_file("/predict_single", PNG)
    with serve(shop, held, limits={"queue_size": 1}, load=load) as service, ask(service, request):
        wait_until(lambda: held.sizes)
        with ask(service, request):
            wait_until(lambda: service.predictor.waiting == 1)
            with ask(service, request + get("/reload_model")) as both:
                file = both.makefile("rb")
                assert [read_answer(file)[0] for _ in range(2)] == [503, 200]
            held.gate.set()
