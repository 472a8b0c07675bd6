"""Serving on a processor: this suite's service beside the original's way, and both beside the bare engine.

    python -m benchmarks.serving          about 5 minutes on two cores; --help lists the options

The arms alternate (A B B A) for each number of connections, each warmed first; medians with bootstrap 95 % intervals.
Clients send the next request when they have the answer (closed loop), and share the processor with the server, so the
server's own processor time is measured beside requests per second. Overload is an open loop: requests come by chance,
twice as many a second as the server can answer, whatever becomes of those before.
"""

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from benchmarks.load import Load, closed_loop, get, open_loop, post_file
from benchmarks.measuring import conclude, summarise
from helpers.client import encode_png
from helpers.dataset import load_dataset
from helpers.images import decode_image
from helpers.loader import load_model
from helpers.workspace import ROOT

RESULT = Path(__file__).parent / "results" / "serving.json"
ARMS = {"ours": ("helpers.hosting", "--port"), "original": ("benchmarks.original",)}
START_S = 120


@contextmanager
def server(name: str, request: bytes):
    """A process that serves; gives port, process id, and seconds from its start to its first answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as empty:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", *ARMS[name], str(port)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"SUITE_BUCKET": Path(empty).as_uri(), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        try:
            while not asyncio.run(closed_loop(port, [request], 1, rounds=1)).latencies:
                if process.poll() is not None or time.perf_counter() - started > START_S:
                    raise SystemExit(f"the server of arm {name!r} did not start")
                time.sleep(0.005)
            yield port, process.pid, time.perf_counter() - started
        finally:
            process.terminate()
            process.wait(30)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_engine(files: list[bytes], repeats: int) -> dict:
    """The bare engine on decoded files: milliseconds of one image, and processor milliseconds an image in batches."""
    model, measured = load_model(ROOT / "model"), {"one_ms": [], "batch_cpu_ms": [], "batch_ms": []}
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
            started, cpu = time.perf_counter(), time.process_time()
            for at in range(0, len(part), size):
                model.predict(np.stack([decode_image(data) for data in part[at : at + size]]))
            spent = (time.process_time() - cpu, time.perf_counter() - started)
            best.append(tuple(seconds * 1000 / len(part) for seconds in spent))
        cpu_ms, ms = min(best)
        measured["batch_cpu_ms"].append(cpu_ms)
        measured["batch_ms"].append(ms)
    return {name: summarise(values) for name, values in measured.items()} | {"engine": model.precision}


def measure_loads(servers: dict, requests: list[bytes], connections: int, options) -> dict:
    """Each server under `connections` closed-loop clients, in turns."""
    samples = {name: [] for name in servers}
    for repeat in range(options.repeats + 1):  # the first warms
        for name in list(servers)[:: -1 if repeat % 2 else 1]:
            port, pid, _ = servers[name]
            before = cpu_seconds(pid)
            load = asyncio.run(closed_loop(port, requests, connections, options.seconds))
            cpu = cpu_seconds(pid) - before
            if repeat:
                samples[name].append(_sample(load, cpu))
    return {name: _summarise(values) for name, values in samples.items()}


def measure_overload(port: int, requests: list[bytes], capacity: float, seconds: float) -> dict:
    """Twice `capacity` requests a second, and a health probe all the while."""

    async def both():
        return await asyncio.gather(
            open_loop(port, requests, 2 * capacity, seconds),
            open_loop(port, [get("/health/live")], 20, seconds, seed=1),
        )

    load, probes = asyncio.run(both())
    answers = load.as_dict()
    return answers | {
        "offered": 2 * capacity,
        "goodput": answers["requests_per_second"] / capacity,
        "live_ms": probes.as_dict()["ms"],
    }


def run(options) -> dict:
    """All measurements, as the JSON file holds them."""
    images = load_dataset(options.data).test.images[:64]
    files = {kind: [encode_png(image, kind=kind) for image in images] for kind in ("PNG", "JPEG")}
    requests = {kind: [post_file("/predict_single", data) for data in parts] for kind, parts in files.items()}
    result = {
        "benchmark": "serving",
        "engine": {kind: measure_engine(parts, options.repeats) for kind, parts in files.items()},
        "loads": {},
    }
    with ExitStack() as stack:
        servers = {name: stack.enter_context(server(name, requests["PNG"][0])) for name in ARMS}
        result["start_s"] = {name: seconds for name, (_, _, seconds) in servers.items()}
        for kind in files:
            for connections in options.connections:
                print(f"{kind}, {connections} connections ...", file=sys.stderr)
                found = measure_loads(servers, requests[kind], connections, options)
                result["loads"][f"{kind} {connections}"] = found
        busiest = result["loads"][f"PNG {max(options.connections, key=lambda n: n <= 32 and n)}"]["ours"]
        capacity = busiest["requests_per_second"]["median"]
        result["overload"] = measure_overload(servers["ours"][0], requests["PNG"], capacity, 3 * options.seconds)
    return result


def print_table(result: dict) -> None:
    """A row an arm and load, and what each bound of the service came to."""
    environment = result["environment"]
    print(f"{environment['cpu']}, {environment['cpus']} CPUs")
    print(f"{'':<28}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'CPU ms':>10}{'errors':>8}")
    for load, arms in result["loads"].items():
        for name, found in arms.items():
            cells = [found[key]["median"] for key in ("requests_per_second", "p50", "p99", "cpu_ms")]
            numbers = "{:>12.1f}{:>10.2f}{:>10.2f}{:>10.3f}".format(*cells)
            print(f"{load + ' connections, ' + name:<28}{numbers}{found['errors']:>8}")
    for kind, engine in result["engine"].items():
        one, batch = engine["one_ms"]["median"], engine["batch_cpu_ms"]["median"]
        print(
            f"bare engine, {engine['engine']}, {kind}: {one:.2f} ms one image, {batch:.3f} CPU ms an image in batches"
        )
    print(", ".join(f"{name} answers {seconds:.2f} s after its start" for name, seconds in result["start_s"].items()))
    overload = result["overload"]
    print(
        f"at twice its capacity: goodput {overload['goodput']:.0%} of it, 503 after {overload['refused_ms']['p99']} ms "
        f"(p99), /health/live after {overload['live_ms']['p99']} ms (p99); {overload['statuses']}"
    )


def _sample(load: Load, cpu: float) -> dict:
    answers, count = load.as_dict(), len(load.latencies)
    errors = sum(load.statuses.values()) - count
    ms = answers["ms"]
    return {
        "requests_per_second": answers["requests_per_second"],
        "p50": ms["p50"],
        "p99": ms["p99"],
        "cpu_ms": cpu * 1000 / max(count, 1),
        "errors": errors,
    }


def _summarise(samples: list[dict]) -> dict:
    keys = ("requests_per_second", "p50", "p99", "cpu_ms")
    summary = {key: summarise([sample[key] for sample in samples]) for key in keys}
    return summary | {"errors": sum(sample["errors"] for sample in samples)}


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="samples of each arm and load (%(default)s)")
    add("--seconds", type=float, default=3, metavar="S", help="length of a sample (%(default)s)")
    add("--connections", type=int, nargs="+", default=[1, 8, 32, 128], metavar="N", help="clients at once (1 8 32 128)")
    add("--data", default="auto", help="whose test images are sent; as in helpers.dataset (%(default)s)")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/serving.json)")
    options = parser.parse_args(arguments)
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
