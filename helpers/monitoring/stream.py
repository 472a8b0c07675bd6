"""The predictions of one version as a prediction log holds them: arrays, in the order in which they were made."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.delivery.bundle import MANIFEST, Bundle, read_bundle
from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import StorageError, open_store
from helpers.monitoring.log_file import LogError
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.scores import NAMES
from helpers.registry import UnknownModel
from helpers.workspace import ROOT, bucket_url

UNKNOWN = -1
_BATCH = 2000  # rows read at once, with their images 8 MB


@dataclass(frozen=True)
class Stream:
    """The latest predictions of the version that answered last; image k is at place k - 1.

    Attributes:
        log: the file.
        before: versions that answered before it in the log, oldest first.
        whole: whether it begins with the first prediction of this version, and not somewhere later.
        unscored: predictions of this version that are left out, as they have no drift scores.
        rehearsal: kind, severity and change of a rehearsal; None of what really came.
        sequences: int (n,), in the log.
        times: float64 (n,), Unix seconds.
        answers, labels: class indices, int (n,); a label is `UNKNOWN` where the truth was not told.
        confidences: float64 (n,), 0 to 1.
        scores: float32 (n, scores), by the names of `monitoring.scores.NAMES`.
        kept: bool (n,), whether the log has the image.
    """

    log: Path
    model: str
    version: str
    before: tuple[str, ...]
    whole: bool
    unscored: int
    rehearsal: dict | None
    sequences: np.ndarray
    times: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    scores: np.ndarray
    kept: np.ndarray

    def __len__(self) -> int:
        return len(self.sequences)


def find_logs(place: Path) -> list[Path]:
    """The prediction logs in the folder `place` that hold predictions, ``predictions.db`` first; or `place`, if one.

    Raises:
        LogError: if it is a file, and no such log.
    """
    if Path(place).is_file():
        return [Path(place)] if _last_time(place) else []
    files = sorted(Path(place).glob("*.db"), key=lambda path: (path.stem != "predictions", path.name))
    found = []
    for path in files:
        with suppress(LogError):  # a database of another kind
            found += [path] if _last_time(path) else []
    return found


def newest_logs(runs: Path) -> list[Path]:
    """`find_logs` of the one among the folders in `runs` with the latest prediction; empty where there is none."""
    groups = [logs for folder in Path(runs).glob("*/") if (logs := find_logs(folder))]
    return max(groups, key=lambda logs: max(map(_last_time, logs)), default=[])


def _last_time(path):
    with LogReader(path) as log:
        rows = log.rows(log.last - 1, 1)
    return rows[0]["time"] if rows else 0.0


def read_stream(path: Path, latest: int = 0) -> Stream:
    """The last run of predictions of one version in the log at `path`, of its `latest` predictions; 0 means all.

    Raises:
        LogError: if it cannot be read, or holds none with drift scores.
    """
    found, versions, unscored, first = [], [], 0, 0
    with LogReader(path) as log:
        after, labels, rehearsal = max(0, log.last - latest) if latest else 0, log.labels(), log.report("rehearsal")
        while rows := log.rows(after, _BATCH):
            first, after = first or rows[0]["sequence"], rows[-1]["sequence"]
            for row in rows:
                if not versions or row["version"] != versions[-1]:
                    versions.append(row["version"])
                    found, unscored = [], 0
                scores = json.loads(row["scores"])
                if scores.keys() >= set(NAMES):
                    label = labels.get((row["request_id"], row["position"]), UNKNOWN)
                    told = [row[name] for name in ("model", "sequence", "time", "class_index", "confidence")]
                    found.append((*told, label, row["image"] is not None, [scores[name] for name in NAMES]))
                else:
                    unscored += 1
    if not found:
        why = f"none of version {versions[-1]} with drift scores" if versions else "no prediction"
        raise LogError(f"{path} holds {why}; serve a model that has a drift reference, with --log")
    models, sequences, times, answers, confidences, known, kept, scores = zip(*found, strict=True)
    return Stream(
        log=Path(path),
        model=models[-1],
        version=versions[-1],
        before=tuple(versions[:-1]),
        whole=len(versions) > 1 or first == 1,
        unscored=unscored,
        rehearsal=rehearsal,
        sequences=np.array(sequences),
        times=np.array(times),
        answers=np.array(answers),
        labels=np.array(known),
        confidences=np.array(confidences),
        scores=np.array(scores, np.float32),
        kept=np.array(kept),
    )


def read_images(stream: Stream, places: np.ndarray) -> np.ndarray:
    """The images at `places`, int (m,), which the log must have kept: uint8 (m, 32, 32, 3)."""
    with LogReader(stream.log) as log:
        rows = [log.rows(int(sequence) - 1, 1)[0] for sequence in stream.sequences[places]]
    return np.array([np.frombuffer(row["image"], np.uint8).reshape(32, 32, 3) for row in rows]).reshape(-1, 32, 32, 3)


def find_bundle(stream: Stream, bucket: str, cache: Path) -> Bundle:
    """The bundle of the version that answered: from `bucket`, or the one in ``model/``.

    Raises:
        LogError: where neither has it.
        What else `delivery.model_dir.resolve` raises.
    """
    url, bundled = bucket_url(bucket), ROOT / "model"
    try:
        return read_bundle(resolve(open_store(url), f"models/{stream.model}/versions/{stream.version}", cache))
    except (UnknownModel, StorageError) as error:
        if (bundled / MANIFEST).is_file() and (bundle := read_bundle(bundled)).version == stream.version:
            return bundle
        if not isinstance(error, UnknownModel):
            raise
        raise LogError(
            f"{stream.log} was answered by version {stream.version} of {stream.model}, which is neither in {url} nor "
            "in model/; name the bucket that has it, or another log"
        ) from error
