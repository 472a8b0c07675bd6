"""The service against its own OpenAPI document, over the loopback: a few examples a route, or all of ``--long``."""

import pytest
import requests
import schemathesis
from conftest import make_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks

from helpers.hosting import Server
from helpers.model_dir import resolve
from helpers.predictor import Predictor, load_model
from helpers.registry import Registry
from helpers.service import create_app
from helpers.storage import open_store

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Where a service answers whose model comes from a store."""
    folder = tmp_path_factory.mktemp("openapi")
    store = open_store(str(folder / "store"))
    registry = Registry(store, "tiny")
    version = registry.publish(make_bundle(folder / "bundle").path)
    registry.promote(version, reason="test")

    def load(model_dir):
        return load_model(resolve(store, model_dir, folder / "cache"))

    predictor = Predictor(load("models/tiny"))
    with Server(create_app(predictor, load, "models/tiny"), port=0) as server:
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


def test_every_route_answers_as_its_document_says_to_right_and_wrong_requests(url, session, count):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 21
    for operation in operations:
        strategy = st.one_of(*(operation.as_strategy(mode) for mode in GenerationMode))

        @examples(strategy, count(6, 5000))
        def check(case):
            response = case.call(session=session, timeout=10)
            case.validate_response(response, checks=CHECKS)
            assert response.elapsed < 1, case.as_curl_command()
