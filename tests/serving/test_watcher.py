"""A server that follows its alias: forward within a poll, back by itself from what is worse, no answer lost."""

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from conftest import make_bundle
from fake_gcs import FakeGCS
from held_model import Confused, Insane, Slow, wait_until

from helpers.client import Client, encode_png
from helpers.delivery.garbage import gc
from helpers.delivery.graph import read_weights
from helpers.delivery.lease import leased_versions
from helpers.delivery.signature import PUBLIC_KEY
from helpers.delivery.storage import StorageUnavailable, open_store
from helpers.hosting import Server
from helpers.inference.predictor import Predictor
from helpers.inference.source import ModelSource
from helpers.inference.swap import Swapper
from helpers.registry import Registry
from helpers.serving.service import create_app
from helpers.serving.watcher import Watcher, follow

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
MODEL_DIR = "models/tiny"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Three that answer alike, one that answers NaN, and one that answers otherwise than its golden images say."""
    folder = tmp_path_factory.mktemp("watcher")
    good = [make_bundle(folder / name, model_card=f"# {name}\n") for name in ("one", "two", "three")]
    weights = read_weights(good[0].model_path)
    weights["logits/bias"][3] = np.nan
    nan = make_bundle(folder / "nan", 3, weights=weights, golden=good[0].golden())
    wrong = make_bundle(folder / "wrong", 4, golden=good[0].golden())
    return SimpleNamespace(good=good, nan=nan, wrong=wrong)


def make_server(url, cache):
    """A predictor that serves production, with a watcher that looks when it is told to; `wrap` spoils a version."""
    source, wrap = ModelSource(url, model_dir=MODEL_DIR, cache=cache, threads=1), {}

    def load(model_dir):
        model = source.load(model_dir)
        server.loads.append(model.version)
        return wrap.get(model.version, lambda model: model)(model)

    server = SimpleNamespace(wrap=wrap, loads=[], load=load)
    server.predictor = Predictor(load(MODEL_DIR))
    server.swapper = Swapper(server.predictor, load, MODEL_DIR)
    server.watcher = Watcher(server.swapper, open_store(url, patience_s=0.5), poll_s=0.05)
    server.predictor.listeners.add(server.watcher.scores)
    return server


@pytest.fixture(scope="module")
def published(bundles, tmp_path_factory):
    """A file:// and a gs:// store with all bundles published and the first in production: their contents, the versions.

    Each test gets a copy: to publish takes longer than most of what is tested.
    """
    folder, versions = tmp_path_factory.mktemp("published"), []
    with FakeGCS() as gcs, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
        for url in (str(folder), "gs://bucket/suite"):
            with closing(open_store(url)) as store:
                registry = Registry(store, "tiny")
                versions = [registry.publish(bundle.path) for bundle in (*bundles.good, bundles.nan, bundles.wrong)]
                registry.promote(versions[0], reason="first")
    return SimpleNamespace(folder=folder, objects=gcs.buckets["bucket"], versions=versions)


@pytest.fixture(params=["file", "gs"])
def shop(request, tmp_path, published):
    """A registry with all bundles published and the first in production, and ``server()``."""
    url = {"file": str(tmp_path / "store"), "gs": "gs://bucket/suite"}[request.param]
    if request.param == "gs":
        request.getfixturevalue("gcs").buckets["bucket"] |= published.objects
    else:
        shutil.copytree(published.folder, url)
    store, versions, servers = open_store(url, patience_s=2.0), published.versions, []

    def server():
        servers.append(make_server(url, tmp_path / "cache"))
        return servers[-1]

    registry = Registry(store, "tiny")
    yield SimpleNamespace(registry=registry, server=server, versions=versions, nan=versions[3], wrong=versions[4])
    for each in servers:
        each.predictor.close()
        each.watcher.store.close()
    store.close()


def ask(server, count=60):
    """The versions that answer `count` images one after the other; the scorebook knows of all."""
    versions = [server.predictor.submit(image).result(10).version for image in IMAGES[:count]]
    time.sleep(0.01)  # the last batch is told after its answer is given
    return set(versions)


def test_it_takes_what_the_alias_points_to_and_says_what_it_serves(shop):
    server, (first, second, *_) = shop.server(), shop.versions
    server.watcher.look()
    assert leased_versions(shop.registry.store, "tiny") == {first}
    shop.registry.promote(second, reason="better")
    server.watcher.look()
    assert ask(server, 1) == {second}
    assert (server.watcher.trial.version, server.watcher.trial.before) == (second, first)
    assert leased_versions(shop.registry.store, "tiny") == {first, second}
    shop.registry.rollback(reason="no")
    server.watcher.look()
    assert ask(server, 1) == {first}
    assert server.loads == [first, second]  # the way back is from memory


def test_a_version_that_is_as_good_stands_its_trial(shop):
    server, second = shop.server(), shop.versions[1]
    clock = [0.0]
    server.watcher._clock = lambda: clock[0]
    ask(server)
    shop.registry.promote(second, reason="as good")
    server.watcher.look()
    ask(server)
    server.watcher.look()
    assert server.watcher.trial
    clock[0] = 301
    server.watcher.look()
    assert server.watcher.trial is None
    assert server.predictor.model.version == shop.registry.alias().version == second


@pytest.mark.parametrize("kind", ["nan", "wrong"])
def test_a_version_that_is_refused_leaves_the_alias_and_is_not_tried_again(shop, kind):
    server, bad, first = shop.server(), getattr(shop, kind), shop.versions[0]
    shop.registry.promote(bad, reason="untested")
    server.watcher.look()
    assert ask(server, 1) == {first}
    alias = shop.registry.alias()
    assert (alias.version, alias.who) == (first, "watcher")
    assert alias.reason.startswith(f"{bad} sent back: it is refused: ")
    assert bad in server.watcher.refused
    before = shop.registry.store.list()
    server.watcher.look()
    assert shop.registry.store.list() == before


def test_a_refused_version_that_stays_in_the_alias_is_tried_and_told_once_for_each_move(shop, monkeypatch, caplog):
    server, calls = shop.server(), []
    monkeypatch.setattr(Registry, "rollback", lambda *_, **__: (_ for _ in ()).throw(StorageUnavailable("read only")))
    load = server.swapper.load
    server.swapper.load = lambda model_dir: calls.append(model_dir) or load(model_dir)
    shop.registry.promote(shop.nan, reason="untested")
    for _ in range(3):
        server.watcher.look()
    assert len(calls) == caplog.text.count("the alias cannot be moved back yet: read only") == 1
    gc(shop.registry)  # writes nothing that looks like a move
    shop.registry._aliases.let_go("production", set(), 5)
    server.watcher.look()
    assert len(calls) == 1
    shop.registry.promote(shop.wrong, reason="another")
    server.watcher.look()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("kind", "images", "reason"),
    [
        (Slow, 12, r"an image takes \S+ ms, \S+ ms before"),
        (Confused, 40, r"the mean confidence is 0\.010, \S+ before"),
    ],
    ids=["slow", "confused"],
)
def test_a_version_that_does_worse_is_gone_from_server_and_alias(shop, kind, images, reason):
    server, (first, second, *_) = shop.server(), shop.versions
    ask(server)
    server.wrap[second] = kind
    shop.registry.promote(second, reason="looks good")
    server.watcher.look()
    assert ask(server, images) == {second}
    server.watcher.look()
    assert ask(server, 1) == {first}
    alias = shop.registry.alias()
    assert (alias.version, alias.who, alias.previous) == (first, "watcher", None)
    assert alias.reason.startswith(f"{second} sent back: ")
    assert alias.reason == f"{second} sent back: {server.watcher.refused[second]}"
    server.watcher.look()
    assert server.predictor.model.version == first


def test_a_version_that_fails_while_it_serves_fails_no_request_and_leaves_the_alias(shop):
    server, (first, second, *_) = shop.server(), shop.versions
    server.wrap[second] = Insane
    shop.registry.promote(second, reason="looks good")
    server.watcher.look()
    assert server.predictor.model.version == second
    assert ask(server, 5) == {first}
    server.watcher.look()
    assert shop.registry.alias().reason == (
        f"{second} sent back: it failed while it served: probabilities must be finite; 1 of 100 are not"
    )
    assert shop.registry.alias().version == first


def test_of_two_servers_one_moves_the_alias_back_and_both_are_back(shop):
    servers, (first, second, *_) = [shop.server(), shop.server()], shop.versions
    shop.registry.promote(second, reason="looks good")
    for server in servers:
        server.wrap[second] = Insane
        server.watcher.look()
        ask(server, 1)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda server: server.watcher.look(), servers))
    for server in servers:
        server.watcher.look()
        assert server.predictor.model.version == first
    alias = shop.registry.alias()
    assert (alias.version, alias.history) == (first, ())


def test_what_people_do_is_left_as_it_is(shop):
    server, (first, second, third, *_) = shop.server(), shop.versions
    shop.registry.promote(second, reason="better")
    server.watcher.look()
    server.swapper.roll_back()  # as /rollback_model does
    server.watcher.look()
    assert server.predictor.model.version == first
    assert shop.registry.alias().version == second
    shop.registry.promote(third, reason="better still")
    server.watcher.look()
    assert server.predictor.model.version == third
    server.swapper.change(f"models/tiny/versions/{first}")  # as /change_model does: it names a version, and is kept
    shop.registry.promote(second, reason="again")
    server.watcher.look()
    assert server.predictor.model.version == first


def test_a_way_back_that_people_took_is_not_put_on_trial(shop):
    server, (_, second, third, *_) = shop.server(), shop.versions
    server.wrap[second] = Confused
    for version in (second, third):
        shop.registry.promote(version, reason="better")
    server.watcher.look()
    assert ask(server) == {third}
    shop.registry.rollback(reason="the new one says rude words")
    server.watcher.look()
    assert ask(server) == {second}
    server.watcher.look()
    assert shop.registry.alias().version == server.predictor.model.version == second


def test_a_version_is_leased_before_it_is_fetched(shop):
    server, (first, second, *_), leased = shop.server(), shop.versions, []
    load = server.swapper.load
    server.swapper.load = lambda place: leased.append(leased_versions(shop.registry.store, "tiny")) or load(place)
    shop.registry.promote(second, reason="better")
    server.watcher.look()
    assert leased == [{first, second}]


def test_a_bundle_that_is_not_signed_for_this_server_stays_in_the_alias(shop, monkeypatch, tmp_path):
    server, (first, second, *_) = shop.server(), shop.versions
    monkeypatch.setenv(PUBLIC_KEY, str(tmp_path / "none.pem"))
    shop.registry.promote(second, reason="better")
    server.watcher.look()
    assert server.predictor.model.version == first
    assert shop.registry.alias().version == second
    assert "SUITE_PUBLIC_KEY" in server.watcher.refused[second]


def test_an_account_that_may_only_read_follows_all_the_same(shop, monkeypatch, caplog):
    server, second = shop.server(), shop.versions[1]
    shop.registry.promote(second, reason="better")
    monkeypatch.setattr(server.watcher.store, "write", lambda *_, **__: (_ for _ in ()).throw(StorageUnavailable("no")))
    for _ in range(3):
        server.watcher.look()
    assert server.predictor.model.version == second
    assert caplog.text.count("cannot say what is served here: no") == 1


@pytest.mark.parametrize("shop", ["gs"], indirect=True)
def test_while_the_bucket_is_away_the_last_good_model_serves_and_one_poll_catches_up(shop, gcs):
    server, (first, second, *_) = shop.server(), shop.versions
    server.watcher.look()
    with gcs.away("unavailable"):
        for _ in range(3):
            with pytest.raises(StorageUnavailable):
                server.watcher.look()
            assert ask(server, 5) == {first}
    shop.registry.promote(second, reason="better")
    server.watcher.look()
    assert ask(server, 1) == {second}


@pytest.mark.parametrize("shop", ["gs"], indirect=True)
def test_a_way_back_does_not_wait_for_the_bucket_but_the_alias_does(shop, gcs):
    server, (first, second, *_) = shop.server(), shop.versions
    ask(server)
    server.wrap[second] = Confused
    shop.registry.promote(second, reason="looks good")
    server.watcher.look()
    ask(server, 40)
    with gcs.away("unavailable"):
        with pytest.raises(StorageUnavailable):
            server.watcher.look()
        assert ask(server, 1) == {first}
    assert shop.registry.alias().version == second
    server.watcher.look()
    assert shop.registry.alias().version == first


@pytest.mark.parametrize("shop", ["file"], indirect=True)
def test_over_http_a_new_version_answers_within_three_seconds_and_no_request_fails(shop, count):
    server, stop, seen = shop.server(), threading.Event(), []
    app = create_app(server.predictor, server.load, MODEL_DIR)
    watcher = follow(app.state.swapper, shop.registry.store.url, 1.0)

    def keep_asking(url):
        client = Client(url)
        while not stop.is_set():
            reply = client.predict_single(IMAGES[0])
            seen.append((reply.status, client.get("/model").body["version"]))
        client.close()

    with Server(app, port=0) as running, ThreadPoolExecutor(2) as pool, watcher:
        asking = [pool.submit(keep_asking, running.url) for _ in range(2)]
        for version in (shop.versions[1], shop.versions[2], shop.versions[0])[: count(1, 3)]:
            started = time.monotonic()
            shop.registry.promote(version, reason="next")
            wait_until(lambda version=version: seen and seen[-1][1] == version)
            assert time.monotonic() - started < 3
        stop.set()
        for each in asking:
            each.result(10)
    assert {status for status, _ in seen} == {200}
    assert len(seen) > 10
    leases = shop.registry.store.list("models/tiny/servers/")
    assert leases == [], [json.loads(shop.registry.store.read(info.key).data) for info in leases]


@pytest.mark.parametrize("shop", ["gs"], indirect=True)
@pytest.mark.parametrize("kind", ["refused", "unavailable", "stall"])
def test_after_ten_minutes_without_the_bucket_one_poll_catches_up_and_no_prediction_failed(
    shop, gcs, kind, count, caplog
):
    first, second, *_ = shop.versions
    shop.registry.promote(second, reason="better")
    alias = "models/tiny/aliases/production.json"
    promoted = shop.registry.store.read(alias).data
    shop.registry.rollback(reason="not yet")
    server, stop, seen = shop.server(), threading.Event(), []
    app = create_app(server.predictor, server.load, MODEL_DIR)

    def keep_asking(url):
        image = {"file": ("image.png", encode_png(IMAGES[0]))}
        with httpx2.Client(base_url=url, timeout=20) as client:
            while not stop.wait(count(0.01, 0.1)):
                reply = client.post("/predict", files=image)
                seen.append((reply.status_code, reply.json()["model_version"]))

    following = follow(app.state.swapper, shop.registry.store.url, 1.0)
    with Server(app, port=0) as running, ThreadPoolExecutor(1) as pool, following:
        asking = pool.submit(keep_asking, running.url)
        try:
            wait_until(lambda: leased_versions(shop.registry.store, "tiny") == {first})
            with gcs.away(kind):
                time.sleep(count(2, 600))
                wait_until(lambda: "cannot follow the alias" in caplog.text)  # a look waits for its patience first
                gcs.put("bucket", f"suite/{alias}", promoted, {}, {})
                assert seen[-1] == (200, first)
            back = time.monotonic()
            wait_until(lambda: seen[-1][1] == second)
            seconds = time.monotonic() - back
        finally:
            stop.set()
        asking.result(20)
    print(f"caught up after {seconds:.2f} s")
    assert seconds < 1.1 + 1  # until the next look, which one under way does not put off, and to fetch and load
    assert set(seen) == {(200, first), (200, second)}
    assert caplog.text.count("cannot follow the alias") == caplog.text.count("the alias can be followed again") == 1


@pytest.mark.parametrize("shop", ["file"], indirect=True)
def test_looks_go_on_as_before_while_the_bucket_is_away(shop, monkeypatch, caplog):
    watcher, looks = shop.server().watcher, []

    def read(key):
        looks.append(time.monotonic())
        raise StorageUnavailable("no route")

    monkeypatch.setattr(watcher.store, "read", read)
    with watcher:
        wait_until(lambda: len(looks) == 9)
    assert looks[-1] - looks[0] < 3  # 0.4 and what else the machine does; 12 if each waited twice as long
    assert caplog.text.count("cannot follow the alias: no route; the model goes on serving") == 1


@pytest.mark.parametrize("shop", ["file"], indirect=True)
def test_what_cannot_be_fetched_is_tried_ever_more_rarely(shop, monkeypatch, caplog):
    server, begun = shop.server(), []
    look = server.watcher.look

    def note():
        begun.append(time.monotonic())
        look()

    def load(model_dir):
        raise StorageUnavailable("no room")

    monkeypatch.setattr(server.watcher, "look", note)
    server.swapper.load = load
    shop.registry.promote(shop.versions[1], reason="better")
    with server.watcher:
        wait_until(lambda: len(begun) == 6)
    assert (np.diff(begun) > 0.85 * server.watcher.poll_s * 2 ** np.arange(5)).all()
    assert caplog.text.count("cannot follow the alias: no room; the model goes on serving") == 1


def test_a_poll_takes_some_time():
    with pytest.raises(ValueError, match="poll_s must be above 0, got 0"):
        Watcher(None, None, poll_s=0)
