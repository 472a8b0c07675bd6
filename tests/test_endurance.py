"""What the service must survive, in a quick slice; ``make test-long`` takes the full counts."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
from conftest import make_bundle
from held_model import HeldModel, wait_until

from benchmarks.load import Load, closed_loop, get, open_loop, post_file
from helpers.client import encode_png
from helpers.delivery.graph import read_weights
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.metrics import Metrics
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.recorder import Recorder
from helpers.serving.collector import seldom_collected
from helpers.serving.service import create_app
from helpers.workspace import ROOT

IMAGES = np.random.default_rng(4).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two good models, and the bundle of one that answers NaN."""
    folder = tmp_path_factory.mktemp("models")
    bundles = [make_bundle(folder / str(seed), seed) for seed in (0, 1)]
    weights = read_weights(bundles[0].model_path)
    weights["logits/bias"][3] = np.nan
    bad = make_bundle(folder / "bad", 2, weights=weights, golden=bundles[0].golden())
    return SimpleNamespace(paths=[bundle.path for bundle in bundles], bad=bad.path, first=load_model(bundles[0].path))


@pytest.fixture
def service(models):
    """A server; "0" and "1" load the good models, anything else the bad one."""
    predictor = Predictor(models.first)

    def load(name):
        return load_model(models.paths[int(name)] if name in ("0", "1") else models.bad)

    with Server(create_app(predictor, load, "0"), port=0) as server:
        yield SimpleNamespace(port=server.port, url=server.url, predictor=predictor)
    predictor.close()


def mutate(data, random):
    """`data` with some bytes changed, cut, doubled or swapped, as a damaged or hostile file would be."""
    data = bytearray(data)
    for _ in range(random.integers(1, 6)):
        at, length = sorted(random.integers(0, len(data) + 1, 2))
        kind = random.integers(4)
        if kind == 0 and len(data):
            data[at % len(data)] = random.integers(256)
        elif kind == 1:
            del data[at : at + min(length - at, 64)]
        elif kind == 2:
            data[at:at] = data[at : at + 64]
        else:
            data[at : at + 4] = random.integers(0, 256, 4, dtype=np.uint8).tobytes()
    return bytes(data)


