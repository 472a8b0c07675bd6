"""`tunnel`: pyngrok's own code against a stand-in agent (tests/ngrok_agent.py), from the token to a proxied request."""

import contextlib
import json
import logging
import os
import shlex
import signal
import stat
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers.client import Client
from helpers.delivery.address import UnknownAddress, publish_address
from helpers.delivery.storage import open_store
from helpers.serving.tunnel import Tunnel, TunnelError, tunnel_obstacle
from helpers.workspace import ROOT

AGENT = ROOT / "tests" / "ngrok_agent.py"
TOKEN = "2planted0token_6ScretThatMustNotBeSeen"
SET_UP = (
    "install the agent from https://ngrok.com/download and put it on PATH, or name it in PYNGROK_NGROK_PATH; "
    "everything but the public URL works without it"
)


@pytest.fixture(autouse=True)
def no_tunnel_configured(monkeypatch, tmp_path):
    """No token, no agent, no home and no download, whatever the machine has; temporary files where a test sees them."""
    for name in ("NGROK_AUTHTOKEN", "NGROK_AUTHTOKEN_FILE", "NGROK_API_KEY", "PYNGROK_NGROK_PATH"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def agent(monkeypatch, tmp_path):
    """Make the stand-in the agent in use, with a token; returns a reader of what it was given."""
    report = tmp_path / "report.json"

    def use(behaviour="work"):
        launcher = tmp_path / "agent" / "ngrok"
        launcher.parent.mkdir(exist_ok=True)
        words = [sys.executable, str(AGENT), "--stand-in", behaviour, "--report", str(report)]
        launcher.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        launcher.chmod(0o755)
        monkeypatch.setenv("PYNGROK_NGROK_PATH", str(launcher))
        monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
        return lambda: json.loads(report.read_text())

    yield use
    if report.exists():
        assert not alive(json.loads(report.read_text())["pid"]), "the test left the agent running"
    assert list((tmp_path / "temporary").iterdir()) == []


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def local_server():
    class Echo(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(201)
            self.send_header("X-Path", self.path)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def post(url, body):
    request = urllib.request.Request(url, body, {"ngrok-skip-browser-warning": "1"})
    with urllib.request.urlopen(request, timeout=5) as reply:
        return reply.status, reply.headers["X-Path"], reply.read()


def test_a_request_to_the_public_url_reaches_the_local_port(agent, local_server):
    agent()
    with Tunnel(local_server) as tunnel:
        assert tunnel.running
        body = os.urandom(200_000)
        assert post(f"{tunnel.public_url}/predict_single?k=1", body) == (201, "/predict_single?k=1", body)
        public_url = tunnel.public_url
    assert (tunnel.public_url, tunnel.running) == ("", False)
    with pytest.raises(urllib.error.URLError):
        post(public_url, b"x")


def test_the_token_is_in_the_agents_private_file_and_nowhere_else(agent, local_server, caplog, capfd, monkeypatch):
    report = agent()
    monkeypatch.setenv("WANDB_API_KEY", "another-planted-secret")
    monkeypatch.setenv("NGROK_API_KEY", TOKEN)
    with caplog.at_level(logging.DEBUG), Tunnel(local_server) as tunnel:
        post(tunnel.public_url, b"x")
        seen = report()
        folder = Path(seen["config"]).parent
        assert seen["token"] == TOKEN
        assert seen["config mode"] == "600"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        others = [path for path in folder.iterdir() if path.name != "ngrok.yml"]
        assert not [path for path in others if TOKEN in path.read_text()]
    assert "started tunnel" in caplog.text  # pyngrok's debug log and the agent's lines are in what is searched
    for place in (str(seen["argv"]), str(seen["environ"]), caplog.text, *capfd.readouterr(), repr(vars(tunnel))):
        assert TOKEN not in place
        assert "another-planted-secret" not in place
    assert seen["environ"]["PATH"] == os.environ["PATH"]
    assert os.environ["NGROK_AUTHTOKEN"] == TOKEN  # this process's own environment is left alone
    assert not folder.exists()


def test_a_token_from_a_private_file_does_as_well(agent, local_server, monkeypatch, tmp_path):
    report = agent()
    monkeypatch.delenv("NGROK_AUTHTOKEN")
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "token").chmod(0o600)
    monkeypatch.setenv("NGROK_AUTHTOKEN_FILE", str(tmp_path / "token"))
    with Tunnel(local_server):
        assert report()["token"] == TOKEN


def test_a_refused_token_is_explained_without_showing_it(agent, caplog, capfd):
    report = agent("refuse")
    tunnel = Tunnel(8000)
    with caplog.at_level(logging.DEBUG), pytest.raises(TunnelError) as caught:
        tunnel.start()
    assert str(caught.value).startswith(
        "ngrok opened no tunnel to port 8000: The ngrok process errored on start: authentication failed: "
        "The authtoken is invalid. Your authtoken: <token>"
    )
    assert "ERR_NGROK_107" in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)  # pyngrok's error quotes the token
    assert "Your authtoken: <token>" in caplog.text
    for place in (caplog.text, *capfd.readouterr()):
        assert TOKEN not in place
    assert not alive(report()["pid"])
    assert (tunnel.public_url, tunnel.running) == ("", False)


@pytest.mark.parametrize("behaviour", ["silent", "no-tunnel"])
def test_an_agent_that_gives_no_tunnel_is_ended_in_time(behaviour, agent):
    report = agent(behaviour)
    started = time.monotonic()
    with pytest.raises(TunnelError, match=r"^ngrok opened no tunnel to port 8000: "):
        Tunnel(8000, startup_timeout=1.5).start()
    assert time.monotonic() - started < 5
    assert not alive(report()["pid"])


