"""Averages and the mode of all predictions so far: the five numbers that the dashboards know."""

import math
import threading

SCALARS = ("Prediction Time", "Average Prediction Time", "Output", "Average Output", "Most Occurring Output")


class RunningStatistics:
    """Averages and the mode over every prediction so far; thread-safe, in memory that does not grow with them."""

    def __init__(self, classes: int = 100):
        self._lock = threading.Lock()
        self._counts = [0] * classes
        self._count = 0
        self._seconds = 0.0
        self._indices = 0
        self._mode = 0

    def update(self, seconds: float, class_index: int) -> dict[str, float | int]:
        """Take in one prediction and return the five scalars, by the names that the dashboards know.

        "Prediction Time" and its average are in seconds; "Output" is the class index, 0 to classes - 1, "Average
        Output" the mean of the indices, "Most Occurring Output" the index seen most often, the smaller one on a tie.

        Raises:
            ValueError: if `seconds` is negative or not finite, or `class_index` not a class; nothing is counted then.
        """
        return dict(zip(SCALARS, self.count(seconds, class_index), strict=True))

    def count(self, seconds: float, class_index: int) -> tuple[float, float, int, float, int]:
        """As `update`, in the order of `SCALARS`."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"seconds: expected a finite number of at least 0, got {seconds!r}")
        if not 0 <= class_index < len(self._counts):
            raise ValueError(f"class_index: expected 0 to {len(self._counts) - 1}, got {class_index!r}")
        seconds, index = float(seconds), int(class_index)
        with self._lock:
            self._count += 1
            self._seconds += seconds
            self._indices += index
            self._counts[index] += 1
            # Only the class just counted can overtake the leader, or draw level with it.
            if (self._counts[index], -index) > (self._counts[self._mode], -self._mode):
                self._mode = index
            return seconds, self._seconds / self._count, index, self._indices / self._count, self._mode
