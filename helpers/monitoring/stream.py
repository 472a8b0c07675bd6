"""The predictions of one version as a prediction log holds them: arrays, in the order in which they were made."""

import json
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


def find_logs(folder: Path) -> list[Path]:
    """The prediction logs in `folder` that hold predictions, ``predictions.db`` first; or `folder`, if it is one.

    Raises:
        LogError: if it is a file, and no such log.
    """
    files = sorted(Path(folder).glob("*.db"), key=lambda path: (path.stem != "predictions", path.name))
    found = []
    for path in [Path(folder)] if Path(folder).is_file() else files:
        with LogReader(path) as log:
            found += [path] if log.last else []
    return found


def newest_logs(runs: Path) -> list[Path]:
    """`find_logs` of the one among the folders in `runs` that was logged in last; empty where there is none."""
    groups = [logs for folder in Path(runs).glob("*/") if (logs := find_logs(folder))]
    return max(groups, key=lambda logs: max(path.stat().st_mtime for path in logs), default=[])


def read_stream(path: Path, latest: int = 0) -> Stream:
    """The last run of predictions of one version in the log at `path`, of its `latest` predictions; 0 means all.

    Raises:
        LogError: if it cannot be read, or holds none with drift scores.
    """
    with LogReader(path) as log:
        found, versions, unscored, first = [], [], 0, 0
        after, labels = max(0, log.last - latest) if latest else 0, log.labels()
        while rows := log.rows(after, _BATCH):
            first, after = first or rows[0]["sequence"], rows[-1]["sequence"]
            for row in rows:
                if not versions or row["version"] != versions[-1]:
                    versions.append(row["version"])
                    found, unscored = [], 0
                scores = json.loads(row["scores"])
                if not scores.keys() >= set(NAMES):
                    unscored += 1
                    continue
                label = labels.get((row["request_id"], row["position"]), UNKNOWN)
                about = (row["sequence"], row["time"], row["class_index"], label, row["confidence"])
                found.append((*about, row["image"] is not None, [scores[name] for name in NAMES], row["model"]))
        rehearsal = log.report("rehearsal")
    if not found:
        why = "no prediction" if not versions else f"none of version {versions[-1]} with drift scores"
        raise LogError(f"{path} holds {why}; serve a model that has a drift reference, with --log")
    sequences, times, answers, known, confidences, kept, scores, models = zip(*found, strict=True)
    arrays = (np.array(sequences), np.array(times), np.array(answers), np.array(known), np.array(confidences))
    about = (Path(path), models[-1], versions[-1], tuple(versions[:-1]))
    about += (len(versions) > 1 or first == 1, unscored, rehearsal)
    return Stream(*about, *arrays, np.array(scores, np.float32), np.array(kept))


def read_images(stream: Stream, places: np.ndarray) -> np.ndarray:
    """The images at `places`, int (m,), which the log must have kept: uint8 (m, 32, 32, 3)."""
    with LogReader(stream.log) as log:
        rows = [log.rows(int(sequence) - 1, 1)[0] for sequence in stream.sequences[places]]
    return np.array([np.frombuffer(row["image"], np.uint8).reshape(32, 32, 3) for row in rows]).reshape(-1, 32, 32, 3)


def find_bundle(stream: Stream, bucket: str, cache: Path) -> Bundle:
    """The bundle of the version that answered: from `bucket`, or the one in ``model/``.

    Raises:
        What `delivery.model_dir.resolve` raises, where neither has it.
    """
    try:
        return read_bundle(
            resolve(open_store(bucket_url(bucket)), f"models/{stream.model}/versions/{stream.version}", cache)
        )
    except (UnknownModel, StorageError):
        bundled = ROOT / "model"
        if (bundled / MANIFEST).is_file() and (bundle := read_bundle(bundled)).version == stream.version:
            return bundle
        raise
