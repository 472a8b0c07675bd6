import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import httpx2
import pytest
from conftest import make_bundle
from fastapi import FastAPI
from held_model import HeldModel, wait_until
from served import PNG, bomb, send

from helpers.delivery.storage import open_store
from helpers.hosting import HostingError, Server, is_loopback, main
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.monitoring.log_reader import LogReader
from helpers.registry import Registry
from helpers.serving.service import create_app
from helpers.workspace import ROOT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("hosting") / "bundle", name="cifar100-vgg16")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, bundle):
    """A store with the bundle in production."""
    folder = tmp_path_factory.mktemp("hosting") / "store"
    registry = Registry(open_store(str(folder)), "cifar100-vgg16")
    registry.promote(registry.publish(bundle.path), reason="test")
    return folder


@pytest.fixture
def held(bundle):
    model = HeldModel(load_model(bundle.path))
    yield model
    model.gate.set()


@pytest.fixture
def app():
    app = FastAPI()

    @app.get("/")
    async def home() -> str:
        return "here"

    return app


def fetch(server, path="/"):
    return httpx2.get(server.url + path, verify=False)


def test_a_server_answers_inside_its_block_and_not_after(app):
    with Server(app, port=0) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert fetch(server).json() == "here"
    with pytest.raises(httpx2.ConnectError):
        fetch(server)


def test_starting_and_stopping_twice_does_nothing_and_a_stopped_server_starts_again(app):
    server = Server(app, port=0)
    server.stop()
    assert server.start() is server
    url, threads = server.url, threading.active_count()
    assert server.start() is server
    assert (server.url, threading.active_count()) == (url, threads)
    server.stop()
    server.stop()
    assert not server.running
    with server:
        assert server.url == url
        assert fetch(server).json() == "here"


def test_it_works_where_an_event_loop_runs_and_for_a_client_that_blocks_it(app):
    async def cell():
        with Server(app, port=0) as server:
            return fetch(server).json()

    # asyncio.run would drop the loop that nbmake sets for the whole pytest process
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        assert runner.run(cell()) == "here"


def test_it_listens_at_ipv6(app):
    with Server(app, "::1", 0) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert fetch(server).json() == "here"


def test_a_busy_port_is_one_sentence(app):
    with Server(app, port=0) as server:
        sentence = (
            rf"cannot listen at {server.url} \(Address already in use\); stop what listens there or choose another port"
        )
        with pytest.raises(HostingError, match=sentence):
            Server(app, port=server.port).start()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("no.such.host.invalid", 8000), ("192.0.2.1", 8000)])
def test_an_address_that_cannot_be_had_is_one_sentence(app, host, port):
    with pytest.raises(HostingError, match=rf"cannot listen at http://{host}:{port} \(.+\); stop what listens there"):
        Server(app, host, port).start()


def test_an_app_that_cannot_start_is_an_error(caplog):
    @asynccontextmanager
    async def lifespan(app):
        raise RuntimeError("no disk")
        yield

    server = Server(FastAPI(lifespan=lifespan), port=0)
    with pytest.raises(HostingError, match=r"the server at .* did not start; the log says why"):
        server.start()
    assert "no disk" in caplog.text
    with socket.create_server(("127.0.0.1", server.port)):
        pass


def test_answers_are_not_held_back_by_nagles_algorithm(app):
    with Server(app, port=0) as server, httpx2.Client(base_url=server.url, verify=False) as client:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            client.get("/")
            times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.03  # with it, all but the first take more than 0.04


def test_stopping_lets_requests_under_way_finish(held):
    predictor = Predictor(held)
    server = Server(create_app(predictor, lambda _: held, "models/tiny"), port=0).start()
    with httpx2.Client(base_url=server.url, verify=False, timeout=10) as client, ThreadPoolExecutor(2) as pool:
        answer = pool.submit(send, client)
        wait_until(lambda: held.sizes)
        stopping = pool.submit(server.stop)
        wait_until(lambda: server.app.state.draining)
        time.sleep(0.3)
        held.gate.set()
        assert answer.result(10).status_code == 200
        stopping.result(10)
    predictor.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(host, expected):
    assert is_loopback(host) is expected


# in a notebook's kernel


KERNEL_CELLS = """
import threading, httpx2
from fastapi import FastAPI
from helpers.hosting import Server, serve_until_interrupted
app = FastAPI()
app.get("/")(lambda: "here")
with Server(app, port=0) as server:
    print("thread", httpx2.get(server.url, verify=False).json())
====
serve_until_interrupted(app, port=PORT)
print("stopped")
====
with Server(app, port=0) as server:
    print("again", httpx2.get(server.url, verify=False).json())
"""


