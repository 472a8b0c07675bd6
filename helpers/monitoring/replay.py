"""Answers a logged request again, by the version that answered it, and compares."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.delivery.bundle import MANIFEST, read_bundle
from helpers.inference.loader import IMAGE_SHAPE, LoadedModel, load_model
from helpers.inference.source import ModelSource
from helpers.monitoring.log_reader import LogReader
from helpers.registry import UnknownModel

TOLERANCE = 0.02  # in probability: batches of other sizes round otherwise, bf16 by 0.01


@dataclass(frozen=True)
class Replayed:
    """One image of a request, then and now.

    Attributes:
        then, now: names of the classes.
        distance: the largest difference of a probability that was logged.
    """

    position: int
    version: str
    then: str
    now: str
    distance: float

    @property
    def same(self) -> bool:
        """Whether all logged probabilities come out again within the engine's rounding."""
        return self.distance <= TOLERANCE

    def __str__(self) -> str:
        verdict = "same answer" if self.same else "ANOTHER answer"
        classes = self.then if self.then == self.now else f"{self.then}, now {self.now}"
        where = f"image {self.position} by version {self.version}"
        return f"{where}: {verdict}: {classes}; probabilities within {self.distance:.2g}"


def replay(log: LogReader, request_id: str, source: ModelSource, bundled: Path) -> list[Replayed]:
    """The answers of the request, then and now, by position.

    Args:
        source: where the version is loaded from.
        bundled: folder of a bundle that is taken where it is that version and the source does not have it.

    Raises:
        LookupError: if the log does not know the request, or did not keep its images.
        What `ModelSource.load` raises.
    """
    rows = log.find(request_id)
    if not rows:
        raise LookupError(f"{log.path} has no request {request_id!r}; it may be too old, or of another server")
    if any(row["image"] is None for row in rows):
        raise LookupError(f"the images of request {request_id} were not kept; serve with --log-images to keep them")
    model = _load(rows[0]["model"], rows[0]["version"], source, bundled)
    images = np.stack([np.frombuffer(row["image"], np.uint8).reshape(IMAGE_SHAPE) for row in rows])
    found = model.predict(images).probabilities
    names = model.labels.fine
    return [
        Replayed(
            row["position"],
            row["version"],
            row["class_name"],
            names[int(now.argmax())],
            max(abs(float(now[names.index(name)]) - then) for name, then in json.loads(row["top"]).items()),
        )
        for row, now in zip(rows, found, strict=True)
    ]


def _load(name: str, version: str, source: ModelSource, bundled: Path) -> LoadedModel:
    try:
        return source.load(f"models/{name}/versions/{version}")
    except UnknownModel:
        if (bundled / MANIFEST).is_file() and read_bundle(bundled).version == version:
            return load_model(bundled)
        raise
