"""The true class of a prediction, told later by somebody who knows."""

from dataclasses import dataclass

from helpers.monitoring.prediction_log import PredictionLog


class UnknownRequest(LookupError):
    """Feedback for a request that the log does not hold (HTTP 404)."""


class WrongPosition(ValueError):
    """Feedback that names no image of its request (HTTP 422)."""


class LabelConflict(ValueError):
    """Feedback that contradicts what was said before (HTTP 409)."""


class LogUnavailable(RuntimeError):
    """The log cannot take feedback now (HTTP 503)."""


@dataclass(frozen=True)
class Labelled:
    """Feedback that is kept.

    Attributes:
        known: whether the same had been said before, so that nothing is new.
    """

    position: int
    version: str
    class_index: int
    class_name: str
    confidence: float
    label: int
    known: bool

    @property
    def right(self) -> bool:
        """Whether the answer was the true class."""
        return self.class_index == self.label


def keep_label(log: PredictionLog, request_id: str, position: int | None, label: int) -> Labelled:
    """Keeps in `log` that the true class of a prediction is `label`, an index.

    Args:
        position: of the image in its request; None where it had only one.

    Raises:
        UnknownRequest, WrongPosition, LabelConflict: nothing is kept then.
        sqlite3.Error: if the disk does not take it.
    """
    rows = {row["position"]: row for row in log.find(request_id)}
    if not rows:
        shown = f"{request_id[:64]!r} in the prediction log"
        raise UnknownRequest(f"there is no request {shown}; send the request_id of an answer, not too old")
    if position is None and len(rows) > 1:
        raise WrongPosition(f"the request had {len(rows)} images; say which with position, 0 to {max(rows)}")
    row = rows.get(position or 0)
    if row is None:
        raise WrongPosition(f"position must be one of an image of the request, 0 to {max(rows)}, got {position}")
    kept, known = log.label(request_id, row["position"], label)
    if kept != label:
        raise LabelConflict(f"the true class was said to be {kept} before, now {label}; the first stands")
    return Labelled(
        *(row[name] for name in ("position", "version", "class_index", "class_name", "confidence")), label, known
    )
