"""What looks at the predictions of the model that serves: a detector of drift, and a monitor of accuracy."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from helpers.data.image_statistics import describe_images
from helpers.delivery import events
from helpers.delivery.bundle import Bundle
from helpers.inference.engine import Scores
from helpers.inference.prediction import Prediction
from helpers.monitoring.outage import Outage

if TYPE_CHECKING:
    from helpers.monitoring.accuracy import AccuracyMonitor
    from helpers.monitoring.drift import DriftDetector
    from helpers.monitoring.drift_reference import Reference


def make_detector(bundle: Bundle) -> "DriftDetector":
    """By the reference in `bundle`; raises DriftReferenceError where that one is of another kind."""
    from helpers.monitoring.drift import DriftDetector  # SciPy, which a start does not wait for

    return DriftDetector(_find_reference(bundle))


def make_monitor(bundle: Bundle) -> "AccuracyMonitor":
    """Against the lower end of the interval on the card: the card's accuracy is an estimate itself. Raises as above."""
    from helpers.monitoring.accuracy import AccuracyMonitor

    return AccuracyMonitor(_find_reference(bundle), bundle.evaluation()["test"]["top1_interval"][0])


_in_use: "WeakValueDictionary[tuple[Path, str], Reference]" = WeakValueDictionary()  # read once for both


def _find_reference(bundle):
    from helpers.monitoring.drift_reference import read_reference

    key = (bundle.path, bundle.version)
    if (reference := _in_use.get(key)) is None:
        reference = _in_use[key] = read_reference(bundle)
    return reference


def _none(bundle: Bundle) -> None:
    return None


class Watch:
    """The detector and the monitor of the model that serves; thread-safe. What they raise is logged, never raised.

    A version that takes over gets new ones: its scores are others. One that is only loaded again keeps its own.
    The first alarm of a detector is an event (`delivery.events`).

    Args:
        make_detector, make_monitor: called with the bundle of each model that takes over; None gives none.

    Attributes:
        detector, monitor: of the model whose predictions came last; None where there is none.
        passes_by: says of which versions the predictions are not looked at.
    """

    def __init__(
        self,
        make_detector: Callable[[Bundle], "DriftDetector | None"] = _none,
        make_monitor: Callable[[Bundle], "AccuracyMonitor | None"] = _none,
    ) -> None:
        self.detector: DriftDetector | None = None
        self.monitor: AccuracyMonitor | None = None
        self.passes_by: Callable[[str], bool] = lambda version: False
        self._make_detector, self._make_monitor = make_detector, make_monitor
        self._bundle: Bundle | None = None
        self._announced = False
        self._lock = threading.Lock()  # theirs, too: a report must not see half an update
        self._outage = Outage("drift or accuracy could not be followed; predictions and their log go on")

    def look(self, bundle: Bundle, predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
        """Shows them the next predictions of the model of `bundle`; returns scores, float32 (n,) by name.

        These are what the detector gives, and where there is none, what the pictures look like.
        """
        images = np.stack([prediction.image for prediction in predictions])
        if self.passes_by(bundle.version):
            return describe_images(images)
        with self._lock, self._outage:
            if self._bundle is None or bundle.version != self._bundle.version:
                self._bundle, self.detector, self.monitor, self._announced = bundle, None, None, False
                self.detector, self.monitor = self._make_detector(bundle), self._make_monitor(bundle)
            if self.monitor:
                self.monitor.predicted(np.array([prediction.confidence for prediction in predictions]))
            if self.detector:
                parts = [vars(prediction.scores) for prediction in predictions]
                scores = Scores(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
                found = self.detector.update(images, scores)
                if bad := [name for name, values in found.items() if not np.isfinite(values).all()]:
                    raise ValueError(f"the detector gave scores that are not finite: {', '.join(bad)}")
                if not self._announced and self.detector.alarm is not None:
                    self._announced, report = True, self.detector.report().as_dict()
                    events.announce(events.DRIFT, bundle.manifest.name, bundle.version, report=report)
                return found
        return describe_images(images)

    def labelled(self, version: str, correct: bool, confidence: float) -> None:
        """Tells the monitor whether a prediction was right, if it is of the model that serves."""
        with self._lock, self._outage:
            if self.monitor and self._bundle is not None and version == self._bundle.version:
                self.monitor.labelled(correct, confidence)

    def reports(self) -> dict[str, dict]:
        """What they say now, as JSON values, by "drift" and "accuracy"; none that are not there or fail."""
        found = {}
        with self._lock, self._outage:
            for kind, source in (("drift", self.detector), ("accuracy", self.monitor)):
                if source:
                    found[kind] = source.report().as_dict()
        return found
