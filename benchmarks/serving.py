"""Serving on a processor: this suite's service beside the original's way and its peers, and all beside the bare engine.

    python -m benchmarks.serving          about 20 minutes on two cores; --help lists the options

The arms alternate (A B B A) for each number of connections, each warmed first; medians with bootstrap 95 % intervals.
While one is asked the others' processes are stopped, for even those that nobody asks take something of the processors.
Clients send the next request when they have the answer (closed loop), and share the processors with the servers, so a
server's own processor time is measured beside requests per second. Nothing is pinned: a server kept off the client's
processor would have one of two left, and what is asked is what all of them give. Overload is an open loop: requests
come by chance, twice as many a second as the server can answer, whatever becomes of those before.
"""

import argparse
import asyncio
import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

import httpx2
import numpy as np
import uvloop

from benchmarks.load import Load, closed_loop, get, open_loop
from benchmarks.measuring import conclude, summarise
from benchmarks.servers import ARMS, NotStarted, Running, asleep, cpu_seconds, running
from helpers.client import encode_png
from helpers.data.dataset import load_dataset
from helpers.data.images import decode_image
from helpers.inference.loader import LoadedModel, load_model
from helpers.workspace import ROOT

RESULT = Path(__file__).parent / "results" / "serving.json"
KINDS = ("PNG", "JPEG")


def measure_engine(model: LoadedModel, files: list[bytes], repeats: int) -> dict:
    """The bare engine on decoded files: milliseconds of one image, and processor milliseconds an image in batches."""
    measured = {"one_ms": [], "batch_cpu_ms": [], "batch_ms": []}
    for _ in range(repeats):
        times = []
        for data in files:
            started = time.perf_counter()
            model.predict(decode_image(data)[np.newaxis])
            times.append(time.perf_counter() - started)
        measured["one_ms"].append(float(np.median(times)) * 1000)
        best = []
        for size in (8, 16, 32):
            part = (files * size)[: 8 * size]
            model.predict(np.stack([decode_image(data) for data in part[:size]]))  # its first batch of a size is slow
            started, cpu = time.perf_counter(), time.process_time()
            for at in range(0, len(part), size):
                model.predict(np.stack([decode_image(data) for data in part[at : at + size]]))
            spent = (time.process_time() - cpu, time.perf_counter() - started)
            best.append(tuple(seconds * 1000 / len(part) for seconds in spent))
        cpu_ms, ms = min(best)
        measured["batch_cpu_ms"].append(cpu_ms)
        measured["batch_ms"].append(ms)
    return {name: summarise(values) for name, values in measured.items()} | {"engine": model.precision}


def measure_loads(servers: dict[str, Running], files: list[bytes], connections: int, options) -> dict:
    """Each server under `connections` closed-loop clients, in turns."""
    samples = {name: [] for name in servers}
    requests = {name: [ARMS[name].encode(data) for data in files] for name in servers}
    for repeat in range(options.repeats + 1):  # the first warms
        for name in list(servers)[:: -1 if repeat % 2 else 1]:
            with asleep(server for other, server in servers.items() if other != name):
                before, own = cpu_seconds(servers[name].pid), time.process_time()
                load = uvloop.run(closed_loop(servers[name].port, requests[name], connections, options.seconds))
                own, cpu = time.process_time() - own, cpu_seconds(servers[name].pid) - before
            if repeat:
                samples[name].append(_sample(load, cpu, own))
    return {name: _summarise(values) for name, values in samples.items()}


def measure_overload(port: int, requests: list[bytes], seconds: float, repeats: int) -> dict:
    """Twice as many requests a second as were answered just before, and a health probe all the while.

    The probe is a process that does nothing else; capacity is that of 64 clients in a closed loop.
    """
    samples, statuses = [], Counter()
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        elsewhere.submit(_probe, port, 0.1).result()  # it has started
        for _ in range(repeats):
            capacity = uvloop.run(closed_loop(port, requests, 64, seconds)).as_dict()["requests_per_second"]
            probes = elsewhere.submit(_probe, port, seconds)
            before = time.process_time()
            load = uvloop.run(open_loop(port, requests, 2 * capacity, seconds)).as_dict()
            client = (time.process_time() - before) / seconds
            statuses.update(load["statuses"])
            goodput = load["requests_per_second"] / capacity
            sample = {"capacity": capacity, "goodput": goodput, "client_processors": client}
            sample |= {"live_p99": probes.result()["ms"]["p99"], "refused_p99": load["refused_ms"]["p99"] or 0.0}
            samples.append(sample)
    return {key: summarise([sample[key] for sample in samples]) for key in samples[0]} | {"statuses": dict(statuses)}


def _probe(port, seconds):
    rate = 100  # of fewer in a few seconds the 99th percentile would be the slowest
    return uvloop.run(open_loop(port, [get("/health/live")], rate, seconds, seed=1)).as_dict()


def measure_swaps(port: int, requests: list[bytes], swaps: int) -> dict:
    """The model loaded anew `swaps` times under eight clients: seconds of each, and what the clients saw meanwhile."""

    async def both():
        done, seconds = threading.Event(), []
        asking = asyncio.create_task(closed_loop(port, requests, 8, until=done))
        async with httpx2.AsyncClient(timeout=60) as client:
            for _ in range(swaps):
                started = time.perf_counter()
                (await client.get(f"http://127.0.0.1:{port}/reload_model")).raise_for_status()
                seconds.append(time.perf_counter() - started)
        done.set()
        return seconds, await asking

    seconds, load = uvloop.run(both())
    return {"seconds": summarise(seconds), **load.as_dict()}


