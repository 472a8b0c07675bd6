"""The service against its own OpenAPI document, over the loopback: a few examples a route, or all of ``--long``."""

import gc
import os
import sys
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
import schemathesis
from conftest import make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import open_store
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.watch import Watch, make_detector, make_monitor
from helpers.registry import Registry
from helpers.serving.service import create_app

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All that the service may open."""
    return tmp_path_factory.mktemp("openapi")


@pytest.fixture(scope="module")
def url(folder):
    """Where a service answers whose model comes from a store."""
    store = open_store(str(folder / "store"))
    registry = Registry(store, "tiny")
    version = registry.publish(make_bundle(folder / "bundle").path)
    registry.promote(version, reason="test")

    def load(model_dir):
        return load_model(resolve(store, model_dir, folder / "cache"))

    predictor = Predictor(load("models/tiny"))
    watch = Watch(make_detector, make_monitor)
    with (
        closing(PredictionLog(folder / "predictions.db")) as log,
        Server(create_app(predictor, load, "models/tiny", log=log, watch=watch), port=0) as server,
    ):
        yield server.url
    predictor.close()


@pytest.fixture
def session():
    with requests.Session() as session:
        session.trust_env = False
        yield session


def examples(strategy, count):
    """A decorator that calls a function with `count` examples of `strategy`, the same ones each time."""
    checked = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    return lambda function: checked(given(strategy)(function))()


@contextmanager
def uncollected():
    """Without Python's collector: for what made some 10,000 examples it stops client and service for up to a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def test_every_route_answers_as_its_document_says_to_right_and_wrong_requests(url, session, count):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 21
    for operation in operations:
        strategy = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))

        @examples(strategy, count(6, 5000))
        def check(case):
            with uncollected():
                response = case.call(session=session, timeout=10)
            case.validate_response(response, checks=CHECKS)
            assert response.elapsed < 1, case.as_curl_command()


PIECES = ("models", "tiny", "versions", "aliases", "production", "..", ".", "~", "%2e%2e", "\x00", "\\", "etc")
URLS = ("", "/", "//", "gs://other/", "hf://x/", "file:///", "http://192.0.2.1/", "models/", "models/tiny/versions/")


@pytest.fixture(scope="module")
def watched():
    """A list that holds, while it is not None in ``watched[0]``, what this process opens and connects to."""
    watched = [None]

    def note(event, arguments):
        if watched[0] is not None and event in ("open", "os.listdir", "os.scandir", "socket.connect"):
            watched[0].append((event, arguments[1] if event == "socket.connect" else arguments[0]))

    sys.addaudithook(note)  # for good: Python has no way to take one away
    return watched


def test_no_model_dir_leads_out_of_the_bucket(url, session, watched, folder, count):
    paths = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=7).map("/".join)
    where = st.tuples(st.sampled_from(URLS), paths).map("".join) | st.text(max_size=80)
    statuses, port = Counter(), int(url.rpartition(":")[2])
    session.post(f"{url}/change_model", timeout=10)  # FastAPI reads the source of a route once

    @examples(where, count(300, 20_000))
    def check(where):
        watched[0] = []
        response = session.post(f"{url}/change_model", params={"string_input": where}, timeout=10)
        opened, watched[0] = watched[0], None
        statuses[response.status_code] += 1
        assert response.elapsed.total_seconds() < 1
        if response.status_code == 200:
            assert where in ("models/tiny", "models/tiny/", "models/tiny/aliases/production")
            return
        for event, target in opened:
            if event == "socket.connect":
                assert target == ("127.0.0.1", port)
            else:
                assert isinstance(target, int) or Path(os.fsdecode(target)).is_relative_to(folder), target

    assert set(statuses) <= {200, 400, 404}
    assert statuses[400] > statuses.total() / 2
