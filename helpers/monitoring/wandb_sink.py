"""Sends a prediction log to Weights & Biases: each prediction exactly once, in a process of its own.

    python -m helpers.monitoring.wandb_sink LOG --directory FOLDER [--mode online]     sends what waits, and ends

The log is the queue. A prediction's sequence is its step in W&B, and a cursor in the log says how far it got. Where a
kill leaves in doubt what W&B has, the run itself is asked: the server for its last step, the file of an offline run
for what it holds. While the server cannot be reached, predictions wait in the log.
"""

import argparse
import fcntl
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from uuid import uuid4

from helpers.monitoring.log_file import LogError, open_to_write
from helpers.monitoring.log_reader import LogReader, scalars_of
from helpers.monitoring.outage import Outage
from helpers.monitoring.tracking import MODES, NoApiKey, connect_run, finish_run, start_run
from helpers.monitoring.wandb_file import read_history
from helpers.monitoring.window import Window
from helpers.workspace import ROOT

NAME = "wandb"
COMMAND = "python -m helpers.monitoring.wandb_sink"
BATCH = 500
RETRY_S, IDLE_S, STOP_S, SETTLED_S = 2.0, 0.5, 20.0, 1.0

_logger = logging.getLogger(__name__)


class WandbSink:
    """Takes the predictions of the log at `log` to one W&B run; for one thread.

    Args:
        mode: "offline" writes a new run at each start; "online" goes on with the log's run, and becomes "offline"
            where there is no API key.
        directory, group: see `monitoring.tracking.start_run`.
    """

    def __init__(self, log: Path, *, mode: str, directory: Path, group: str = "") -> None:
        self._reader, self._writer = LogReader(log), open_to_write(log)
        self._mode, self._directory, self._group = mode, directory, group
        self._run, self._version, self._window = None, None, Window()
        self._outage = Outage(f"W&B does not take predictions now; they wait in {log}")
        self._cursor, self._state = 0, {}
        if cursor := self._reader.cursors().get(NAME):
            self._cursor, self._state = cursor.sequence, cursor.state

    @property
    def waiting(self) -> int:
        """Predictions in the log that W&B has not got."""
        return self._reader.last - self._cursor

    @property
    def out_of_order(self) -> bool:
        """Whether the last try failed."""
        return self._outage.lasting

    def ship(self) -> int:
        """Sends the next predictions; returns how many, 0 also where W&B is out of order, which is logged once."""
        rows = []
        with self._outage:
            if self._run is None:
                self._look_back()
                if self.waiting or (self._mode == "online" and self._state.get("open")):
                    self._open()
            if self._run is not None:
                rows = self._reader.rows(self._cursor, BATCH)
            for row in rows:
                self._send(row)
            if rows:
                self._move(rows[-1]["sequence"], self._state)
        if self._outage.lasting and self._run is not None:
            self._start_over()
            return 0
        return len(rows)

    def close(self) -> None:
        """Finishes the run; says what it did not get."""
        if self._run is not None and finish_run(self._run, STOP_S):
            self._move(self._cursor, self._state | {"open": False})
        if waiting := self.waiting:
            command = f"{COMMAND} {self._reader.path} --directory {self._directory} --mode online"
            _logger.warning("W&B did not get %d predictions; send them later with: %s", waiting, command)
        self._reader.__exit__()
        self._writer.close()

    def _send(self, row):
        if row["version"] != self._version:
            self._run.config.update({"model_version": row["version"]}, allow_val_change=True)
            self._version = row["version"]
        values = scalars_of(row)
        if self._window.add(row):
            values |= self._window.summarise(self._reader.report("drift"), self._reader.report("accuracy"))
            for title, text in self._window.alerts():
                self._run.alert(title, text)
        self._run.log(values, step=row["sequence"], commit=True)

    def _open(self):
        if self._mode == "online":
            run_id = self._state.get("run_id") if self._state.get("mode") == "online" else None
            known = run_id is not None
            run_id, first = run_id or uuid4().hex[:8], self._state["first"] if known else self._cursor + 1
            # Noted before it begins, so that a kill from here on leaves no run that nobody knows.
            self._move(self._cursor, {"mode": "online", "open": True, "run_id": run_id, "first": first})
            try:
                run = connect_run("deploy", group=self._group, directory=self._directory, run_id=run_id)
            except NoApiKey as error:
                _logger.warning("%s; predictions are recorded offline, for: wandb sync", error)
                self._mode, self._state = "offline", {}
                if not self.waiting:
                    return
            else:
                self._run = run
                self._move(max(run.starting_step, first) - 1, self._state)
                return
        run = start_run("deploy", group=self._group, mode="offline", directory=self._directory)
        if run is None:
            raise OSError(f"W&B cannot write to {self._directory}")
        self._run, file = run, Path(run.dir).parent / f"run-{run.id}.wandb"
        self._move(self._cursor, {"mode": "offline", "open": True, "file": str(file), "first": self._cursor + 1})

    def _start_over(self):
        """After an error within a run: W&B's own process may be gone, and what it had is in doubt."""
        import wandb

        self._run, self._version, self._window = None, None, Window()
        with suppress(Exception):  # the error before it has been logged, and the next try looks back again
            wandb.teardown()
            self._look_back()

    def _look_back(self):
        """Sets the cursor to what an offline run that did not end in order really holds."""
        if not self._state.get("open") or self._state["mode"] != "offline":
            return
        sequence = self._cursor
        try:
            while time.time() - Path(self._state["file"]).stat().st_mtime < SETTLED_S:
                time.sleep(0.1)  # W&B's own process ends a moment after the one that was killed
            steps = [row["_step"] for row in read_history(Path(self._state["file"]))]
            sequence = max(steps, default=self._state["first"] - 1)
        except Exception as error:  # noqa: BLE001 - of a damaged file protobuf's own
            _logger.warning("cannot tell what the last W&B run holds (%s); going on after %d", error, sequence)
        self._move(sequence, self._state | {"open": False})

    def _move(self, sequence, state):
        with self._writer:
            self._writer.execute("INSERT OR REPLACE INTO cursors VALUES (?, ?, ?)", (NAME, sequence, json.dumps(state)))
        self._cursor, self._state = sequence, state


