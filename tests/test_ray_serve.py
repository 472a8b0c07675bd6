"""deploy/ray_serve.py: served by ``serve run`` on a local Ray cluster, where Ray is installed."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import make_bundle
from requests import ConnectionError
from served import PIXELS

from helpers.client import Client
from helpers.cluster import connected
from helpers.delivery.storage import open_store
from helpers.registry import Registry
from helpers.workspace import ROOT

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")

ARGUMENTS = {"max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0.5, "watch_s": 0.2}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A store with two versions of the same network, of which neither is worse; the first one is in production."""
    folder = tmp_path_factory.mktemp("ray")
    registry = Registry(open_store((folder / "store").as_uri()), "cifar100-vgg16")
    cards = [make_bundle(folder / card, name="cifar100-vgg16", model_card=f"# {card}\n") for card in ("old", "new")]
    old, _ = (registry.publish(bundle.path) for bundle in cards)
    registry.promote(old, reason="test")
    return registry


@pytest.fixture(scope="module")
def ray_serve():
    """``ray.serve`` on a cluster of two processors, which is ended with the tests."""
    with connected() as ray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own use of pydantic
            from ray import serve

        yield SimpleNamespace(address=ray.get_runtime_context().gcs_address, status=serve.status)


@pytest.fixture(scope="module")
def service(registry, ray_serve, tmp_path_factory):
    """A client of the service, run as its file says but for port, store and scaling."""
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = yaml.safe_load((ROOT / "deploy" / "ray_serve.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= {"bucket": registry.store.url, **ARGUMENTS}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = ["serve", "run", str(folder / "serve.yaml"), "--address", ray_serve.address]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command[0])), *command[1:]],
            cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}, stdout=log, stderr=log,
        )  # fmt: skip
    client = Client(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 90
        while not ready(client):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield client
    finally:
        client.close()
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ready(client):
    try:
        return client.get("/health/ready").status == 200
    except ConnectionError:
        return False


def replicas(ray_serve):
    return ray_serve.status().applications["classifier"].deployments["Classifier"].replica_states.get("RUNNING", 0)


def wait_for(condition, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.2)


def test_the_app_is_the_same_and_nobody_changes_the_model_of_one_replica(service, registry):
    assert service.predict_single(PIXELS).body.startswith("class_")
    assert service.get("/model").body["version"] == registry.alias().version
    assert service.get("/reload_model").status == 403


def test_more_traffic_makes_more_replicas_and_all_follow_the_alias_without_a_failed_request(
    service, registry, ray_serve
):
    assert replicas(ray_serve) == 1
    new = next(version.version for version in registry.versions() if version.version != registry.alias().version)
    stop, statuses = threading.Event(), []

    def send():
        with closing(Client(service.url)) as client:
            while not stop.is_set():
                statuses.append(client.predict_single(PIXELS).status)

    with ThreadPoolExecutor(6) as pool:
        senders = [pool.submit(send) for _ in range(6)]
        try:
            wait_for(lambda: replicas(ray_serve) == 2, "a second replica")
            registry.promote(new, reason="test")
            wait_for(
                lambda: {service.get("/model").body["version"] for _ in range(10)} == {new},
                "the new version everywhere",
            )
        finally:
            stop.set()
        for sender in senders:
            sender.result()
    assert len(statuses) > 50
    assert set(statuses) == {200}