def test_a_program_that_is_no_agent_is_an_error_with_its_reason(agent, tmp_path, monkeypatch):
    agent()
    monkeypatch.setenv("PYNGROK_NGROK_PATH", "/bin/false")
    with pytest.raises(
        TunnelError, match=r"^ngrok opened no tunnel to port 8000: The ngrok process was unable to start"
    ):
        Tunnel(8000).start()


def test_an_interrupt_while_starting_leaves_nothing_behind(agent):
    report = agent("silent")

    def interrupt_once_the_agent_runs():
        while not readable(report):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        threading.Thread(target=interrupt_once_the_agent_runs, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            Tunnel(8000).start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not alive(report()["pid"])


def readable(report):
    with contextlib.suppress(OSError, ValueError):
        return bool(report())
    return False


def test_starting_twice_gives_the_same_url_and_stopping_twice_does_no_harm(agent, local_server):
    agent()
    tunnel = Tunnel(local_server)
    assert tunnel.start() == tunnel.start() == tunnel.public_url
    tunnel.stop()
    tunnel.stop()


def test_a_tunnel_whose_agent_died_can_be_started_again(agent, local_server):
    report = agent()
    with Tunnel(local_server) as tunnel:
        os.kill(report()["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 5
        while tunnel.running and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not tunnel.running
        tunnel.start()
        assert post(tunnel.public_url, b"again")[2] == b"again"


def test_two_tunnels_stand_side_by_side_and_stop_alone(agent, local_server):
    agent()
    with Tunnel(local_server) as first, Tunnel(local_server) as second:
        assert first.public_url != second.public_url
        first.stop()
        assert post(second.public_url, b"still here")[2] == b"still here"


def test_without_a_token_the_obstacle_names_the_step_and_nothing_is_started():
    sentence = (
        "there is no public URL because NGROK_AUTHTOKEN is not set; set it, or NGROK_AUTHTOKEN_FILE to a file that "
        "holds it, to your token from https://dashboard.ngrok.com/get-started/your-authtoken"
    )
    assert tunnel_obstacle() == sentence
    with pytest.raises(TunnelError) as caught:
        Tunnel(8000).start()
    assert str(caught.value) == sentence


def test_a_token_file_that_others_can_read_is_an_obstacle(monkeypatch, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o640)
    monkeypatch.setenv("NGROK_AUTHTOKEN_FILE", str(tmp_path / "token"))
    assert tunnel_obstacle() == (
        "there is no public URL because the ngrok token cannot be read: NGROK_AUTHTOKEN_FILE: "
        f"{tmp_path}/token can be read by others (mode 0640); run: chmod 600 {tmp_path}/token"
    )


def test_a_named_agent_that_is_not_there_is_an_obstacle_and_never_a_download(monkeypatch, tmp_path):
    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    monkeypatch.setenv("PYNGROK_NGROK_PATH", str(tmp_path / "ngrok"))
    assert tunnel_obstacle() == (
        f"there is no public URL because PYNGROK_NGROK_PATH names no executable file: {tmp_path}/ngrok; {SET_UP}"
    )
    with pytest.raises(TunnelError, match="names no executable file"):
        Tunnel(8000).start()
    assert not (tmp_path / "ngrok").exists()


def test_with_token_and_agent_there_is_no_obstacle(agent):
    agent()
    assert tunnel_obstacle() == ""


def test_an_agent_that_can_be_neither_found_nor_downloaded_is_an_error_with_the_set_up_step(monkeypatch, tmp_path):
    from pyngrok import conf, installer

    monkeypatch.setenv("NGROK_AUTHTOKEN", TOKEN)
    # The folder of this Python holds pyngrok's script called "ngrok", which must not be taken for the agent.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/bin")
    monkeypatch.setattr(conf, "DEFAULT_NGROK_PATH", str(tmp_path / "home" / "ngrok"))
    monkeypatch.setattr(installer, "get_ngrok_cdn_url", lambda _: "http://127.0.0.1:9/ngrok-v3-stable-linux-amd64.tgz")
    with pytest.raises(TunnelError) as caught:
        Tunnel(8000).start()
    assert str(caught.value).startswith("the ngrok agent is not here and cannot be downloaded (")
    assert str(caught.value).endswith(f"; {SET_UP}")


# A client that knows the model's name


def test_a_client_by_name_survives_a_tunnel_that_comes_back_elsewhere(agent, local_server, tmp_path):
    agent()
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(UnknownAddress):
        Client.of("tiny", bucket=store.url)
    with Tunnel(local_server) as tunnel:
        publish_address(store, tunnel.public_url, "tiny")
        client = Client.of("tiny", bucket=store.url, patience=20)
        assert client.predict_single(b"image").status == 201
        first = tunnel.public_url
        tunnel.stop()

        def restart():
            time.sleep(0.5)
            publish_address(store, tunnel.start(), "tiny")

        thread = threading.Thread(target=restart)
        thread.start()
        assert client.predict_single(b"image").status == 201
        thread.join()
        assert client.url == tunnel.public_url != first
        client.close()


def test_a_tunnel_that_does_not_reach_its_service_is_asked_again(agent, local_server, tmp_path):
    agent()
    store = open_store(str(tmp_path / "store"))
    with Tunnel(9) as tunnel:
        publish_address(store, tunnel.public_url, "tiny")
        client = Client.of("tiny", bucket=store.url, patience=20)
        publish_address(store, f"http://127.0.0.1:{local_server}", "tiny")
        assert client.predict_single(b"image").status == 201
        client.close()
