"""A web server beside whatever else the process does: in a notebook's kernel, in a test, or as a command of its own."""

import asyncio
import ipaddress
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress

import uvicorn
from fastapi import FastAPI

from helpers.delivery.storage import StorageError
from helpers.inference.predictor import Predictor
from helpers.inference.source import MODEL_DIR, ModelSource
from helpers.monitoring.log_file import LogError
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.watch import Watch, make_detector, make_monitor
from helpers.registry import RegistryError, UnknownModel
from helpers.serving.canary import canary
from helpers.serving.collector import seldom_collected
from helpers.serving.connection import Connection
from helpers.serving.options import parse
from helpers.serving.service import create_app
from helpers.serving.shadow import shadow
from helpers.serving.watcher import follow
from helpers.workspace import ROOT, secret

START_S = 30.0
DRAIN_S = 10.0


class HostingError(RuntimeError):
    """A server that cannot start, in one sentence with the next step."""


class Server:
    """Serves `app` from a thread while the block runs; `start` and `stop` may also be called, any number of times.

    The address is taken before the thread starts, so a busy port is an error here and not a silent end there. It works
    where an event loop runs already, as in a notebook.

    Args:
        host: address to listen on.
        port: 0 takes a free one; `url` says which.

    Raises:
        HostingError: from `start`, if the address cannot be had.
    """

    def __init__(self, app: FastAPI, host: str = "127.0.0.1", port: int = 8000) -> None:
        self.app, self.host, self.port = app, host, port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the server answers, e.g. ``http://127.0.0.1:8000``."""
        return _url(self.host, self.port)

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> "Server":
        """Returns when the server answers; does nothing if it does already."""
        if self.running:
            return self
        sock = _listen(self.host, self.port)
        self.port = sock.getsockname()[1]
        self.app.state.draining = False
        self._server = _configure(self.app)
        self._thread = threading.Thread(target=_run, args=(self._server, sock), name="web server", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not self._server.started:
            self._server.should_exit = True
            sock.close()
            raise HostingError(f"the server at {self.url} did not start; the log says why")
        return self

    def stop(self) -> None:
        """Takes no new requests, lets those under way finish for up to ten seconds, and frees the port."""
        if self._server is None or self._thread is None:
            return
        self.app.state.draining = True
        self._server.should_exit = True
        self._thread.join(DRAIN_S + 5)
        self._server = self._thread = None

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_until_interrupted(app: FastAPI, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves in the calling thread until it is interrupted; a notebook's cell may call it and be stopped by hand."""
    sock = _listen(host, port)
    server = _configure(app)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:  # a notebook's kernel: its loop must be entered a second time
        import nest_asyncio

        nest_asyncio.apply()

    async def serve():
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again after it has shut down in order
            await server.serve(sockets=[sock])

    try:
        with suppress(KeyboardInterrupt):  # asyncio.run's own way to say so
            asyncio.run(serve())
    finally:
        sock.close()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m helpers.hosting``: serves the production model until SIGTERM or Ctrl-C; returns the exit code."""
    arguments = parse(argv)
    stop = threading.Event()
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        _serve(arguments, stop)
    except (HostingError, RegistryError, StorageError, LogError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _serve(arguments, stop):
    fallback = None if arguments.model_dir else ROOT / "model"
    model_dir = arguments.model_dir or MODEL_DIR
    source = ModelSource(arguments.bucket, model_dir=model_dir, fallback=fallback, engine=arguments.engine)
    try:
        model = source.load(model_dir)
    except UnknownModel as error:
        if fallback is None:
            raise
        raise HostingError(
            f"there is no {model_dir} in {source.bucket} and no bundle in {fallback}; "
            "train and publish a model with the second notebook, or name another --bucket"
        ) from error
    predictor = Predictor(model)
    try:
        with _open_log(arguments) as log:
            app = create_app(
                predictor,
                source.load,
                model_dir,
                log=log,
                watch=Watch(make_detector, make_monitor),
                admin_token=secret("SUITE_ADMIN_TOKEN"),
                require_token=not is_loopback(arguments.host),
                rate_limit=arguments.rate_limit,
            )
            following = follow(app.state.swapper, source.bucket, arguments.watch)
            beside = canary if arguments.canary else shadow
            trying = beside(app, source, arguments.canary or arguments.shadow)
            with Server(app, arguments.host, arguments.port) as server, following, trying:
                print(f"Serving version {model.version} of {source.served_from} at {server.url}", flush=True)
                import helpers.monitoring.drift  # noqa: F401 - SciPy, for which no answer shall wait

                with seldom_collected():
                    while server.running and not stop.wait(1):
                        pass
        if not stop.is_set():
            raise HostingError(f"the server at {server.url} ended by itself; the log says why")
    finally:
        predictor.close(timeout=DRAIN_S)


def _open_log(arguments):
    return closing(PredictionLog(arguments.log, keep_images=arguments.log_images)) if arguments.log else nullcontext()


def _configure(app):
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of strangers' images: what is wrong stands in the answer
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(DRAIN_S),
    )
    return uvicorn.Server(config)


def _run(server, sock):
    # Not Server.run: it calls asyncio.run, which nest_asyncio replaces. SystemExit is how uvicorn ends a failed start.
    with suppress(SystemExit), asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[sock]))


def _listen(host, port):
    sock = None
    try:
        if not 0 <= port <= 65535:  # bind would take it modulo 65536
            raise OverflowError("a port is 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio switches Nagle's algorithm off; else each answer may take 40 ms longer.
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(2048)
    except (OSError, OverflowError) as error:
        if sock is not None:
            sock.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise HostingError(
            f"cannot listen at {_url(host, port)} ({reason}); stop what listens there or choose another port"
        ) from error
    return sock


def _url(host, port):
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