class WandbProcess:
    """A sink in a process of its own, at the lowest priority, while the block runs or until `stop`.

    The server neither imports W&B nor waits for it. If the server is killed, this sends what is in the log and ends.
    """

    def __init__(self, log: Path, *, mode: str, directory: Path, group: str = "") -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        self.log, self._process = Path(log), None
        if mode != "disabled":
            command = [sys.executable, "-m", "helpers.monitoring.wandb_sink", str(self.log.resolve()), "--follow"]
            command += ["--mode", mode, "--directory", str(Path(directory).resolve()), "--group", group]
            # Its standard input ends when this process does, however it does.
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)

    def stop(self, timeout: float = STOP_S + 10) -> int:
        """Waits at most `timeout` seconds for the rest to be sent; returns how many predictions W&B did not get."""
        if self._process is None:
            return 0
        self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            _logger.warning("W&B is still being sent the predictions of %s, by process %d", self.log, self._process.pid)
        with LogReader(self.log) as log:
            cursor = log.cursors().get(NAME)
            return log.last - (cursor.sequence if cursor else 0)

    def __enter__(self) -> "WandbProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0 where W&B has everything, 1 where it may not, 2 after an error."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Sends a prediction log to W&B.")
    parser.add_argument("log", type=Path)
    parser.add_argument("--directory", type=Path, required=True, help="folder for W&B's own files")
    parser.add_argument("--mode", choices=[mode for mode in MODES if mode != "disabled"], default="online")
    parser.add_argument("--group", default="", help="the pipeline's run id")
    parser.add_argument("--follow", action="store_true", help="go on until standard input ends")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    stop = threading.Event()
    if arguments.follow:
        os.nice(19)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server; this ends when that does
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
    else:
        stop.set()
    try:
        with open(f"{arguments.log}-{NAME}", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time; the one before may still be finishing
            sink = WandbSink(arguments.log, mode=arguments.mode, directory=arguments.directory, group=arguments.group)
            with closing(sink):
                _follow(sink, stop)
                return 1 if sink.waiting or sink.out_of_order else 0
    except (LogError, OSError, sqlite3.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _follow(sink, stop):
    while True:
        last = stop.is_set()
        while sink.ship():
            pass
        if last:
            return
        stop.wait(RETRY_S if sink.out_of_order else IDLE_S)


if __name__ == "__main__":
    sys.exit(main())
