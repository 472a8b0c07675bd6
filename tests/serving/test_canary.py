"""A candidate that answers a share of the requests: it names itself, is judged by them, and fails none of them."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from conftest import make_bundle
from held_model import Confused, HeldModel, Insane, Slow, wait_until

from helpers.client import Client, encode_png
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.inference.source import ModelSource
from helpers.monitoring.watch import Watch
from helpers.registry import Registry
from helpers.serving.canary import Canary, canary
from helpers.serving.service import create_app

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three versions that answer alike."""
    folder = tmp_path_factory.mktemp("canary")
    return [load_model(make_bundle(folder / name, model_card=f"# {name}\n").path) for name in ("one", "two", "three")]


@contextmanager
def beside(production, candidate, share=0.5, watch=None):
    """A server whose candidate is a canary: client, app, predictor and the canary itself; `named` is the candidate."""
    predictor, alias = Predictor(production), SimpleNamespace(named=candidate)
    app = create_app(predictor, lambda model_dir: production, "models/tiny", watch=watch)
    running = Canary(predictor, lambda: alias.named.version, lambda: alias.named, share=share, poll_s=0.02)
    app.state.inference.route, app.state.shadow = running.route, running
    with Server(app, port=0) as server, running, closing(Client(server.url)) as client:
        wait_until(lambda: running._trying)
        yield SimpleNamespace(client=client, app=app, predictor=predictor, running=running, alias=alias, url=server.url)
    predictor.close()


def ask(server, count=60):
    """What `count` requests for one image each are answered, by four clients at once: each with status 200."""
    with httpx2.Client(base_url=server.url, timeout=20, verify=False) as client, ThreadPoolExecutor(4) as pool:
        files = [encode_png(image) for image in IMAGES]

        def one(number):
            return client.post("/predict", files={"file": ("image.png", files[number % len(files)])})

        replies = list(pool.map(one, range(count)))
    assert {reply.status_code for reply in replies} == {200}
    return [reply.json() for reply in replies]


def versions(replies):
    return {reply["model_version"] for reply in replies}


def test_a_share_of_the_answers_is_the_candidates_and_names_it(models):
    with beside(models[0], models[1], share=0.3) as server:
        replies = ask(server, 200)
        by_candidate = [reply for reply in replies if reply["model_version"] == models[1].version]
        assert 30 < len(by_candidate) < 95  # 60 expected, 5 standard deviations
        assert all(server.running.takes(reply["request_id"]) for reply in by_candidate), "the request id decides"
        wait_until(lambda: server.running.comparison().images == len(by_candidate))
        found = server.client.get("/candidate").body
    assert (found["candidate"], found["production"]) == (models[1].version, models[0].version)
    assert (found["agreement"], found["problem"]) == (None, "")
    assert found["confidence_candidate"] == pytest.approx(found["confidence_production"], abs=0.05)
    assert found["milliseconds_candidate"] > 0


def test_the_same_request_id_always_goes_the_same_way(models):
    running = Canary(None, None, None, share=0.25)
    taken = [running.takes(str(number)) for number in range(4000)]
    assert taken == [running.takes(str(number)) for number in range(4000)]
    assert 860 < sum(taken) < 1140


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Insane, "batches failed"),
        (Slow, "an image takes "),
        (Confused, "the mean confidence is 0.010"),
    ],
    ids=["failing", "slow", "confused"],
)
def test_a_candidate_that_is_worse_is_sent_back_with_the_reason_and_no_request_fails(models, kind, reason):
    with beside(models[0], kind(models[1])) as server:
        for _ in range(8):
            ask(server)
            if server.running.comparison().problem:
                break
        problem = server.client.get("/candidate").body["problem"]
        assert problem.startswith("sent back: ")
        assert reason in problem
        assert versions(ask(server)) == {models[0].version}, "from then on production answers all"
        time.sleep(0.1)  # some looks at the alias
        assert versions(ask(server)) == {models[0].version}, "and it is not tried again"
        server.alias.named = models[2]
        wait_until(lambda: server.running._trying)
        assert versions(ask(server)) == {models[0].version, models[2].version}, "until the alias names another one"


def test_a_candidate_that_hangs_keeps_nobody_waiting_for_long(models, monkeypatch):
    monkeypatch.setattr("helpers.serving.canary.PATIENCE_S", 0.2)
    held = HeldModel(models[1])
    with beside(models[0], held) as server:
        started = time.monotonic()
        assert versions(ask(server)) == {models[0].version}
        assert time.monotonic() - started < 5
        wait_until(lambda: "batches failed" in server.running.comparison().problem)
        held.gate.set()


def test_a_promoted_candidate_is_no_canary_any_more_even_if_production_goes_back(models):
    with beside(models[0], models[1]) as server:
        server.predictor.swap(models[1])
        assert versions(ask(server)) == {models[1].version}
        assert server.client.get("/candidate").status == 404
        server.predictor.roll_back()
        assert versions(ask(server)) == {models[0].version}


def test_drift_is_followed_on_the_answers_of_production_alone(models):
    seen = []
    watch = Watch(lambda model: seen.append(model.version))
    with beside(models[0], models[1], watch=watch) as server:
        watch.passes_by = lambda version: version != server.predictor.model.version
        assert versions(ask(server)) == {models[0].version, models[1].version}
        assert server.app.state.recorder.flush()
    assert seen == [models[0].version]


def test_the_alias_of_the_bucket_names_the_canary(models, tmp_path):
    source = ModelSource(str(tmp_path / "store"), cache=tmp_path / "cache", threads=1)
    registry, predictor = Registry(source.store, "tiny"), Predictor(models[0])
    registry.promote(registry.publish(models[1].bundle.path), alias="candidate", reason="new")
    app = create_app(predictor, source.load, "models/tiny")
    with Server(app, port=0) as server, canary(app, source, 0.5) as running:
        wait_until(lambda: running._trying)
        assert versions(ask(server)) == {models[0].version, models[1].version}
        assert app.state.recorder.watch.passes_by(models[1].version)
    predictor.close()
