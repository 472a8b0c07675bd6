"""A run's ``run.json``: its state and that of each stage, rewritten whole at each step: any stop leaves the truth.

States are ``pending``, ``running``, ``done``, ``failed`` and ``interrupted``. A run that says ``running`` and whose
folder is not locked was killed; it can be resumed like any other.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.pipeline.execution import Failure
from helpers.receipts import Receipt, ReceiptError, file_sha256, now, read_receipt, receipt_path, write_json
from helpers.workspace import ROOT

FILE = "run.json"
ENVIRONMENT = ("CIFAR100_DIR", "KERAS_BACKEND", "SUITE_BUCKET")  # what else decides a stage's result


class RunError(ValueError):
    """A run cannot be opened: it does not exist, cannot be read or written, or is still under way."""


def read_run(runs: Path, run_id: str) -> dict[str, Any]:
    """The record of an earlier run in the folder of all runs.

    Raises:
        RunError: if there is no such run, naming the latest ones; or if its record cannot be read.
    """
    if re.fullmatch(r"\w[\w.-]*", run_id):
        with suppress(FileNotFoundError, NotADirectoryError):
            path = runs / run_id / FILE
            record = read_record(path, "run_id", {"started": str, "state": str, "profile": dict}, "stages")
            if not all(isinstance(section, dict) for section in record["profile"].values()):
                raise damaged(path, "a section of its profile is no mapping")
            return record
    known = sorted(path.parent.name for path in runs.glob(f"*/{FILE}"))
    raise RunError(f"there is no run {run_id!r} in {runs}; it holds {', '.join(known[-5:]) or 'none'}")


def read_record(path: Path, key: str, kinds: Mapping[str, type], rows: str) -> dict[str, Any]:
    """The record of a run or a sweep, whose id, the name of its folder, is at `key`.

    `kinds` are the types of what else it must hold, and `rows` names the mapping to what has a ``state``.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is none.
        RunError: if it cannot be read, or is not of this form.
    """
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise damaged(path, error.strerror) from None
    except ValueError as error:
        raise damaged(path, f"not JSON: {error}") from None
    if not isinstance(record, dict) or (record.get("schema"), record.get(key)) != (1, path.parent.name):
        raise damaged(path, f"it does not say schema 1 and {key} {path.parent.name}")
    for name, kind in {**kinds, rows: dict}.items():
        if not isinstance(record.get(name), kind):
            raise damaged(path, f"{name} is missing or of a wrong type")
    if not all(isinstance(row, dict) and "state" in row for row in record[rows].values()):
        raise damaged(path, f"one of its {rows} has no state")
    return record


def damaged(path: Path, why: str) -> RunError:
    """The error for a record that is there and of no use."""
    return RunError(f"cannot read {path} ({why}); move its folder away, or name another run")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a run's folder, so that no second process works in it; the system lets go of it however this one ends.

    Raises:
        RunError: if another process holds it.
    """
    folder = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RunError(f"run {directory.name} is still under way in another process") from None
    finally:
        os.close(folder)


def inputs_digest(notebook: Path, parameters: Mapping[str, Any], upstream: Iterable[Path]) -> str:
    """SHA-256 over what decides a stage: notebook, parameters, earlier receipts, ``helpers/`` and some environment."""
    inputs = {
        "notebook": file_sha256(notebook),
        "parameters": dict(parameters),
        "upstream": {path.name: file_sha256(path) for path in upstream if path.is_file()},
        "model": file_sha256(manifest) if (manifest := ROOT / "model" / "manifest.json").is_file() else "",
        "helpers": {str(path.relative_to(ROOT)): file_sha256(path) for path in (ROOT / "helpers").rglob("*.py")},
        "environment": {name: os.environ.get(name, "") for name in ENVIRONMENT},
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


class Journal:
    """The record of the run in `directory`; `receipts` are those of the stages that are done and still hold."""

    def __init__(self, directory: Path, profile: Mapping[str, Any], stages: Mapping[str, dict[str, Any]]):
        """Begin a record, or go on with the one there.

        `stages` maps each stage that is to run to its notebook, parameters and timeout.
        """
        self.directory = directory
        earlier = {"started": now(), "stages": {}}
        if (directory / FILE).exists():
            earlier = read_run(directory.parent, directory.name)
        self.receipts: dict[str, Receipt] = {}
        self.record: dict[str, Any] = {
            "schema": 1,
            "run_id": directory.name,
            "state": "running",
            "pid": os.getpid(),
            "started": earlier["started"],
            "finished": None,
            "profile": dict(profile),
            "stages": earlier["stages"],
        }
        blank = dict.fromkeys(("started", "finished", "receipt", "inputs", "error"))
        for stage, plan in stages.items():
            self.record["stages"][stage] = {"state": "pending", **blank} | earlier["stages"].get(stage, {}) | plan
        for stage in self.record["stages"]:
            self._take_receipt(stage)
        self._save()

    def holds(self, stage: str, inputs: str) -> bool:
        """Whether the stage was done with the same inputs, and its receipt and artifacts are still what they were."""
        return stage in self.receipts and self.record["stages"][stage]["inputs"] == inputs

    def begin(self, stage: str, inputs: str) -> None:
        """Say that a stage runs, after removing what an earlier try proved."""
        receipt_path(self.directory, stage).unlink(missing_ok=True)
        self.receipts.pop(stage, None)
        self._set(stage, state="running", started=now(), finished=None, receipt=None, inputs=inputs, error=None)

    def finish(self, stage: str) -> None:
        """Say that a stage is done.

        Raises:
            ReceiptError: if its receipt is not there or does not hold.
        """
        path = receipt_path(self.directory, stage)
        self.receipts[stage] = read_receipt(path, stage=stage, run_id=self.directory.name)
        self._set(stage, state="done", finished=now(), receipt=file_sha256(path))

    def fail(self, stage: str, failure: Failure) -> None:
        """Say that a stage failed or was interrupted, in which cell of its notebook, and why."""
        notebook = self.record["stages"][stage]["notebook"]
        error = {"notebook": notebook, "cell": failure.cell, "message": failure.message}
        self._set(stage, state="interrupted" if failure.interrupted else "failed", finished=now(), error=error)

    def close(self, state: str) -> str:
        """Say how the run ended, which is no better than its worst stage; returns that."""
        undone = any(stage["state"] != "done" for stage in self.record["stages"].values())
        self.record |= {"state": "failed" if state == "done" and undone else state, "finished": now()}
        self._save()
        return self.record["state"]

    def _take_receipt(self, stage: str) -> None:
        entry, path = self.record["stages"][stage], receipt_path(self.directory, stage)
        try:
            if entry["state"] == "done" and file_sha256(path) == entry["receipt"]:
                self.receipts[stage] = read_receipt(path, stage=stage, run_id=self.directory.name)
                return
        except (OSError, ReceiptError):
            pass  # gone, or no longer true: the stage is not done
        entry["state"] = {"done": "pending", "running": "interrupted"}.get(entry["state"], entry["state"])

    def _set(self, stage: str, **changes: Any) -> None:
        self.record["stages"][stage] |= changes
        self._save()

    def _save(self) -> None:
        write_json(self.directory / FILE, self.record)
