"""`wandb_sink`: W&B's own client against a server that goes away, and its files read back after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_wandb import FakeWandb
from held_model import wait_until
from logged import Filler

from helpers.monitoring import wandb_sink
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.running_statistics import SCALARS
from helpers.monitoring.tracking import NoApiKey
from helpers.monitoring.wandb_file import read_history
from helpers.monitoring.wandb_sink import WandbProcess, WandbSink, main
from helpers.workspace import ROOT

KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch, tmp_path):
    """No key, no netrc, no W&B setting of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def filler(tmp_path):
    log = PredictionLog(tmp_path / "predictions.db")
    yield Filler(log)
    log.close()


@pytest.fixture
def online(monkeypatch):
    """A W&B server that is down at first, at an address of its own."""
    fake = FakeWandb()
    fake.up()
    fake.down()
    monkeypatch.setenv("WANDB_BASE_URL", fake.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield fake
    fake.down()


class StandIn:
    """As much of W&B's run as a sink uses; it breaks at the step `fragile`."""

    fragile = None

    def __init__(self, folder, options):
        self.id, self.offline, self.starting_step = options.get("run_id", "offline"), "run_id" not in options, 0
        self.dir, self.config, self.steps = str(folder / "files"), {}, []
        self.file = folder / f"run-{self.id}.wandb"
        folder.mkdir()
        self.file.touch()

    def log(self, values, step, commit):
        if step == self.fragile:
            raise RuntimeError("W&B's own process is gone")
        self.steps.append(step)


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The runs that sinks open, as stand-ins; an online one goes on after what those before it took."""
    found = []

    def open_run(*_, **options):
        run = StandIn(tmp_path / f"run-{len(found)}", options)
        run.starting_step = max([step + 1 for before in found for step in before.steps], default=0)
        found.append(run)
        return run

    monkeypatch.setattr(wandb_sink, "start_run", open_run)
    monkeypatch.setattr(wandb_sink, "connect_run", open_run)
    monkeypatch.setattr(wandb_sink, "finish_run", lambda run, timeout: True)
    monkeypatch.setattr(wandb_sink, "SETTLED_S", 0)
    monkeypatch.setattr(
        wandb_sink,
        "read_history",
        lambda file: [{"_step": step} for run in found if run.file == file for step in run.steps],
    )
    monkeypatch.setattr("wandb.teardown", lambda: None)
    return found


def scalars(rows):
    """The five scalars of rows of W&B or of the log, with their steps."""
    if "_step" in rows[0]:
        return [(row["_step"], *(row[name] for name in SCALARS)) for row in rows]
    columns = ("seconds", "average_seconds", "class_index", "average_index", "mode_index")
    return [(step, *(row[column] for column in columns)) for step, row in enumerate(rows, 1)]


def recorded(folder):
    """The history of all runs whose files lie in `folder`, in the order of their start."""
    return [row for file in sorted(folder.rglob("run-*.wandb")) for row in read_history(file)]


def kill_all(process):
    """Kills a sink as a power cut would: W&B's own process with it."""
    os.killpg(process._process.pid, signal.SIGKILL)
    process._process.wait()
    process._process.stdin.close()


def runs(pid):
    """Whether the process is there and has not ended; nobody may have asked for its exit status yet."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def cursor(filler):
    with LogReader(filler.log.path) as log:
        return log.cursors()["wandb"].sequence


def test_unreachable_at_start_cut_in_the_middle_and_killed_each_prediction_arrives_once(filler, online, tmp_path):
    sink = WandbProcess(filler.log.path, mode="online", directory=tmp_path)
    filler.fill(700)
    time.sleep(2)
    assert not online.lines
    online.up()
    assert sink.stop() == 0
    (run,) = online.lines
    assert len(online.history(run)) == 700
    sink = WandbProcess(filler.log.path, mode="online", directory=tmp_path)
    filler.fill(100)
    wait_until(lambda: cursor(filler) == 800)  # it runs again
    online.down()
    filler.fill(200)
    wait_until(lambda: cursor(filler) == 1000)  # W&B's process has them, and cannot send them
    kill_all(sink)
    assert len(online.history(run)) < 1000
    filler.fill(200)
    online.up()
    sink = WandbProcess(filler.log.path, mode="online", directory=tmp_path)
    filler.fill(50)
    assert sink.stop() == 0
    assert scalars(online.history(run)) == scalars(filler.rows)
    assert list(online.lines) == [run]
    assert online.config[run]["model_version"]["value"] == "20261101T120000Z-0123456789ab"


def test_a_run_offline_that_is_killed_goes_on_in_another_and_repeats_nothing(filler, tmp_path):
    sink = WandbProcess(filler.log.path, mode="offline", directory=tmp_path)
    filler.fill(900)
    wait_until(lambda: (tmp_path / "wandb").exists() and recorded(tmp_path), 20)
    kill_all(sink)
    filler.fill(100)
    sink = WandbProcess(filler.log.path, mode="offline", directory=tmp_path)
    assert sink.stop() == 0
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 2
    assert scalars(recorded(tmp_path)) == scalars(filler.rows)


def test_when_wandbs_own_process_dies_the_sink_goes_on_with_another(filler, online, tmp_path):
    online.up()
    sink = WandbProcess(filler.log.path, mode="online", directory=tmp_path)
    filler.fill(50)
    wait_until(lambda: online.lines and cursor(filler) == 50, 20)
    children = Path(f"/proc/{sink._process.pid}/task/{sink._process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGKILL)
    filler.fill(50)
    wait_until(lambda: cursor(filler) == 100, 20)
    assert sink.stop() == 0
    (run,) = online.lines
    assert children
    assert scalars(online.history(run)) == scalars(filler.rows)


def test_what_a_cursor_says_beyond_the_file_of_a_killed_run_is_sent_again(filler, tmp_path):
    """As after a power cut, which takes what W&B had not written yet."""
    filler.fill(30)
    assert main([str(filler.log.path), "--mode", "offline", "--directory", str(tmp_path / "a")]) == 0
    (file,) = (tmp_path / "a").rglob("run-*.wandb")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    held = read_history(file)
    assert 0 < len(held) < 30
    with filler.log._transaction() as database:
        database.execute("UPDATE cursors SET state = json_set(state, '$.open', json('true'))")
    assert main([str(filler.log.path), "--mode", "offline", "--directory", str(tmp_path / "b")]) == 0
    assert scalars(held + recorded(tmp_path / "b")) == scalars(filler.rows)


def test_a_run_that_breaks_again_and_again_is_said_once_and_tried_again_later(
    filler, opened, tmp_path, monkeypatch, caplog
):
    filler.fill(10)
    monkeypatch.setattr(StandIn, "fragile", 5)
    sink = WandbSink(filler.log.path, mode="offline", directory=tmp_path)
    for _ in range(3):
        assert sink.ship() == 0
        assert sink.out_of_order
    assert caplog.messages == [f"W&B does not take predictions now; they wait in {filler.log.path}"]
    sink.close()


def test_the_run_after_one_that_broke_has_its_version_and_sums_up_each_prediction_once(
    filler, opened, tmp_path, monkeypatch
):
    filler.fill(10)
    monkeypatch.setattr(StandIn, "fragile", 5)
    sink = WandbSink(filler.log.path, mode="offline", directory=tmp_path)
    assert sink.ship() == 0
    monkeypatch.setattr(StandIn, "fragile", None)
    assert sink.ship() == 6
    assert [run.steps for run in opened] == [[1, 2, 3, 4], [5, 6, 7, 8, 9, 10]]
    assert opened[1].config["model_version"] == "20261101T120000Z-0123456789ab"
    assert len(sink._window._rows) == 6
    sink.close()


def test_while_another_holds_the_log_nothing_ends_and_nothing_is_sent_twice(filler, opened, tmp_path):
    filler.fill(5)
    sink = WandbSink(filler.log.path, mode="offline", directory=tmp_path)
    sink._writer.execute("PRAGMA busy_timeout = 1")
    assert sink.ship() == 5
    filler.fill(3)
    with filler.log._transaction():
        for _ in range(2):
            assert sink.ship() == 0
            assert sink.out_of_order
    filler.fill(1)
    assert sink.ship() == 1
    assert [run.steps for run in opened] == [[1, 2, 3, 4, 5, 6, 7, 8], [9]]
    sink.close()


def test_after_a_run_whose_file_is_damaged_the_sink_goes_on_and_says_so_once(
    filler, opened, tmp_path, caplog, monkeypatch
):
    filler.fill(5)
    sink = WandbSink(filler.log.path, mode="offline", directory=tmp_path)
    sink.ship()  # and it is killed
    opened[0].file.write_bytes(b":W&B\0\0\0" + bytes(4) + b"\x14\0\x01" + b"\xff" * 20)
    monkeypatch.setattr(wandb_sink, "read_history", read_history)
    sink = WandbSink(filler.log.path, mode="offline", directory=tmp_path)
    for _ in range(2):
        assert sink.ship() == 0
    (said,) = caplog.messages
    assert said.startswith("cannot tell what the last W&B run holds (")
    assert said.endswith("; going on after 5")
    filler.fill(1)
    assert sink.ship() == 1
    assert opened[1].steps == [6]
    sink.close()


def test_after_a_kill_the_server_is_asked_what_it_has_also_where_nothing_new_waits(filler, opened, tmp_path):
    filler.fill(10)
    assert WandbSink(filler.log.path, mode="online", directory=tmp_path).ship() == 10
    del opened[0].steps[5:]  # the kill took what W&B's own process had not sent yet
    for _ in range(2):
        sink = WandbSink(filler.log.path, mode="online", directory=tmp_path)
        while sink.ship():
            pass
        sink.close()
    assert [run.steps for run in opened] == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert opened[1].id == opened[0].id


@pytest.mark.parametrize(("error", "result"), [(ConnectionError("away"), 1), (NoApiKey("no key"), 0)])
def test_while_it_cannot_be_asked_no_other_run_is_opened(filler, opened, tmp_path, monkeypatch, error, result):
    filler.fill(10)
    assert WandbSink(filler.log.path, mode="online", directory=tmp_path).ship() == 10

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(wandb_sink, "connect_run", refuse)
    assert main([str(filler.log.path), "--mode", "online", "--directory", str(tmp_path)]) == result
    assert len(opened) == 1
    with LogReader(filler.log.path) as log:
        assert log.cursors()["wandb"].state["run_id"] == opened[0].id


def test_when_the_server_is_killed_the_sink_sends_the_rest_and_ends(filler, tmp_path):
    filler.fill(20)
    code = (
        "import sys, time; from helpers.monitoring.wandb_sink import WandbProcess; "
        "sink = WandbProcess(sys.argv[1], mode='offline', directory=sys.argv[2]); "
        "print(sink._process.pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(filler.log.path), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        pid = int(server.stdout.readline())
        server.kill()
    wait_until(lambda: not runs(pid), 20)
    assert scalars(recorded(tmp_path)) == scalars(filler.rows)


def test_what_the_server_never_took_waits_in_the_log_and_is_said(filler, online, tmp_path):
    filler.fill(10)
    command = [
        sys.executable,
        "-m",
        "helpers.monitoring.wandb_sink",
        str(filler.log.path),
        "--directory",
        str(tmp_path),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert (
        "W&B did not get 10 predictions; send them later with: python -m helpers.monitoring.wandb_sink" in result.stderr
    )
    online.up()
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    (run,) = online.lines
    assert scalars(online.history(run)) == scalars(filler.rows)


def test_starting_a_sink_takes_no_time_of_the_server(filler, online, tmp_path):
    started = time.perf_counter()
    sink = WandbProcess(filler.log.path, mode="online", directory=tmp_path)
    assert time.perf_counter() - started < 0.5
    kill_all(sink)


def test_a_mode_that_is_none_is_refused_and_disabled_starts_nothing(filler, tmp_path):
    with pytest.raises(ValueError, match=r"^mode: expected one of online, offline, disabled, got 'off'$"):
        WandbProcess(filler.log.path, mode="off", directory=tmp_path)
    with WandbProcess(filler.log.path, mode="disabled", directory=tmp_path) as sink:
        assert sink.stop() == 0


def test_what_is_no_log_is_one_sentence(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "--directory", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no prediction log at {tmp_path}/none; ")