def memory():
    """Of this process, bytes resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_mutated_images_get_an_answer_or_a_4xx_each_within_a_second(service, count):
    random, statuses, slowest = np.random.default_rng(1), Counter(), 0.0
    originals = [encode_png(image, kind=kind) for image in IMAGES for kind in ("PNG", "JPEG")]
    for _ in range(count(1, 50)):
        requests = [post_file("/predict_single", mutate(originals[i % 16], random)) for i in range(count(600, 2000))]
        with seldom_collected():  # as the command serves; a walk over all that tests have loaded takes a second
            load = asyncio.run(send_each(service.port, requests))
        statuses += load.statuses
        slowest = max(slowest, *load.latencies, *load.refused)

    assert set(statuses) <= {200, 400, 413, 415}
    assert statuses[400] > 0.1 * statuses.total()
    assert slowest < 1
    assert service.predictor.waiting == 0


async def send_each(port, requests):
    """Each request once, from four clients."""
    parts = [requests[part::4] for part in range(4)]
    loads = await asyncio.gather(*(closed_loop(port, part, 1, rounds=len(part)) for part in parts))
    for load in loads[1:]:
        loads[0].statuses += load.statuses
        loads[0].latencies += load.latencies
        loads[0].refused += load.refused
    return loads[0]


def test_swaps_under_load_a_quarter_of_them_bad_fail_nothing_and_mix_nothing(service, models, count):
    expected = [
        [f'"class_{index:02d}"'.encode() for index in load_model(path).predict(IMAGES).probabilities.argmax(1)]
        for path in models.paths
    ]
    valid = {answer for answers in expected for answer in answers}
    done, clients, swaps, resident = threading.Event(), count(8, 32), count(24, 1024), {}

    requests = [post_file("/predict_single", encode_png(image)) for image in IMAGES]

    def ask():
        total = Load()  # without the times of each answer: the memory is measured that the service takes
        while not done.is_set():
            load = asyncio.run(closed_loop(service.port, requests, clients, seconds=2, until=done))
            total.statuses += load.statuses
            total.bodies += load.bodies
        return total

    with ThreadPoolExecutor(1) as pool, httpx2.Client(base_url=service.url, timeout=60) as client:
        asking = pool.submit(ask)
        try:
            for swap in range(1, swaps + 1):
                name = "bad" if swap % 4 == 0 else str(swap % 2)
                answer = client.get("/change_model", params={"string_input": name})
                assert answer.status_code == (422 if name == "bad" else 200), answer.text
                resident[swap] = memory()
        finally:
            done.set()
        load = asking.result(60)

    assert set(load.statuses) == {200}
    assert load.statuses[200] > 2 * swaps
    assert set(load.bodies) <= valid
    if swaps > 50:
        assert resident[swaps] <= 1.05 * resident[50]


def test_many_changes_at_once_are_made_one_at_a_time(service, count):
    many = count(20, 100)
    with ThreadPoolExecutor(many) as pool, httpx2.Client(base_url=service.url, timeout=60) as client:
        codes = Counter(pool.map(lambda _: client.get("/reload_model").status_code, range(many)))

    assert set(codes) == {200, 409}
    assert send(service) == 200


def send(service):
    return httpx2.post(f"{service.url}/predict_single", files={"file": ("a.png", encode_png(IMAGES[0]))}).status_code


def settled_descriptors():
    """How many are open once that has not changed for half a second: connections of before may still be closing."""
    count, since = None, time.monotonic()
    while time.monotonic() - since < 0.5:
        if (now := len(os.listdir("/proc/self/fd"))) != count:
            count, since = now, time.monotonic()
        time.sleep(0.02)
    return count


def test_clients_that_leave_in_the_middle_leave_nothing(service, count):
    request = post_file("/predict_single", encode_png(IMAGES[0]))
    send(service)
    before = settled_descriptors()
    for cut in np.random.default_rng(2).integers(0, len(request) + 1, count(60, 1000)):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(request[:cut])

    wait_until(lambda: len(os.listdir("/proc/self/fd")) == before and service.predictor.waiting == 0)
    assert send(service) == 200


def test_past_capacity_the_rest_is_told_503_at_once_and_health_answers(models, count):
    class Slow(HeldModel):
        def predict(self, images, *, shared=False):
            time.sleep(0.02)  # four images a batch: 200 a second at most, whatever the machine
            return self.model.predict(images, shared=shared)

    predictor = Predictor(Slow(models.first), queue_size=16, max_batch=4)
    requests, seconds = [post_file("/predict_single", encode_png(image)) for image in IMAGES], count(1, 20)

    async def both(port):
        probes = open_loop(port, [get("/health/live")], 20, seconds)
        return await asyncio.gather(open_loop(port, requests, 600, seconds), probes)

    with Server(create_app(predictor, lambda _: models.first, "0"), port=0) as server:
        load, probes = asyncio.run(both(server.port))
        wait_until(lambda: predictor.waiting == 0)
        after = asyncio.run(closed_loop(server.port, requests, 1, rounds=1))
    predictor.close()

    assert set(load.statuses) == {200, 503}
    assert load.statuses[200] > 50 * seconds
    assert load.statuses[503] > 50 * seconds
    assert set(probes.statuses) == {200}
    assert set(after.statuses) == {200}


def test_memory_stays_flat_over_predictions(service, count):
    requests = [post_file("/predict_single", encode_png(image)) for image in IMAGES]
    resident = []
    for _ in range(5):
        asyncio.run(closed_loop(service.port, requests, 8, rounds=count(50, 2500)))
        resident.append(memory())

    assert resident[-1] <= 1.05 * resident[1]


def test_a_server_that_is_told_to_stop_finishes_what_it_has(tmp_path, count):
    requests = [post_file("/predict_single", encode_png(image)) for image in IMAGES]
    for trial in range(count(1, 200)):
        process = subprocess.Popen(
            [sys.executable, "-m", "helpers.hosting", "--port", "0"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"SUITE_BUCKET": (tmp_path / "store").as_uri()},
        )
        with process, ThreadPoolExecutor(1) as pool:
            port = int(process.stdout.readline().rpartition(":")[2])
            asking = pool.submit(lambda: asyncio.run(closed_loop(port, requests, 4, rounds=200)))  # noqa: B023
            time.sleep(0.3 + 0.002 * trial)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            load = asking.result(60)
        assert set(load.statuses) <= {200, 0}  # 0: the connection was closed while the server stopped, or refused after
        assert load.statuses[200] > 0


def test_a_log_that_is_read_while_it_is_written_keeps_memory_flat_and_loses_nothing(models, tmp_path, count):
    predictor = Predictor(models.first)
    predictions = predictor.submit_many(IMAGES).result(10)
    predictor.close()
    rounds, resident = count(2_000, 12_500), []  # of eight predictions
    with closing(PredictionLog(tmp_path / "log.db", max_rows=20_000)) as log:
        recorder = Recorder(log, Metrics(), interval_s=0.05)
        with recorder.running():
            for part in range(5):
                for number in range(rounds // 5):
                    while recorder.waiting > 2000:
                        time.sleep(0.002)
                    recorder.put(f"{part}-{number}", predictions, 0.002)
                recorder.flush()
                resident.append(memory())
        with LogReader(log.path) as reader:
            assert reader.last == rounds * 8
    assert recorder.lost == 0
    assert resident[-1] <= 1.05 * resident[1]


def test_a_server_that_is_killed_loses_a_second_of_its_log_at_most_and_says_how_much(tmp_path, count):
    requests, log, environment = [post_file("/predict", encode_png(IMAGES[0]))], tmp_path / "log.db", dict(os.environ)
    environment["SUITE_BUCKET"] = (tmp_path / "store").as_uri()
    kept = 0
    for trial in range(count(1, 50)):
        command = [sys.executable, "-m", "helpers.hosting", "--port", "0", "--log", str(log)]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as process:
            port = int(process.stdout.readline().rpartition(":")[2])
            load = asyncio.run(closed_loop(port, requests, 2, seconds=2 + 0.01 * trial))
            process.kill()
        with closing(PredictionLog(log)) as after:
            said, written = after.gap, rows_of(log) - kept
        kept += written
        missing = int(said.split(", and ")[1].split()[0]) if said else 0
        answered = load.statuses[200]
        assert answered <= written + missing <= answered + 2  # two may have been under way
        assert missing <= answered / 2  # what a second brings
        assert written > 0


def rows_of(log):
    with LogReader(log) as reader:
        return reader.last
