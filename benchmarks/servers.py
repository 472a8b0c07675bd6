"""The servers that are compared: how each is started, what a request to it looks like, and what it costs."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.load import closed_loop, post, post_file
from helpers.workspace import ROOT

PEERS = ROOT / ".peers" / "bin" / "python"
START_S = 120


class NotStarted(RuntimeError):
    """A server that cannot be measured; the message says why."""


def as_form(data: bytes) -> bytes:
    """A form with a file."""
    return post_file("/predict_single", data)


def as_body(data: bytes) -> bytes:
    """The bare file, as mosec takes it."""
    return post("/inference", data, "application/octet-stream")


def as_json(data: bytes) -> bytes:
    """A list of one file, which BentoML puts into its batches."""
    return post("/predict_single", json.dumps({"files": [_text(data)]}).encode(), "application/json")


def as_tensor(data: bytes) -> bytes:
    """A tensor of the Open Inference Protocol that holds one file."""
    tensor = {"name": "files", "shape": [1, 1], "datatype": "BYTES", "data": [_text(data)]}
    return post("/v2/models/cifar100/infer", json.dumps({"inputs": [tensor]}).encode(), "application/json")


@dataclass(frozen=True)
class Arm:
    """A server.

    Attributes:
        command: arguments of Python; the port comes last.
        encode: makes a request of a file.
        peer: runs in the environment of requirements/peers.lock.
    """

    command: tuple[str, ...]
    encode: Callable[[bytes], bytes] = as_form
    peer: bool = True


ARMS = {
    "ours": Arm(("-m", "helpers.hosting", "--port"), peer=False),
    "original": Arm(("-m", "benchmarks.original"), peer=False),
    "plain": Arm(("-m", "benchmarks.peers.plain")),
    "litserve": Arm(("-m", "benchmarks.peers.litserve")),
    "bentoml": Arm(("-m", "bentoml", "serve", "benchmarks.peers.bentoml:Classifier", "--port"), as_json),
    "mlserver": Arm(("-m", "benchmarks.peers.mlserver"), as_tensor),
    "mosec": Arm(("-m", "benchmarks.peers.mosec", "--address", "127.0.0.1", "--port"), as_body),
}


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        start_s: from the start of its process to its first right answer.
    """

    port: int
    pid: int
    start_s: float


@contextmanager
def running(arm: Arm, data: bytes, right: str, engine: str = "openvino") -> Iterator[Running]:
    """Serves while the block runs, from when the answer to the file `data` has the class name `right`.

    Args:
        engine: of a peer, "openvino" or "onnxruntime".

    Raises:
        NotStarted: if there is no such answer within `START_S`.
    """
    python = PEERS if arm.peer else Path(sys.executable)
    if not python.exists():
        raise NotStarted("not installed; make bench-serving installs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryFile() as log:
        quiet = {"SUITE_BUCKET": Path(empty).as_uri(), "TF_CPP_MIN_LOG_LEVEL": "3", "BENTOML_DO_NOT_TRACK": "True"}
        environment = os.environ | quiet | {"PEER_ENGINE": engine, "BENTOML_HOME": empty}
        started = time.perf_counter()
        process = subprocess.Popen(
            [python, *arm.command, str(port)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            while not _answers(port, arm.encode(data), right):
                if process.poll() is not None or time.perf_counter() - started > START_S:
                    raise NotStarted(f"no right answer; it says {_last_line(log)!r}")
                time.sleep(0.005)
            yield Running(port, process.pid, time.perf_counter() - started)
        finally:
            process.terminate()
            try:
                process.wait(30)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves its servers behind


@contextmanager
def asleep(servers: Iterable[Running]) -> Iterator[None]:
    """Stops `servers` while the block runs: even one that nobody asks takes something of the processors."""
    stopped = [pid for server in servers for pid in _processor_ticks(server.pid)]
    for pid in stopped:
        _signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            _signal(pid, signal.SIGCONT)


def cpu_seconds(pid: int) -> float:
    """Processor time so far of a process, its threads and the processes that it has started and that still run."""
    return sum(_processor_ticks(pid).values()) / os.sysconf("SC_CLK_TCK")


def _processor_ticks(pid):
    """Of a process and of what it has started, by process."""
    used, children = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        used[int(path.parent.name)] = int(fields[11]) + int(fields[12])
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, family = {}, [pid]
    while family:
        member = family.pop()
        found[member] = used.get(member, 0)
        family += children.get(member, [])
    return found


def _signal(pid, number):
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _answers(port, request, right):
    load = uvloop.run(closed_loop(port, [request], 1, rounds=1))
    return load.statuses[200] and any(f'"{right}"'.encode() in body for body in load.bodies)


def _last_line(log):
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def _text(data):
    return base64.b64encode(data).decode()
