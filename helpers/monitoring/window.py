"""What a stretch of predictions amounts to: quantiles, throughput, classes, and what drift and accuracy say."""

import sqlite3

import numpy as np

INTERVAL_S = 60.0
MAX_ROWS = 100_000
QUANTILES = {"p50": 50, "p90": 90, "p99": 99}


class Window:
    """Gathers logged predictions, and sums them up about once every `interval_s` seconds of their own time."""

    def __init__(self, interval_s: float = INTERVAL_S) -> None:
        self.interval_s = interval_s
        self._rows: list[tuple[float, float, int, float]] = []
        self._verdict, self._alerts = "", []

    def add(self, row: sqlite3.Row) -> bool:
        """Takes in the next prediction; True where it is time to `summarise`."""
        self._rows.append((row["time"], row["seconds"], row["class_index"], row["confidence"]))
        return row["time"] - self._rows[0][0] >= self.interval_s or len(self._rows) >= MAX_ROWS

    def summarise(self, drift: dict | None = None, accuracy: dict | None = None) -> dict[str, object]:
        """Values under keys for W&B, of the predictions since the last time.

        ``Window/`` holds quantiles of the prediction time and of the confidence, predictions a second, and a
        histogram of the class index; ``Drift/`` and ``Accuracy/`` the numbers in those reports.
        """
        import wandb

        times, seconds, classes, confidence = map(np.array, zip(*self._rows, strict=True))
        self._rows = []
        values = {f"Window/Prediction Time {name}": np.percentile(seconds, q) for name, q in QUANTILES.items()}
        values |= {f"Window/Confidence {name}": np.percentile(confidence, q) for name, q in QUANTILES.items()}
        values["Window/Predictions per Second"] = len(times) / max(float(times[-1] - times[0]), 1e-3)
        counts = np.bincount(classes.astype(int), minlength=100)
        values["Window/Classes"] = wandb.Histogram(np_histogram=(counts, np.arange(len(counts) + 1) - 0.5))
        for kind, report in (("Drift", drift), ("Accuracy", accuracy)):
            values |= dict(_numbers(kind, report or {}))
        self._judge((drift or {}).get("verdict", ""))
        return values

    def alerts(self) -> list[tuple[str, str]]:
        """Titles and texts of what came up in the last summary."""
        alerts, self._alerts = self._alerts, []
        return alerts

    def _judge(self, verdict):
        if verdict == "drift" != self._verdict:
            self._alerts.append(("Drift", "the served images differ from the reference; GET /drift says how"))
        self._verdict = verdict


def _numbers(prefix, report):
    for name, value in report.items():
        if isinstance(value, dict):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}/{name}", value
