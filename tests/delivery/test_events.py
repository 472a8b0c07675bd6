"""Events reach a webhook as CloudEvents, signed, in time or not at all, and never stand in the way of what happened."""

import hashlib
import hmac
import json
import logging
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import make_bundle

from helpers.delivery import events
from helpers.delivery.storage import open_store
from helpers.registry import Registry
from helpers.workspace import ROOT


@contextmanager
def webhook(*statuses, delay=0.0):
    """A server that keeps what it is sent; it answers with `statuses` in order, then with 204."""
    answers, received = list(statuses), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, dict(self.headers), body))
            time.sleep(delay)
            status = answers.pop(0) if answers else 204
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook/s3cret", received
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(events, "PAUSES_S", (0.01, 0.01))
    for name in (events.URL, events.SECRET, events.DISPATCH_URL, events.DISPATCH_TOKEN):
        monkeypatch.delenv(name, raising=False)
    yield
    events.wait()


@pytest.fixture
def seen():
    found = []
    events.observers.append(found.append)
    yield found
    events.observers.remove(found.append)


def test_an_event_is_a_cloud_event_with_all_that_the_standard_asks_for(monkeypatch):
    with webhook() as (url, received):
        monkeypatch.setenv(events.URL, url)
        events.announce(events.PROMOTED, "tiny", "v1", reason="better")
        events.wait()
    ((path, headers, body),) = received
    value = json.loads(body)
    assert path == "/hook/s3cret"
    assert headers["Content-Type"] == "application/cloudevents+json"
    assert {name: value[name] for name in ("specversion", "source", "type", "subject", "data")} == {
        "specversion": "1.0",
        "source": "/models/tiny",
        "type": "cifar100-suite.model.promoted",
        "subject": "v1",
        "data": {"reason": "better"},
    }
    assert value["id"]
    assert value["time"].endswith("+00:00")
    assert "X-Hub-Signature-256" not in headers


def test_with_a_secret_the_body_is_signed(monkeypatch):
    with webhook() as (url, received):
        monkeypatch.setenv(events.URL, url)
        monkeypatch.setenv(events.SECRET, "k")
        events.announce(events.DRIFT, "tiny", "v1")
        events.wait()
    ((_, headers, body),) = received
    assert headers["X-Hub-Signature-256"] == "sha256=" + hmac.new(b"k", body, hashlib.sha256).hexdigest()


@pytest.mark.parametrize(("statuses", "tries"), [
    ((), 1), ((503,), 2), ((503, 429), 3), ((503,) * 9, 3), ((404,) * 9, 1), ((302,) * 9, 1),
])  # fmt: skip
def test_what_may_pass_is_tried_three_times_and_what_was_refused_once(monkeypatch, caplog, statuses, tries):
    with webhook(*statuses) as (url, received):
        monkeypatch.setenv(events.URL, url)
        events.announce(events.PUBLISHED, "tiny", "v1")
        events.wait()
    assert len(received) == tries
    assert len({json.loads(body)["id"] for _, _, body in received}) == 1
    assert bool(caplog.messages) == (len(statuses) == 9)
    if caplog.messages:
        assert caplog.messages == [
            f"event published of version v1 was not delivered to 127.0.0.1: it answered {statuses[0]}"
        ]


def test_a_webhook_that_is_slow_or_away_holds_nobody_up_and_is_said_without_its_path(monkeypatch, caplog):
    monkeypatch.setattr(events, "TIMEOUT_S", 0.1)
    with webhook(delay=0.5) as (url, received):
        for place in (url, "http://127.0.0.1:9/hook/s3cret"):
            monkeypatch.setenv(events.URL, place)
            started = time.monotonic()
            events.announce(events.PUBLISHED, "tiny", "v1")
            assert time.monotonic() - started < 0.1
            events.wait()
    assert len(received) == 3
    assert [message for message in caplog.messages if "was not delivered to 127.0.0.1: " in message] == caplog.messages
    assert len(caplog.messages) == 2
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", ["file:///etc/passwd", "hook", "http://"])
def test_an_address_of_another_kind_is_refused(monkeypatch, caplog, url):
    monkeypatch.setenv(events.URL, url)
    events.announce(events.PUBLISHED, "tiny", "v1")
    events.wait()
    assert "must be http:// or https:// with a host" in caplog.text


def test_a_drift_alone_starts_the_workflows_of_a_repository(monkeypatch):
    with webhook() as (url, received):
        monkeypatch.setenv(events.DISPATCH_URL, url)
        monkeypatch.setenv(events.DISPATCH_TOKEN, "t0ken")
        events.announce(events.PROMOTED, "tiny", "v1")
        events.announce(events.DRIFT, "tiny", "v1", report={"images": 3})
        events.wait()
    ((_, headers, body),) = received
    value = json.loads(body)
    assert headers["Authorization"] == "Bearer t0ken"
    assert value["event_type"] == "drift"
    assert value["client_payload"]["event"]["data"] == {"report": {"images": 3}}


def test_an_observer_that_fails_is_logged_and_the_others_hear_of_it(seen, caplog):
    events.observers.insert(0, lambda event: 1 / 0)
    try:
        events.announce(events.PROMOTED, "tiny", "v1")
    finally:
        events.observers.pop(0)
    assert [event.version for event in seen] == ["v1"]
    assert "an observer did not take the event promoted of version v1" in caplog.text


def test_a_registry_tells_what_it_did_and_nothing_twice(tmp_path, seen):
    registry = Registry(open_store(str(tmp_path / "store")), "tiny")
    bundles = [make_bundle(tmp_path / str(seed), seed).path for seed in (0, 1)]
    first, second = (registry.publish(bundle) for bundle in bundles)
    registry.publish(bundles[0])
    registry.promote(first, reason="first")
    registry.promote(first, reason="again")
    registry.promote(second, reason="better", who="jo")
    registry.rollback(reason="worse")
    assert [(event.kind, event.version) for event in seen] == [
        ("published", first),
        ("published", second),
        ("promoted", first),
        ("promoted", second),
        ("rolled-back", first),
    ]
    told = {name: seen[3].data[name] for name in ("alias", "previous", "reason", "who")}
    assert told == {"alias": "production", "previous": first, "reason": "better", "who": "jo"}
    assert (seen[4].data["left"], seen[4].data["reason"]) == (second, "worse")


def test_a_command_delivers_before_it_ends(tmp_path, monkeypatch):
    registry = Registry(open_store(str(tmp_path / "store")), "tiny")
    version = registry.publish(make_bundle(tmp_path / "bundle").path)
    command = [sys.executable, "-m", "helpers.registry", "--bucket", (tmp_path / "store").as_uri(), "--name", "tiny"]
    with webhook(503) as (url, received):
        monkeypatch.setenv(events.URL, url)
        done = subprocess.run([*command, "promote", version, "--reason", "x"], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0
    assert [json.loads(body)["type"] for _, _, body in received] == ["cifar100-suite.model.promoted"] * 2


def test_a_secret_file_that_others_may_read_fails_the_event_and_not_the_promotion(tmp_path, monkeypatch, caplog):
    file = tmp_path / "url"
    file.write_text("http://127.0.0.1:9/")
    file.chmod(0o644)
    monkeypatch.setenv(f"{events.URL}_FILE", str(file))
    with caplog.at_level(logging.ERROR):
        events.announce(events.PROMOTED, "tiny", "v1")
        events.wait()
    assert "the event promoted of version v1 could not be sent" in caplog.text
