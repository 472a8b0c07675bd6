"""A prediction as a row of the log."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.inference.predictor import Prediction
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
    model, names = first.model.bundle.manifest.name, [json.dumps(name) for name in first.class_names]
    probabilities = np.stack([prediction.probabilities for prediction in predictions])
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    best = np.take_along_axis(probabilities, order, axis=1).tolist()
    template = "{" + ", ".join(f"{json.dumps(name)}: %.6g" for name in scores) + "}"
    table = zip(*(values.tolist() for values in scores.values()), strict=True)
    shown = zip(order.tolist(), best, table, strict=True)
    for answer in answers:
        for position, prediction in enumerate(answer.predictions):
            indices, values, found = next(shown)
            seconds, average_seconds, index, average_index, mode = statistics.update(
                answer.seconds, prediction.class_index
            ).values()
            top = ", ".join([f"{names[i]}: {value:.6g}" for i, value in zip(indices, values, strict=True)])
            image = prediction.image.tobytes() if keep_images else None
            identity = (answer.time, answer.request_id, position, model, prediction.version)
            outcome = (index, prediction.class_name, prediction.confidence, f"{{{top}}}")
            running = (seconds, average_seconds, average_index, mode)
            rows.append((*identity, *outcome, *running, template % found, image))
    return rows