def test_a_notebook_can_serve_from_a_thread_and_from_a_cell_that_is_interrupted():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
    cells = KERNEL_CELLS.replace("PORT", port).split("====")
    driver = [sys.executable, str(ROOT / "tests" / "drive_kernel.py"), port, *cells]
    result = subprocess.run(driver, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout == "thread here\nstopped\nagain here\n", result.stderr


# the command


@contextmanager
def command(*arguments, code="-m helpers.hosting", cwd=ROOT, **environment):
    """The serving command as a process of its own; killed at the end if it still runs."""
    start = ["-c", code] if "\n" in code else code.split()
    environment = {key: value for key, value in os.environ.items() if key != "SUITE_ADMIN_TOKEN"} | environment
    process = subprocess.Popen(
        [sys.executable, *start, "--port", "0", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process):
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return line, line.split()[-1]


def test_the_command_serves_production_and_stops_at_sigterm(bucket, bundle, tmp_path):
    start = time.monotonic()
    with command("--bucket", bucket, XDG_CACHE_HOME=str(tmp_path)) as process:
        line, url = first_line(process)
        with httpx2.Client(base_url=url, verify=False) as client:
            assert send(client).json().startswith("class_")
            assert time.monotonic() - start < 8  # 1 s on an idle machine; 3 is the promise
            assert client.get("/reload_model").status_code == 200
            assert client.get("/model").json()["model_dir"] == "models/cifar100-vgg16"
        assert line == f"Serving version {bundle.version} of models/cifar100-vgg16 in {bucket} at {url}\n"
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=15)
        assert (process.returncode, rest, errors) == (0, "", "")


def test_what_strangers_send_writes_nothing_to_the_log(bucket, tmp_path):
    with command("--bucket", bucket, XDG_CACHE_HOME=str(tmp_path)) as process:
        _, url = first_line(process)
        with httpx2.Client(base_url=url, verify=False) as client:
            for side in (9500, 9501):
                answer = client.post("/predict_single", files={"file": bomb(side)})
                assert answer.status_code == 413
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as stranger:
            stranger.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
            assert stranger.recv(4096).startswith(b"HTTP/1.1 400 ")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=15) == ("", "")


