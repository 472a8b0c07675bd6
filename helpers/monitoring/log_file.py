"""The file of a prediction log: an SQLite database that says it is one, opened to write by one and to read by many."""

import sqlite3
from pathlib import Path

APPLICATION = 0x43363850  # in the header of the file, so that no other database is taken for a log
SCHEMA = 1

TABLES = """
BEGIN;
CREATE TABLE predictions (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,  -- from 1, never used twice
    time REAL NOT NULL,  -- Unix seconds
    request_id TEXT NOT NULL,
    position INTEGER NOT NULL,  -- of the image in its request
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    class_index INTEGER NOT NULL,
    class_name TEXT NOT NULL,
    confidence REAL NOT NULL,
    top TEXT NOT NULL,  -- JSON: the first classes with their probabilities, in order
    seconds REAL NOT NULL,  -- from having the request to the answer
    average_seconds REAL NOT NULL,  -- this and the next two: over the life of the server
    average_index REAL NOT NULL,
    mode_index INTEGER NOT NULL,
    scores TEXT NOT NULL,  -- JSON: image statistics and drift scores by name
    image BLOB  -- the 32x32 RGB pixels, if they are kept
);
CREATE INDEX request ON predictions (request_id, position);
CREATE TABLE feedback (
    request_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    label INTEGER NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (request_id, position)
) WITHOUT ROWID;
CREATE TABLE cursors (reader TEXT PRIMARY KEY, sequence INTEGER NOT NULL, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE reports (kind TEXT PRIMARY KEY, time REAL NOT NULL, report TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    started REAL NOT NULL,
    boot TEXT NOT NULL,  -- of the machine
    committed REAL NOT NULL,  -- time of the last commit
    written INTEGER NOT NULL DEFAULT 0,  -- predictions
    lost INTEGER NOT NULL DEFAULT 0,  -- predictions that found no room on the way here
    ended INTEGER NOT NULL DEFAULT 0  -- 1 after an orderly end
);
PRAGMA application_id = %d;
PRAGMA user_version = %d;
COMMIT;
"""


class LogError(RuntimeError):
    """A prediction log that cannot be opened or read, in one sentence with the next step."""


def open_to_write(path: Path) -> sqlite3.Connection:
    """The log at `path`, made if there is none; for the use of any one thread at a time.

    Commits reach the disk itself (synchronous FULL): there are a few a second, and not on the path of a request.

    Raises:
        LogError: if the file is no log, is damaged, or cannot be written; it is left as it was.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists() or (not path.is_dir() and path.stat().st_size == 0)
    except OSError as error:
        raise LogError(f"cannot write {path} ({error.strerror}); choose another place for the log") from error
    if not new:
        open_to_read(path).close()
    try:
        connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
        if new:  # at once, and before WAL: a kill leaves an empty file or a whole one
            connection.executescript(TABLES % (APPLICATION, SCHEMA))
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise LogError(f"cannot write {path} ({error}); make room or choose another place for the log") from error
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """The log at `path`, read-only; rows come as `sqlite3.Row`.

    Raises:
        LogError: if there is none, or the file is no log or damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise LogError(f"{path} is a folder, not a prediction log; name a file in it")
    if not path.is_file():
        raise LogError(f"there is no prediction log at {path}; serve with --log to write one")
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=5, isolation_level=None, check_same_thread=False
        )
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        if application == APPLICATION and schema == SCHEMA:
            connection.row_factory = sqlite3.Row
            connection.execute("SELECT count(*) FROM sessions").fetchone()
            return connection
        connection.close()
    except sqlite3.Error as error:
        raise LogError(f"{path} cannot be read as a prediction log ({error}); move it away or name another") from error
    found = f"a log of schema {schema}" if application == APPLICATION else "another database"
    raise LogError(f"{path} is {found}, not a prediction log of schema {SCHEMA}; move it away or name another")
