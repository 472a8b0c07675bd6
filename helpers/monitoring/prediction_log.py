"""What a server predicted, on disk: written in batches, kept within limits, and honest about what a kill lost.

python -m helpers.monitoring.prediction_log export LOG OUT.parquet
python -m helpers.monitoring.prediction_log replay LOG REQUEST_ID
"""

import argparse
import fcntl
import json
import logging
import mmap
import os
import sqlite3
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from helpers.delivery.storage import StorageError
from helpers.inference.source import ModelSource
from helpers.monitoring.log_file import LogError, open_to_write
from helpers.monitoring.log_reader import LogReader, export
from helpers.monitoring.log_row import COLUMNS
from helpers.monitoring.outage import Outage
from helpers.monitoring.replay import replay
from helpers.registry import RegistryError
from helpers.workspace import ROOT, add_bucket_option

MAX_ROWS = 1_000_000  # of about 700 bytes, and 3 kB more with the image

_COUNTER = struct.Struct("<qq")  # session, and predictions that it accepted
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_logger = logging.getLogger(__name__)


_INSERT = f"INSERT INTO predictions ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class PredictionLog:
    """The log at `path`, open to write; for one thread, except `accept`. One server at a time may have it open.

    How much a killed server lost is known because accepted predictions are counted in shared memory of the system, in
    the file ``<path>-accepted``, which outlives the process.

    Args:
        keep_images: whether rows hold their image, for `replay` and for exemplars.
        max_rows: past it the oldest rows are deleted that all readers with a cursor have passed; past twice as many
            the oldest go whoever still needs them, and a warning says so.

    Raises:
        LogError: if the file cannot be opened or is no log, or another server writes it.
    """

    def __init__(self, path: Path, *, keep_images: bool = False, max_rows: int = MAX_ROWS) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.path, self.keep_images, self.max_rows = Path(path), keep_images, max_rows
        self._rotation = Outage(f"the oldest rows of {path} cannot be deleted now; the next rows try again")
        self._connection = open_to_write(self.path)
        with ExitStack() as undo:
            undo.callback(self._connection.close)
            try:
                self._file = os.open(f"{self.path}-accepted", os.O_RDWR | os.O_CREAT, 0o644)
                undo.callback(os.close, self._file)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(self._file, _COUNTER.size)
                self._counter = mmap.mmap(self._file, _COUNTER.size)  # of a copy of the file, and so of the lock
                undo.callback(self._counter.close)
                self.gap = self._find_gap()
                self._begin()
            except (OSError, sqlite3.Error) as error:
                busy = isinstance(error, BlockingIOError)
                why = "another server writes it; give this one a log of its own" if busy else error
                raise LogError(f"cannot write {self.path}: {why}") from error
            undo.pop_all()
        if self.gap:
            _logger.warning(self.gap)
        self._accepted = self.written = self.overrun = 0
        _COUNTER.pack_into(self._counter, 0, self._session, 0)

    def _begin(self):
        boot, now = _boot_id(), time.time()
        with self._transaction() as database:
            insert = "INSERT INTO sessions (started, boot, committed) VALUES (?, ?, ?)"
            self._session = database.execute(insert, (now, boot, now)).lastrowid
            first, last = database.execute("SELECT min(sequence), max(sequence) FROM predictions").fetchone()
        self._first, self._last = first or 1, last or 0

    def accept(self, count: int) -> None:
        """Says that `count` predictions are on their way to `append`; from one thread, which may be another."""
        self._accepted += count
        _COUNTER.pack_into(self._counter, 0, self._session, self._accepted)

    def append(self, rows: Sequence[tuple], lost: int = 0) -> None:
        """Writes `rows`, as `monitoring.log_row` makes them, all or none; on return they are on the disk.

        Args:
            lost: predictions of this session so far that were not accepted, for want of room.

        Raises:
            sqlite3.Error: if the disk does not take them.
        """
        with self._transaction() as database:
            database.executemany(_INSERT, rows)
            update = "UPDATE sessions SET committed = ?, written = ?, lost = ? WHERE id = ?"
            database.execute(update, (time.time(), self.written + len(rows), lost, self._session))
        self.written += len(rows)
        self._last += len(rows)
        if self._last - self._first >= self.max_rows + max(100, self.max_rows // 100):
            with self._rotation:  # whose errors must not make anyone give rows again that are on the disk
                self._rotate()

    def find(self, request_id: str) -> list[sqlite3.Row]:
        """As `LogReader.find`."""
        query = "SELECT * FROM predictions WHERE request_id = ? ORDER BY position"
        return self._connection.execute(query, (request_id,)).fetchall()

    def label(self, request_id: str, position: int, label: int) -> tuple[int, bool]:
        """Keeps the true class of a prediction, unless one is known; returns the one kept, and whether it was known.

        Raises:
            sqlite3.Error: if the disk does not take it.
        """
        key = (request_id, position)
        with self._transaction() as database:
            insert = "INSERT OR IGNORE INTO feedback VALUES (?, ?, ?, ?)"
            known = not database.execute(insert, (*key, label, time.time())).rowcount
            query = "SELECT label FROM feedback WHERE request_id = ? AND position = ?"
            return database.execute(query, key).fetchone()[0], known

    def report(self, kind: str, report: dict) -> None:
        """Keeps the latest report of that kind for readers. Raises sqlite3.Error if the disk does not take it."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO reports VALUES (?, ?, ?)", (kind, time.time(), json.dumps(report)))

    def close(self) -> None:
        """Marks the session as ended in order; a second call does nothing."""
        if self._counter.closed:
            return
        try:
            with self._transaction() as database:
                database.execute("UPDATE sessions SET ended = 1 WHERE id = ?", (self._session,))
        except sqlite3.Error as error:
            _logger.warning("the end of the session could not be noted in %s (%s)", self.path, error)
        self._connection.close()
        self._counter.close()
        os.close(self._file)

    def _rotate(self):
        """Deletes the oldest rows, in a transaction of its own; SQLite fills their pages again."""
        passed = self._connection.execute("SELECT min(sequence) FROM cursors").fetchone()[0]
        wanted, forced = self._last - self.max_rows, self._last - 2 * self.max_rows
        upto = max(wanted if passed is None else min(wanted, passed), forced)
        if upto < self._first:
            return
        with self._transaction() as database:
            database.execute(
                "DELETE FROM feedback WHERE (request_id, position) IN "
                "(SELECT request_id, position FROM predictions WHERE sequence <= ?)",
                (upto,),
            )
            database.execute("DELETE FROM predictions WHERE sequence <= ?", (upto,))
        if passed is not None and upto > passed:
            self.overrun += upto - max(passed, self._first - 1)
            _logger.warning(
                "%s holds twice its %d rows: the oldest are deleted up to %d, and a reader is only at %d",
                *(self.path, self.max_rows, upto, passed),
            )
        self._first = upto + 1

    def _find_gap(self):
        """What the session before may have lost, in a sentence; "" where it ended in order or lost nothing."""
        before = self._connection.execute("SELECT * FROM sessions ORDER BY id DESC LIMIT 1").fetchone()
        if before is None or before["ended"]:
            return ""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(before["committed"]))
        began = f"the server before did not end in order; {self.path} goes up to {when}"
        session, accepted = _COUNTER.unpack_from(self._counter, 0)
        if session != before["id"] or before["boot"] != _boot_id():
            return f"{began}, and the machine stopped too: how many predictions came after that is not known"
        missing = accepted - before["written"]
        return f"{began}, and {missing} later predictions are not in it" if missing > 0 else ""

    @contextmanager
    def _transaction(self):
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _boot_id():
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 0, 1 where a replay differs, 2 with one sentence after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.monitoring.prediction_log", description="Reads a prediction log."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    to_parquet = commands.add_parser("export", help="write all predictions to a Parquet file")
    to_parquet.add_argument("log", type=Path)
    to_parquet.add_argument("parquet", type=Path)
    again = commands.add_parser("replay", help="answer a request again, where its image was kept")
    again.add_argument("log", type=Path)
    again.add_argument("request_id")
    add_bucket_option(again)
    arguments = parser.parse_args(argv)
    try:
        with LogReader(arguments.log) as log:
            if arguments.command == "export":
                print(f"{export(log, arguments.parquet)} predictions written to {arguments.parquet}")
                return 0
            answers = replay(log, arguments.request_id, ModelSource(arguments.bucket), ROOT / "model")
    except (LogError, RegistryError, StorageError, LookupError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for answer in answers:
        print(answer)
    return 0 if all(answer.same for answer in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
