"""Reads a prediction log, also while a server writes it: rows by sequence or request, and a Parquet file of them."""

import json
import os
import sqlite3
import uuid
from dataclasses import dataclass
from pathlib import Path

from helpers.monitoring.log_file import LogError, open_to_read
from helpers.monitoring.running_statistics import SCALARS

_COLUMNS = ("seconds", "average_seconds", "class_index", "average_index", "mode_index")  # of the five scalars


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come.

    Attributes:
        sequence: of the last prediction that it has dealt with; 0 before the first.
        state: what else the reader must know to go on.
    """

    sequence: int
    state: dict


class LogReader:
    """The log at `path`, read-only, for the use of one thread; a context manager that closes it.

    Raises:
        LogError: from each method too, if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._connection = Path(path), open_to_read(path)

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def last(self) -> int:
        """Sequence of the latest prediction; 0 before the first."""
        return self._ask("SELECT coalesce(max(sequence), 0) FROM predictions")[0][0]

    def rows(self, after: int = 0, limit: int = -1) -> list[sqlite3.Row]:
        """Predictions past the sequence `after`, oldest first, at most `limit`; columns as in `monitoring.log_file`."""
        return self._ask("SELECT * FROM predictions WHERE sequence > ? ORDER BY sequence LIMIT ?", after, limit)

    def find(self, request_id: str) -> list[sqlite3.Row]:
        """The predictions of one request by position; none where it is unknown, or too old to be kept."""
        return self._ask("SELECT * FROM predictions WHERE request_id = ? ORDER BY position", request_id)

    def labels(self) -> dict[tuple[str, int], int]:
        """The true class, by request id and position, of those predictions that it was told for."""
        found = self._ask("SELECT request_id, position, label FROM feedback")
        return {(request_id, position): label for request_id, position, label in found}

    def report(self, kind: str) -> dict | None:
        """The latest report of that kind, "drift" or "accuracy"; None before the first."""
        found = self._ask("SELECT report FROM reports WHERE kind = ?", kind)
        return json.loads(found[0][0]) if found else None

    def cursors(self) -> dict[str, Cursor]:
        """How far each reader has come, by its name."""
        found = self._ask("SELECT reader, sequence, state FROM cursors")
        return {reader: Cursor(sequence, json.loads(state)) for reader, sequence, state in found}

    def scalars(self, count: int = -1) -> list[dict[str, float | int]]:
        """The five scalars of the last `count` predictions, by the names that the dashboards know, oldest first."""
        after = max(0, self.last - count) if count >= 0 else 0
        return [scalars_of(row) for row in self.rows(after)]

    def _ask(self, query, *values):
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise LogError(f"{self.path} cannot be read ({error}); restore it, or move it away") from error


def scalars_of(row: sqlite3.Row) -> dict[str, float | int]:
    """The five scalars after the prediction in `row`."""
    return {name: row[column] for name, column in zip(SCALARS, _COLUMNS, strict=True)}


def export(log: LogReader, path: Path, batch: int = 10_000) -> int:
    """Writes all predictions to a Parquet file at `path`, with the true class where it is known; returns how many.

    The columns are those of the log, and `label`; `top` and `scores` become maps from names to numbers.

    Raises:
        LogError: if the log cannot be read, or `path` is the log itself.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    if path.exists() and path.samefile(log.path):
        raise LogError(f"{path} is the log itself; name another file")
    numbers = pa.map_(pa.string(), pa.float64())
    kinds = {"REAL": pa.float64(), "INTEGER": pa.int64(), "TEXT": pa.string(), "BLOB": pa.binary()}
    columns = log._connection.execute("SELECT name, type FROM pragma_table_info('predictions')").fetchall()
    schema = pa.schema(
        [(name, numbers if name in ("top", "scores") else kinds[kind]) for name, kind in columns]
        + [("label", pa.int64())]
    )
    labels, count, after = log.labels(), 0, 0
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with ParquetWriter(part, schema, compression="zstd") as writer:
            while rows := log.rows(after, batch):
                records = [dict(row) for row in rows]
                for record in records:
                    record |= {name: list(json.loads(record[name]).items()) for name in ("top", "scores")}
                    record["label"] = labels.get((record["request_id"], record["position"]))
                writer.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
                count, after = count + len(rows), rows[-1]["sequence"]
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count
