"""A client that sends ready-made HTTP requests over kept connections, as many or as often as asked, and times them."""

import asyncio
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

TIMEOUT_S = 30.0


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
    load, idle, open_connections, tasks = Load(), deque(), [], set()
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    started = time.perf_counter()

    async def one(request, due):
        connection = idle.pop() if idle else None
        if connection is None or connection.closed:
            connection = await _Connection.open(port)
            open_connections.append(connection)
        await connection.ask(request, load, due)
        idle.append(connection)

    for turn, due in enumerate(started + np.cumsum(gaps)):
        if due - started > seconds:
            break
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(requests[turn % len(requests)], due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    load.seconds = time.perf_counter() - started
    await asyncio.gather(*tasks)
    for connection in open_connections:
        connection.close()
    return load


class _Connection(asyncio.Protocol):
    """One kept connection with one request at a time; counts what is no whole answer as status 0, and opens anew."""

    def __init__(self, port):
        self.port, self.transport, self.answer, self.received, self.closed = port, None, None, bytearray(), True

    @classmethod
    async def open(cls, port):
        connection = cls(port)
        await connection._reopen()
        return connection

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.close()

    def close(self):
        self.closed = True
        if self.transport:
            self.transport.close()

    async def ask(self, request, load, due=None):
        started = due or time.perf_counter()
        try:
            if self.closed:
                await self._reopen()
            self.answer = asyncio.get_running_loop().create_future()
            self.transport.write(request)
            async with asyncio.timeout(TIMEOUT_S):
                status, body = await self.answer
        except (OSError, TimeoutError) as error:
            self.close()
            status, body = 0, type(error).__name__.encode()
        seconds = time.perf_counter() - started
        load.statuses[status] += 1
        load.bodies[body] += 1
        (load.latencies if status == 200 else load.refused).append(seconds)

    async def _reopen(self):
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.port)

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
        if b"connection: close" in head:
            self.close()
        if self.answer and not self.answer.done():
            self.answer.set_result((int(head[9:12]), body))

    def connection_lost(self, error):
        self.closed = True
        if self.answer and not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("closed before the answer"))


def _rounded(value):
    return None if value is None else round(float(value), 3)