def run(options) -> dict:
    """All measurements, as the JSON file holds them."""
    model, images = load_model(ROOT / "model"), load_dataset(options.data).test.images[:64]
    files = {kind: [encode_png(image, kind=kind) for image in images] for kind in KINDS}
    right = model.labels.fine[model.predict(images[:1]).probabilities.argmax()]
    result = {
        "benchmark": "serving",
        "engine": {kind: measure_engine(model, files[kind], options.repeats) for kind in KINDS},
        "start_s": {},
        "missing": {},
        "loads": json.loads(options.output.read_text())["loads"] if options.add else {},
    }
    with ExitStack() as stack:
        servers = {}
        for name in options.arms:
            try:
                servers[name] = stack.enter_context(running(ARMS[name], files["PNG"][0], right, options.peer_engine))
            except NotStarted as error:
                result["missing"][name] = str(error)
            else:
                result["start_s"][name] = servers[name].start_s
        for kind in options.kinds:
            for connections in options.connections:
                print(f"{kind}, {connections} connections ...", file=sys.stderr)
                result["loads"][f"{kind} {connections}"] = measure_loads(servers, files[kind], connections, options)
    if "ours" in servers:
        requests = [ARMS["ours"].encode(data) for data in files["PNG"]]
        with running(ARMS["ours"], files["PNG"][0], right) as server:  # the others take a little even when not asked
            result["overload"] = measure_overload(server.port, requests, 2 * options.seconds, options.repeats)
            result["swap"] = measure_swaps(server.port, requests, options.repeats)
    return result


def print_table(result: dict) -> None:
    """A row an arm and load, what was not measured and why, and the figures that have a bound."""
    environment = result["environment"]
    print(f"{environment['cpu']}, {environment['cpus']} CPUs; peers on {result['options']['peer_engine']}")
    print(f"{'':<32}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'CPU ms':>10}{'errors':>8}{'starts s':>10}")
    for load, arms in result["loads"].items():
        for name, found in arms.items():
            cells = [found[key]["median"] for key in ("requests_per_second", "p50", "p99", "cpu_ms")]
            numbers = "{:>12.1f}{:>10.2f}{:>10.2f}{:>10.3f}".format(*cells)
            start = f"{result['start_s'][name]:>10.2f}" if name in result["start_s"] else ""
            print(f"{load + ' connections, ' + name:<32}{numbers}{found['errors']:>8}{start}")
    for name, reason in result["missing"].items():
        print(f"{name}: not measured, {reason}")
    for kind, engine in result["engine"].items():
        one, batch = engine["one_ms"]["median"], engine["batch_cpu_ms"]["median"]
        print(
            f"bare engine, {engine['engine']}, {kind}: {one:.2f} ms one image, {batch:.3f} CPU ms an image in batches"
        )
    if "overload" not in result:
        return
    overload, swap = result["overload"], result["swap"]
    keys = ("goodput", "refused_p99", "live_p99", "client_processors")
    goodput, refused, live, client = (overload[key]["median"] for key in keys)
    print(
        f"ours at twice its capacity: goodput {goodput:.0%} of it, 503 after {refused:.0f} ms (p99), "
        f"/health/live after {live:.1f} ms (p99), client {client:.2f} processors; {overload['statuses']}"
    )
    print(
        f"ours while its model is swapped under 8 clients: {swap['seconds']['median']:.2f} s a swap, answers after "
        f"{swap['ms']['p99']} ms (p99); {swap['statuses']}"
    )


def _sample(load: Load, cpu: float, client_cpu: float) -> dict:
    answers, count = load.as_dict(), len(load.latencies)
    errors = sum(load.statuses.values()) - count
    ms = answers["ms"]
    return {
        "requests_per_second": answers["requests_per_second"],
        "p50": ms["p50"],
        "p99": ms["p99"],
        "cpu_ms": cpu * 1000 / max(count, 1),
        "client_cpu_ms": client_cpu * 1000 / max(count, 1),
        "errors": errors,
    }


def _summarise(samples: list[dict]) -> dict:
    keys = ("requests_per_second", "p50", "p99", "cpu_ms", "client_cpu_ms")
    summary = {key: summarise([sample[key] for sample in samples]) for key in keys}
    return summary | {"errors": sum(sample["errors"] for sample in samples)}


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="samples of each arm and load (%(default)s)")
    add("--seconds", type=float, default=3, metavar="S", help="length of a sample (%(default)s)")
    add("--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="NAME", help=f"of {', '.join(ARMS)} (all)")
    add("--kinds", nargs="+", default=list(KINDS), choices=KINDS, metavar="KIND", help="of images (PNG JPEG)")
    add("--peer-engine", default="openvino", choices=["openvino", "onnxruntime"], help="of the peers (%(default)s)")
    add("--connections", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N", help="clients at once (1 8 32 128)")
    add("--data", default="auto", help="whose test images are sent; as in helpers.data.dataset (%(default)s)")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/serving.json)")
    add("--add", action="store_true", help="keep the loads that the JSON file has, for a benchmark taken in parts")
    options = parser.parse_args(arguments)
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
