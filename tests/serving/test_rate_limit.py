import time
from types import SimpleNamespace

import httpx2
import pytest
from conftest import make_bundle
from fastapi import HTTPException
from served import IMAGES, PNG, npy, send

from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.serving.rate_limit import RateLimit
from helpers.serving.service import create_app


def request(host):
    return SimpleNamespace(client=SimpleNamespace(host=host))


def allowed(limit, host):
    try:
        limit.check(request(host))
    except HTTPException:
        return False
    return True


def test_each_address_has_its_own_allowance():
    limit = RateLimit("2/minute")
    assert [allowed(limit, host) for host in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")] == [
        True,
        True,
        False,
        True,
    ]


def test_the_addresses_of_one_ipv6_network_share_an_allowance():
    limit = RateLimit("1/minute")
    hosts = ("2001:db8::1", "2001:db8::ffff", "2001:db8:0:1::1")
    assert [allowed(limit, host) for host in hosts] == [True, False, True]


def test_after_the_time_it_names_a_client_may_ask_again():
    limit = RateLimit("1/second")
    limit.check(request("10.0.0.1"))
    with pytest.raises(HTTPException) as refusal:
        limit.check(request("10.0.0.1"))
    assert refusal.value.status_code == 429
    assert refusal.value.detail == "more than 1 per 1 second from one address; try again in 1 s"
    assert refusal.value.headers == {"Retry-After": "1"}
    time.sleep(1)
    limit.check(request("10.0.0.1"))


def ask_for(limit, images, host="10.0.0.1"):
    limit.check(request(host))
    limit.check_rest(request(host), images)


def test_each_image_of_a_request_counts():
    limit = RateLimit("10/hour")
    ask_for(limit, 8)
    ask_for(limit, 1)
    ask_for(limit, 1)
    assert not allowed(limit, "10.0.0.1")
    assert allowed(limit, "10.0.0.2")


@pytest.mark.parametrize("second", [0.0, 20.5, 59.9])
def test_images_past_the_limit_are_refused_together_until_the_time_that_is_named(monkeypatch, second):
    now = 1_800_000_000 + second
    monkeypatch.setattr(time, "time", lambda: now)
    limit = RateLimit("10/minute")
    ask_for(limit, 8)
    for images in (4, 10):
        with pytest.raises(HTTPException) as refusal:
            ask_for(limit, images)
        wait = int(refusal.value.headers["Retry-After"])
        assert refusal.value.status_code == 429
        assert refusal.value.detail == (
            f"the {images} images of this request make more than 10 per 1 minute from one address; "
            f"try again in {wait} s or send fewer"
        )
        assert 1 <= wait <= 120
    now += wait
    ask_for(limit, 10)


def test_more_images_than_the_limit_are_413_whenever_they_come():
    with pytest.raises(HTTPException) as refusal:
        ask_for(RateLimit("10/minute"), 11)
    assert refusal.value.status_code == 413
    assert refusal.value.detail == (
        "the request has 11 images, and no more than 10 per 1 minute are taken from one address; send 10 at most"
    )


@pytest.mark.parametrize("rate", ["fast", "0/minute", "-1/minute"])
def test_another_rate_is_one_sentence(rate):
    with pytest.raises(ValueError, match=r"rate limit must .+, got '"):
        RateLimit(rate)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A server that takes three predictions an hour of each client."""
    model = load_model(make_bundle(tmp_path_factory.mktemp("rate") / "bundle").path)
    predictor = Predictor(model)
    app = create_app(predictor, lambda _: model, "models/tiny", rate_limit="3/hour")
    with Server(app, port=0) as server, httpx2.Client(base_url=server.url, verify=False) as client:
        yield client
    predictor.close()


def test_predictions_of_every_route_count_and_nothing_else_does(service):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": IMAGES[:1].ravel().tolist()}
    one, many, infer = "/predict_single", "/predict_batch", "/v2/models/tiny/infer"

    def ask():
        answers = [send(service), send(service, route=many), service.post(infer, json={"inputs": [tensor]})]
        return [answer.status_code for answer in answers], answers

    assert ask()[0] == [200, 200, 200]
    codes, answers = ask()
    assert codes == [429, 429, 429]
    assert 1 <= int(answers[0].headers["retry-after"]) <= 7200
    assert answers[0].json()["detail"].startswith("more than 3 per 1 hour from one address; try again in ")
    assert answers[2].json()["error"] == answers[0].json()["detail"]
    assert {service.get(where).status_code for where in ("/health/live", "/model", "/reload_model")} == {200}
    assert send(service, route=one).status_code == 429


@pytest.mark.parametrize(("route", "host"), [("files", "203.0.113.1"), ("array", "203.0.113.2"), ("v2", "203.0.113.3")])
def test_each_image_of_a_batch_counts_whichever_way_it_comes(service, route, host):
    def ask(count):
        address, images = {"x-forwarded-for": host}, IMAGES[:count]
        if route == "files":
            return service.post("/predict_batch", files=[("file", ("a.png", PNG))] * count, headers=address)
        if route == "array":
            return service.post(
                "/predict_batch", content=npy(images), headers=address | {"content-type": "application/octet-stream"}
            )
        tensor = {"name": "images", "datatype": "UINT8", "shape": [count, 32, 32, 3], "data": images.ravel().tolist()}
        return service.post("/v2/models/tiny/infer", json={"inputs": [tensor]}, headers=address)

    assert ask(2).status_code == 200
    answer = ask(2)
    assert answer.status_code == 429
    sentence = answer.json()["error" if route == "v2" else "detail"]
    assert sentence.startswith("the 2 images of this request make more than 3 per 1 hour from one address; try again i")
    assert int(answer.headers["retry-after"]) > 1


def test_clients_of_a_tunnel_are_told_apart_by_the_address_that_the_proxy_adds(service):
    def ask(forwarded):
        return send(service, PNG, headers={"x-forwarded-for": forwarded}).status_code

    assert [ask(f"192.0.2.{turn}, 198.51.100.7") for turn in range(4)] == [200, 200, 200, 429]
    assert ask("198.51.100.8") == 200
