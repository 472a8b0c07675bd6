"""A client that sends ready-made HTTP requests over kept connections, as many or as often as asked, and times them."""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

TIMEOUT_S = 30.0
TICK_S = 0.001  # no timer of the event loop is finer


@dataclass
class Load:
    """What a run came to. `latencies`, seconds from sending a request to its whole answer, are of answers 200 alone."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    bodies: Counter = field(default_factory=Counter)

    def as_dict(self) -> dict:
        """Percentiles in milliseconds, answers 200 a second, and how many answers there were of each status."""
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        answered = {"requests_per_second": len(self.latencies) / self.seconds, "statuses": statuses}
        for name, values in (("ms", self.latencies), ("refused_ms", self.refused)):
            percentiles = np.percentile(values, (50, 90, 99)) * 1000 if values else [None] * 3
            answered[name] = dict(zip(("p50", "p90", "p99"), map(_rounded, percentiles), strict=True))
        return answered


def post(path: str, body: bytes, content_type: str) -> bytes:
    """A whole HTTP/1.1 request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def post_file(path: str, data: bytes, name: str = "image.png") -> bytes:
    """A whole HTTP/1.1 request with `data` as the form's file."""
    part = f'--boundary\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return post(path, part + data + b"\r\n--boundary--\r\n", "multipart/form-data; boundary=boundary")


def get(path: str) -> bytes:
    """A whole HTTP/1.1 request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


async def closed_loop(
    port: int,
    requests: list[bytes],
    connections: int,
    seconds: float = math.inf,
    *,
    rounds: int | None = None,
    until: threading.Event | None = None,
) -> Load:
    """`connections` clients, each of which sends its next request when it has the answer to the one before.

    They end after `seconds`, after `rounds` requests each, or when `until` is set, whichever comes first.
    """
    load, started = Load(), time.perf_counter()

    async def client(number):
        turn = 0
        async with _Connection(port) as connection:
            while turn != rounds and time.perf_counter() - started < seconds and not (until and until.is_set()):
                await connection.ask(requests[(number + turn) % len(requests)], load)
                turn += 1

    await asyncio.gather(*(client(number) for number in range(connections)))
    load.seconds = time.perf_counter() - started
    return load


async def open_loop(port: int, requests: list[bytes], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests that arrive by chance, `rate` a second on average, whatever has been answered (a Poisson process)."""
    load, idle, opened, tasks = Load(), deque(), [], set()
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    started = time.perf_counter()

    async def begin(request, due):
        opened.append(connection := _Connection(port))
        await connection.ask(request, load, due)
        idle.append(connection)

    for turn, due in enumerate(started + np.cumsum(gaps)):
        if due - started > seconds:
            break
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(max(wait, TICK_S))  # and then send all that is due
        request = requests[turn % len(requests)]
        while idle and idle[-1].closed:
            idle.pop()
        if idle:  # most of them, and the client's processor time is the server's loss: no task for each
            idle.pop().send(request, load, idle.append, due)
        else:
            task = asyncio.create_task(begin(request, due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    load.seconds = time.perf_counter() - started
    await asyncio.gather(*tasks)
    last = time.perf_counter() + TIMEOUT_S
    while any(connection.busy for connection in opened) and time.perf_counter() < last:
        await asyncio.sleep(0.01)
    for connection in opened:
        connection.close()
    return load


class _Connection(asyncio.Protocol):
    """One kept connection with one request at a time; counts what is no whole answer as status 0, and opens anew."""

    def __init__(self, port):
        self.port, self.transport, self.done, self.received, self.closed = port, None, None, bytearray(), True

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    @property
    def busy(self):
        return self.done is not None

    def close(self):
        self.closed = True
        if self.transport:
            self.transport.close()
        if self.busy:
            self.finish(0, b"no answer in time")

    def send(self, request, load, done, due=None):
        """Notes the answer in `load` when it is there, and calls `done` with this connection."""
        self.started, self.load, self.done = due or time.perf_counter(), load, done
        self.transport.write(request)

    async def ask(self, request, load, due=None):
        started, answered = due or time.perf_counter(), asyncio.get_running_loop().create_future()
        try:
            if self.closed:
                await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)
        except OSError as error:
            self.started, self.load, self.done = started, load, lambda _: None
            self.finish(0, type(error).__name__.encode())
            return
        self.send(request, load, lambda _: answered.done() or answered.set_result(None), started)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await answered
        except TimeoutError:
            self.close()

    def finish(self, status, body):
        seconds, done, self.done = time.perf_counter() - self.started, self.done, None
        self.load.statuses[status] += 1
        self.load.bodies[body] += 1
        (self.load.latencies if status == 200 else self.load.refused).append(seconds)
        done(self)

    def connection_made(self, transport):
        self.transport, self.closed = transport, False
        self.received.clear()

    def data_received(self, data):
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.received) < end + 4 + length:
            return
        body = bytes(self.received[end + 4 : end + 4 + length])
        self.received.clear()
        if self.busy:
            self.finish(int(head[9:12]), body)
        if b"connection: close" in head:
            self.close()

    def connection_lost(self, error):
        self.closed = True
        if self.busy:
            self.finish(0, b"closed before the answer")


def _rounded(value):
    return None if value is None else round(float(value), 3)