def test_the_command_keeps_a_log_where_it_is_told_and_goes_on_with_it(bucket, tmp_path):
    log = tmp_path / "logs" / "predictions.db"
    for times in (1, 2):
        with command("--bucket", bucket, "--log", log, "--log-images", XDG_CACHE_HOME=str(tmp_path)) as process:
            _, url = first_line(process)
            with httpx2.Client(base_url=url, verify=False) as client:
                assert [send(client).status_code for _ in range(3)] == [200] * 3
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=15) == ("", "")
        with LogReader(log) as reader:
            assert len(reader.rows()) == 3 * times
            assert all(len(row["image"]) == 3072 for row in reader.rows())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--log-images"], "--log-images keeps them in a log; name its file with --log"),
        (["--watch", "0"], "--watch must be above 0 seconds, got 0"),
    ],
)
def test_options_that_do_nothing_are_refused(options, sentence, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert sentence in capsys.readouterr().err


def test_a_log_that_is_none_ends_the_command_with_one_sentence_and_stays(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("not a log, but something somebody needs" * 20)
    assert main(["--bucket", str(bucket), "--port", "0", "--log", str(tmp_path / "notes.txt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}/notes.txt cannot be read as a prediction log (")
    assert error.count("\n") == 1
    assert (tmp_path / "notes.txt").read_text().startswith("not a log, but")


def test_the_collector_walks_seldom_and_never_over_what_the_command_has_loaded(bucket, tmp_path):
    code = """if True:
        import gc, os, signal, threading, time
        from helpers.hosting import main

        def look():
            while gc.get_threshold()[0] < 10_000:
                time.sleep(0.01)
            print(gc.get_freeze_count() > 50 * len(gc.get_objects()), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=look).start()
        before = gc.get_threshold()
        main()
        print(gc.get_freeze_count(), gc.get_threshold() == before)
        """
    with command("--bucket", bucket, code=code, XDG_CACHE_HOME=str(tmp_path)) as process:
        first_line(process)
        assert process.communicate(timeout=20) == ("True\n0 True\n", "")


def test_with_watch_the_command_follows_the_alias(tmp_path, bundle):
    registry = Registry(open_store(str(tmp_path / "store")), "cifar100-vgg16")
    registry.promote(registry.publish(bundle.path), reason="first")
    second = make_bundle(tmp_path / "second", name="cifar100-vgg16", model_card="# two")
    registry.publish(second.path)
    with command("--bucket", tmp_path / "store", "--watch", "0.2", XDG_CACHE_HOME=str(tmp_path)) as process:
        _, url = first_line(process)
        with httpx2.Client(base_url=url, verify=False) as client:
            assert client.get("/model").json()["version"] == bundle.version
            registry.promote(second.version, reason="next")
            wait_until(lambda: client.get("/model").json()["version"] == second.version)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
        assert process.returncode == 0


def test_sigterm_lets_requests_under_way_finish(bucket, tmp_path):
    with command("--bucket", bucket, XDG_CACHE_HOME=str(tmp_path)) as process:
        _, url = first_line(process)
        stop = threading.Event()

        def ask():
            statuses = []
            with httpx2.Client(base_url=url, verify=False, timeout=10) as client:
                while not stop.is_set():
                    try:
                        statuses.append(send(client).status_code)
                    except (httpx2.ConnectError, httpx2.RemoteProtocolError, httpx2.ReadError):
                        break  # the door is shut: between requests, never within one
            return statuses

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask) for _ in range(4)]
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0
            stop.set()
            for statuses in asking:
                assert set(statuses.result(10)) == {200}


WITH_ROOT = """
import sys
from pathlib import Path
import helpers.hosting
helpers.hosting.ROOT = Path({root!r})
sys.exit(helpers.hosting.main())
"""


def test_without_production_the_bundle_beside_the_code_serves(bundle, tmp_path):
    (tmp_path / "model").symlink_to(bundle.path)
    code = WITH_ROOT.format(root=str(tmp_path))
    with command("--bucket", tmp_path / "store", code=code) as process:
        line, url = first_line(process)
        assert line.startswith(f"Serving version {bundle.version} of {tmp_path / 'model'} (")
        assert "has no models/cifar100-vgg16) at http://127.0.0.1:" in line
        with httpx2.Client(base_url=url, verify=False) as client:
            assert send(client).status_code == 200
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=15)
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "error: there is no models/cifar100-vgg16 in {store} and no bundle in {root}/model; train and publish"),
        (("--model-dir", "models/other"), "error: model 'other' has no alias 'production'"),
        (("--model-dir", "../x"), "error: model_dir must be models/<name>"),
        (("--bucket", "ftp://x"), "error: bucket must be gs://bucket[/prefix]"),
    ],
)
def test_without_a_model_the_command_ends_with_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr("helpers.hosting.ROOT", tmp_path)
    assert main(["--bucket", str(tmp_path / "store"), *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(sentence.format(store=tmp_path / "store", root=tmp_path))
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_at_a_busy_port_the_command_ends_with_one_sentence(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert main(["--bucket", str(bucket), "--port", str(port)]) == 1
    assert capsys.readouterr() == (
        "",
        f"error: cannot listen at http://127.0.0.1:{port} (Address already in use); "
        "stop what listens there or choose another port\n",
    )
    assert threading.active_count() == threads


def test_a_share_that_is_none_ends_the_command_with_one_sentence(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for option in ("--canary", "--shadow"):
        assert main(["--bucket", str(bucket), "--port", "0", option, "2"]) == 1
        assert capsys.readouterr().err == "error: share must be above 0 and at most 1, got 2.0\n"


def test_the_command_gives_signals_back(tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    main(["--bucket", str(tmp_path), "--model-dir", "models/none"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def reload_statuses(bucket, cache, *authorizations, **environment):
    """What a server for the whole network answers to a reload, by Authorization header."""
    with command("--bucket", bucket, "--host", "0.0.0.0", XDG_CACHE_HOME=str(cache), **environment) as process:
        port = first_line(process)[1].rpartition(":")[2]
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", verify=False) as client:
            assert send(client).status_code == 200
            headers = [{"authorization": value} if value else {} for value in authorizations]
            return [client.post("/reload_model", headers=each).status_code for each in headers]


def test_beyond_this_machine_nobody_changes_the_model_without_a_token_set(bucket, tmp_path):
    assert reload_statuses(bucket, tmp_path, "", "Bearer secret") == [403, 403]


def test_beyond_this_machine_whoever_has_the_token_changes_the_model(bucket, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "token").chmod(0o600)
    token = {"SUITE_ADMIN_TOKEN_FILE": str(tmp_path / "token")}
    assert reload_statuses(bucket, tmp_path, "", "Bearer wrong", "Bearer secret", **token) == [401, 401, 200]


def test_serving_imports_no_training_library(bundle):
    code = f"""
import sys
import httpx2
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.serving.service import create_app
model = load_model({str(bundle.path)!r})
with Server(create_app(Predictor(model), lambda _: model, "models/x"), port=0) as server:
    files = {{"file": ("a.png", bytes.fromhex({PNG.hex()!r}))}}
    assert httpx2.post(server.url + "/predict_single", files=files).status_code == 200
heavy = {{"tensorflow", "keras", "jax", "torch", "onnx", "wandb", "pyngrok", "matplotlib", "google.cloud.storage"}}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("[]\n", "", 0)
