"""`tracking`: runs are read back from the file W&B writes, and no W&B trouble reaches the caller."""

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.delivery import events
from helpers.delivery.bundle import read_bundle
from helpers.monitoring import tracking
from helpers.monitoring.tracking import finish_run, log_model, start_run
from helpers.monitoring.wandb_file import read_history, read_records
from helpers.workspace import ROOT

KEY = "0123456789abcdef" * 2 + "01234567"  # W&B checks that a key has 40 characters
pytestmark = pytest.mark.usefixtures("own_wandb")


@pytest.fixture
def server(monkeypatch):
    """Point a fresh W&B session at a URL; W&B reads its environment once per session."""
    import wandb

    def point_at(url):
        wandb.teardown()
        monkeypatch.setenv("WANDB_BASE_URL", url)

    yield point_at
    wandb.teardown()


def unused_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def records(directory):
    """Every record of the one ``.wandb`` file under `directory`."""
    (file,) = directory.rglob("*.wandb")
    return list(read_records(file))


def recorded(directory):
    deadline = time.monotonic() + 10
    while "exit" not in [record.WhichOneof("record_type") for record in records(directory)]:
        # W&B's service writes the end of the file a moment after run.finish() has returned.
        assert time.monotonic() < deadline, "the run's file has no exit record"
        time.sleep(0.02)
    found = list(records(directory))
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    (file,) = directory.rglob("*.wandb")
    history = read_history(file)
    return run, config, [{k: v for k, v in step.items() if not k.startswith("_")} for step in history], found


