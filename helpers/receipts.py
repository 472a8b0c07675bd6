"""What a stage leaves behind as proof: results and artifacts in one JSON file, written last, checked on reading.

An exit status is no proof (``sys.exit(0)`` in a cell gives 0), nor is an executed notebook (a killed kernel's cells
read ``completed``). A receipt that is there, names the stage and the run, and whose artifacts have their digests, is.
"""

import hashlib
import json
import math
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers import workspace

SCHEMA = 1
INTERACTIVE = "interactive"  # the run id of a notebook that no pipeline started


class ReceiptError(Exception):
    """A receipt is absent, malformed, of another stage or run, or its artifacts are not what it says."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one stage did.

    Times are ISO 8601 in UTC, `duration_s` is in seconds. `data` holds ``source`` (str), ``fingerprint`` (str) and
    ``synthetic`` (bool). `artifacts` maps a name to ``path`` (relative to the receipt's folder, or absolute outside
    it), ``sha256`` (hex) and ``size`` (bytes).
    """

    stage: str
    run_id: str
    started: str
    finished: str
    duration_s: float
    parameters: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    artifacts: dict[str, dict[str, Any]]
    schema: int = SCHEMA


def now() -> str:
    """This moment in UTC, as ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, so that a reader finds the old file or the new one, whole, even after a power cut.

    NumPy scalars become numbers and tuples lists.

    Raises:
        ValueError: for NaN, infinities, keys that are not strings and types that JSON has not, naming the place.
    """
    path = Path(path)
    text = json.dumps(_plain(value, path.name), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut, too
    finally:
        os.close(folder)


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{place}: keys must be strings, got {key!r} ({type(key).__name__})")
        return {key: _plain(item, f"{place}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a NumPy scalar, without importing NumPy
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: JSON has no {value}; write None, or leave it out")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{place}: {type(value).__name__} is no JSON type; convert it to a number, string, list or dict")


def receipt_path(directory: str | Path, stage: str) -> Path:
    """Where the receipt of `stage` lies in the folder of a run."""
    return Path(directory) / f"{stage}.receipt.json"


def write_receipt(directory: str | Path, receipt: Receipt) -> Path:
    """Write ``<directory>/<stage>.receipt.json`` atomically; return its path.

    Raises:
        ReceiptError: where a field is not what `Receipt` says.
        ValueError: as `write_json`.
    """
    path = receipt_path(directory, receipt.stage)
    _check(asdict(receipt), path)
    write_json(path, asdict(receipt))
    return path


def read_receipt(path: str | Path, *, stage: str, run_id: str | None = None) -> Receipt:
    """Read and check a receipt: schema, types, stage, run id (if given), and each artifact's size and SHA-256.

    Raises:
        ReceiptError: with what is wrong and what to do.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_bytes(), parse_constant=lambda name: _refuse(path, f"JSON has no {name}"))
    except FileNotFoundError:
        raise ReceiptError(f"{path}: there is no receipt, so stage {stage!r} did not finish; run it again") from None
    except ValueError as error:
        raise ReceiptError(f"{path}: not a JSON file ({error}); run stage {stage!r} again") from None
    _check(value, path)
    for name, found, wanted in (("stage", value["stage"], stage), ("run_id", value["run_id"], run_id)):
        if wanted is not None and found != wanted:
            _refuse(path, f"{name} must be {wanted!r}, got {found!r}")
    for name, artifact in value["artifacts"].items():
        _check_artifact(path, name, artifact)
    return Receipt(**value)


def _refuse(path: Path, problem: str) -> None:
    raise ReceiptError(f"{path}: {problem}; run the stage again")


def _check(value: Any, path: Path) -> None:
    """Refuse what has not exactly the fields of `Receipt`, each of its type."""
    if not isinstance(value, dict):
        _refuse(path, f"a receipt is a JSON object, got {type(value).__name__}")
    if value.get("schema") != SCHEMA:
        _refuse(path, f"schema must be {SCHEMA}, got {value.get('schema')!r}")
    names = {item.name for item in fields(Receipt)}
    if missing := sorted(names - value.keys()):
        _refuse(path, f"missing: {', '.join(missing)}")
    if unknown := sorted(value.keys() - names):
        _refuse(path, f"unknown: {', '.join(unknown)}")
    for names, types, what in (
        (("stage", "run_id", "started", "finished"), str, "a string"),
        (("duration_s",), (int, float), "a number of seconds"),
        (("parameters", "data", "results", "artifacts"), dict, "an object"),
    ):
        for name in names:
            if not isinstance(value[name], types) or isinstance(value[name], bool) or value[name] == "":
                _refuse(path, f"{name} must be {what}, got {value[name]!r}")
    for name, kind in (("source", str), ("fingerprint", str), ("synthetic", bool)):
        if not isinstance(value["data"].get(name), kind):
            _refuse(path, f"data.{name} must be {kind.__name__}, got {value['data'].get(name)!r}")
    for name, artifact in value["artifacts"].items():
        kinds = {"path": str, "sha256": str, "size": int}
        if not isinstance(artifact, dict) or {k: type(v) for k, v in artifact.items()} != kinds:
            _refuse(path, f"artifacts.{name} must hold path, sha256 and size, got {artifact!r}")


def _check_artifact(path: Path, name: str, artifact: Mapping[str, Any]) -> None:
    file = path.parent / artifact["path"]
    if not file.is_file():
        _refuse(path, f"artifact {name} is gone ({file})")
    if file.stat().st_size != artifact["size"] or file_sha256(file) != artifact["sha256"]:
        _refuse(path, f"artifact {name} was changed after the receipt ({file})")


@dataclass(frozen=True)
class StageClock:
    """A stage under way, begun by `start_stage`; `directory` is the folder of its run."""

    stage: str
    run_id: str
    directory: Path
    parameters: dict[str, Any]
    started: str = field(default_factory=now)
    began: float = field(default_factory=time.monotonic)

    def finish(
        self,
        *,
        data: Mapping[str, Any],
        results: Mapping[str, Any],
        artifacts: Mapping[str, str | Path] | None = None,
    ) -> Path:
        """Write the receipt and return its path; `artifacts` maps names to existing files."""
        return write_receipt(
            self.directory,
            Receipt(
                stage=self.stage,
                run_id=self.run_id,
                started=self.started,
                finished=now(),
                duration_s=round(time.monotonic() - self.began, 3),
                parameters=_plain(self.parameters, "parameters"),
                data=_plain(data, "data"),
                results=_plain(results, "results"),
                artifacts={name: self._describe(name, Path(path)) for name, path in (artifacts or {}).items()},
            ),
        )

    def _describe(self, name: str, path: Path) -> dict[str, Any]:
        path = path.resolve()
        if not path.is_file():
            raise ValueError(f"artifacts: {name} must be an existing file, got {path} (of a folder, name its manifest)")
        home = self.directory.resolve()
        place = path.relative_to(home) if path.is_relative_to(home) else path
        return {"path": str(place), "sha256": file_sha256(path), "size": path.stat().st_size}


def start_stage(stage: str, run_dir: str | Path, run_id: str, parameters: Mapping[str, Any]) -> StageClock:
    """Begin a stage: remove the receipt of an earlier try, and start its clock.

    `run_dir` and `run_id` are the notebook's parameters, both ``""`` in an interactive session. `parameters` are the
    notebook's own and never hold secrets: the receipt shows them.
    """
    directory = workspace.run_directory(str(run_dir))
    receipt_path(directory, stage).unlink(missing_ok=True)
    return StageClock(stage, run_id or INTERACTIVE, directory, dict(parameters))
