"""A prediction as a row of the log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from helpers.inference.prediction import Prediction
from helpers.monitoring.running_statistics import RunningStatistics

TOP = 5  # classes with their probabilities
COLUMNS = (
    *("time", "request_id", "position", "model", "version"),
    *("class_index", "class_name", "confidence", "top"),
    *("seconds", "average_seconds", "average_index", "mode_index"),
    *("scores", "image"),
)


@dataclass(frozen=True)
class Answer:
    """The predictions of one request.

    Attributes:
        seconds: from having the request to having them.
        time: Unix time then, in seconds.
    """

    request_id: str
    predictions: Sequence[Prediction]
    seconds: float
    time: float


def make_rows(
    answers: Sequence[Answer], scores: dict[str, np.ndarray], statistics: RunningStatistics, *, keep_images: bool
) -> list[tuple]:
    """The columns of `monitoring.log_file` after the sequence, for each prediction, all of one model.

    They are taken into `statistics` in order.

    Args:
        scores: finite, float (n,) by name, over all predictions.
    """
    predictions = [prediction for answer in answers for prediction in answer.predictions]
    first, rows = predictions[0], []
    model, names = first.bundle.manifest.name, _name_slots(first.class_names)
    probabilities = np.stack([prediction.probabilities for prediction in predictions])
    order = _find_top(probabilities)
    best = np.take_along_axis(probabilities, order, axis=1).tolist()
    template = f"{{{', '.join(_name_slots(tuple(scores)))}}}"
    table = zip(*(values.tolist() for values in scores.values()), strict=True)
    shown = zip(order.tolist(), best, table, strict=True)
    for answer in answers:
        for position, prediction in enumerate(answer.predictions):
            indices, values, found = next(shown)
            top = ", ".join([names[index] for index in indices]) % tuple(values)
            image = prediction.image.tobytes() if keep_images else None
            identity = (answer.time, answer.request_id, position, model, prediction.version)
            outcome = (prediction.class_index, prediction.class_name, prediction.confidence, f"{{{top}}}")
            seconds, average_seconds, _, *indices = statistics.count(answer.seconds, prediction.class_index)
            rows.append((*identity, *outcome, seconds, average_seconds, *indices, template % found, image))
    return rows


@lru_cache(8)
def _name_slots(names):
    """Of a JSON object: each of `names` with a place for its number."""
    return ["{}: %.6g".format(json.dumps(name).replace("%", "%%")) for name in names]


def _find_top(probabilities):
    """Indices, int (n, `TOP`), of the largest, the first of equal ones first: passes are quicker than sorting all."""
    left, rows = probabilities.copy(), np.arange(len(probabilities))
    order = np.empty((len(left), min(TOP, left.shape[1])), int)
    for place in range(order.shape[1]):
        order[:, place] = left.argmax(axis=1)
        left[rows, order[:, place]] = -1
    return order