def environment_without_service():
    """W&B itself leaves one variable behind, with which child processes find its service."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


def said(caplog):
    """What `monitoring.tracking` logged; W&B logs too."""
    return [record.getMessage() for record in caplog.records if record.name == "helpers.monitoring.tracking"]


def test_an_offline_run_holds_its_names_its_config_and_what_was_logged(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = environment_without_service()
    run = start_run("train", group="run-7", config={"epochs": 3, "width": 0.5}, directory=tmp_path / "out" / "deep")
    run.log({"loss": 1.5})
    run.log({"loss": 1.25, "top1": 0.5})
    assert finish_run(run)

    saved, config, history, found = recorded(tmp_path)
    assert (saved.project, saved.job_type, saved.run_group) == ("mlops-midterm", "train", "run-7")
    assert {"epochs": 3, "width": 0.5}.items() <= config.items()
    assert history == [{"loss": 1.5}, {"loss": 1.25, "top1": 0.5}]
    assert [record.exit.exit_code for record in found if record.WhichOneof("record_type") == "exit"] == [0]
    assert [path.name for path in tmp_path.iterdir() if path.name != ".cache"] == ["out"]  # nothing in ./wandb
    assert [path.name for path in (tmp_path / "out" / "deep").iterdir()] == ["wandb"]
    assert capfd.readouterr() == ("", "")
    assert environment_without_service() == environment


def test_a_published_model_is_an_artifact_with_its_aliases_and_copies_nothing_elsewhere(tmp_path, bundle_dir):
    bundle = read_bundle(bundle_dir)
    run = start_run("train", directory=tmp_path / "out")
    log_model(run, bundle, ["latest", bundle.version, "production"], url="gs://somewhere")
    assert finish_run(run)

    *_, found = recorded(tmp_path / "out")
    (artifact,) = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    assert (artifact.type, artifact.name, artifact.project) == ("model", "tiny", "mlops-midterm")
    assert sorted(artifact.aliases) == sorted(["latest", bundle.version, "production"])
    assert json.loads(artifact.metadata) == {"version": bundle.version, "url": "gs://somewhere"}
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert files == {name: str(bundle_dir / name) for name in ("manifest.json", "model_card.md")}
    assert list(tmp_path.rglob("model_card.md")) == [bundle_dir / "model_card.md"]


def test_an_artifact_that_cannot_be_made_costs_the_artifact_and_not_the_work(tmp_path, bundle_dir, caplog):
    bundle = read_bundle(bundle_dir)
    (bundle_dir / "model_card.md").unlink()
    log_model(None, bundle, ["latest"])
    run = start_run("train", directory=tmp_path / "out")
    log_model(run, bundle, ["latest"])
    assert finish_run(run)
    assert said(caplog) == [f"W&B did not take version {bundle.version} as an artifact of run {run.id}"]


def test_no_secret_no_command_line_and_no_git_state_is_recorded(tmp_path, monkeypatch):
    """In a script of its own, inside a repository: what W&B looks at when nothing stops it."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for command in (["init", "-q"], ["remote", "add", "origin", "https://user:planted-in-git@example.org/x.git"]):
        subprocess.run(["git", *command], check=True, cwd=repository)
    (repository / "work.py").write_text(
        "from helpers.monitoring.tracking import finish_run, start_run\n"
        "run = start_run('eda', directory='out')  # planted-in-code\n"
        "run.log({'x': 1})\n"
        "assert finish_run(run)\n"
    )
    subprocess.run(
        [sys.executable, "work.py", "--token=planted-in-argv"],
        cwd=repository,
        env=os.environ | {"WANDB_API_KEY": KEY, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert recorded(repository / "out")[2] == [{"x": 1}]
    written = {path: path.read_bytes() for path in (repository / "out").rglob("*") if path.is_file()}
    for planted in (KEY.encode(), b"planted", b"requirements.txt"):
        assert [path for path, content in written.items() if planted in content] == []


def test_what_happens_to_a_model_while_a_run_is_open_is_in_it(tmp_path):
    run = start_run("train", directory=tmp_path)
    events.announce(events.PROMOTED, "tiny", "v7")
    assert finish_run(run)
    events.announce(events.ROLLED_BACK, "tiny", "v6")
    assert recorded(tmp_path)[2] == [{"Event/promoted": "v7"}]


def test_two_runs_in_one_process_do_not_mix(tmp_path):
    first, second = (start_run("monitor", directory=tmp_path / name) for name in "ab")
    first.log({"x": 1})
    second.log({"x": 2})
    assert finish_run(first)
    second.log({"x": 3})
    assert finish_run(second)
    assert recorded(tmp_path / "a")[2] == [{"x": 1}]
    assert recorded(tmp_path / "b")[2] == [{"x": 2}, {"x": 3}]


def test_online_without_a_key_is_recorded_offline_and_says_what_to_set(tmp_path, caplog):
    run = start_run("train", mode="online", directory=tmp_path)
    run.log({"x": 1})
    assert finish_run(run)
    assert recorded(tmp_path)[2] == [{"x": 1}]
    assert said(caplog) == [
        "W&B has no API key (set WANDB_API_KEY or WANDB_API_KEY_FILE, or run: wandb login); this run is recorded "
        f"offline, send it later with: wandb sync {tmp_path}/wandb/offline-run-*"
    ]


def test_a_key_file_that_others_can_read_is_not_used(tmp_path, caplog, monkeypatch):
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "key").chmod(0o644)
    monkeypatch.setenv("WANDB_API_KEY_FILE", str(tmp_path / "key"))
    assert finish_run(start_run("train", mode="online", directory=tmp_path))
    assert "can be read by others" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("source", ["environment", "file", "netrc"])
def test_a_dead_server_is_noticed_within_seconds_and_the_run_goes_offline(
    source, tmp_path, caplog, monkeypatch, server
):
    url = f"http://127.0.0.1:{unused_port()}"
    server(url)
    if source == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        path = tmp_path / source
        path.write_text(KEY if source == "file" else f"machine 127.0.0.1\nlogin user\npassword {KEY}\n")
        path.chmod(0o600)
        monkeypatch.setenv("WANDB_API_KEY_FILE" if source == "file" else "NETRC", str(path))
    environment = environment_without_service()
    started = time.monotonic()
    run = start_run("deploy", mode="online", directory=tmp_path / "out")
    run.log({"x": 1})
    assert finish_run(run)
    assert time.monotonic() - started < 6
    assert recorded(tmp_path / "out")[2] == [{"x": 1}]
    assert said(caplog)[0].startswith(f"W&B cannot be reached at {url} (")
    assert KEY not in caplog.text
    assert environment_without_service() == environment


def test_a_server_that_takes_the_connection_and_says_nothing_is_given_up(tmp_path, caplog, monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "_PROBE_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        assert finish_run(start_run("deploy", mode="online", directory=tmp_path))
        assert time.monotonic() - started < 4
    assert "W&B cannot be reached at http://127.0.0.1:" in caplog.text


@contextlib.contextmanager
def web_server(status, body=b"{}"):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [401, 500])
def test_a_server_that_refuses_the_run_leaves_it_offline(status, tmp_path, caplog, monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(tracking, "_INIT_TIMEOUT_S", 1.0)
    with web_server(status) as url:
        server(url)
        started = time.monotonic()
        run = start_run("deploy", mode="online", directory=tmp_path)
        assert time.monotonic() - started < 6
        assert run.offline
        assert finish_run(run)
    assert said(caplog)[0].startswith("W&B refused the run (")
    assert KEY not in caplog.text


def test_disabled_is_no_run_and_neither_it_nor_the_module_imports_wandb(tmp_path):
    program = (
        "import sys; from helpers.monitoring.tracking import start_run, finish_run\n"
        f"run = start_run('eda', mode='disabled', directory={str(tmp_path / 'out')!r})\n"
        "print(run, finish_run(run), 'wandb' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed == "None True False\n"
    assert not (tmp_path / "out").exists()


def test_an_unknown_mode_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"^mode: expected one of online, offline, disabled, got 'onlin'$"):
        start_run("eda", mode="onlin", directory=tmp_path)


def test_a_directory_that_cannot_be_made_costs_the_run_and_not_the_work(tmp_path, caplog):
    (tmp_path / "file").touch()
    assert start_run("eda", directory=tmp_path / "file" / "below") is None
    assert said(caplog) == ["W&B cannot record this run; the work goes on without it"]
    assert caplog.records[0].exc_info


class StuckRun:
    id, dir = "abc", "/somewhere/run-abc/files"

    def __init__(self, finish):
        self.finish = finish


def test_a_run_that_will_not_finish_is_left_after_the_timeout(caplog):
    release = threading.Event()
    started = time.monotonic()
    assert finish_run(StuckRun(release.wait), timeout=0.1) is False
    assert time.monotonic() - started < 2
    release.set()
    assert said(caplog) == [
        "W&B did not finish run abc within 0.1 s; send what is missing later with: wandb sync /somewhere/run-abc"
    ]


def test_a_run_that_fails_to_finish_is_logged_and_not_raised(caplog):
    def fail():
        raise RuntimeError("disk full")

    with caplog.at_level(logging.ERROR):
        assert finish_run(StuckRun(fail)) is False
    assert said(caplog) == ["W&B could not finish run abc"]
    assert "disk full" in caplog.text
