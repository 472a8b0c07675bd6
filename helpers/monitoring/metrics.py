"""What the service does, in Prometheus' format: counted where it happens, read when somebody scrapes."""

from collections import Counter as Tally
from collections.abc import Callable, Iterable

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from helpers.inference.listener import Batch

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONFIDENCES = tuple(i / 10 for i in range(1, 11))


class Metrics:
    """The metrics of one app, in a registry of its own.

    Attributes:
        samplers: called at each scrape, for metrics that are known elsewhere.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        options = {"namespace": "suite", "registry": self.registry}
        text = "From a request's first byte to the last of its answer"
        self._latency = Histogram("request_seconds", text, ("route",), buckets=SECONDS, **options)
        self._requests = Counter("requests", "Requests answered", ("route", "status"), **options)
        self.batch_size = Histogram("batch_images", "Images in a batch of the engine", buckets=BATCH_SIZES, **options)
        self.engine = Histogram("engine_seconds", "Of a batch in the engine", buckets=SECONDS, **options)
        self._failures = Counter("batch_failures", "Batches that a model could not answer", **options)
        self._swaps = Counter("model_swaps", "Changes of the model, by what became of them", ("outcome",), **options)
        self.feedback = Counter("feedback", "True classes told, by whether the answer was right", ("right",), **options)
        self._classes: Tally[str] = Tally()
        self._confidences, self._confidence_sum = np.zeros(len(CONFIDENCES) + 1, int), 0.0
        self._children: dict = {}
        self.samplers: list[Callable[[], Iterable]] = [self._sample_predictions]
        self.registry.register(_Sampler(self.samplers))

    def responded(self, route: str, status: int, seconds: float) -> None:
        """Counts a request; `route` is its path as declared."""
        if (children := self._children.get((route, status))) is None:
            children = (self._requests.labels(route, status), self._latency.labels(route))
            self._children[route, status] = children
        children[0].inc()
        children[1].observe(seconds)

    def answered(self, batch: Batch) -> None:
        """Counts a batch of the engine; what `inference.listener.Listener` asks for."""
        self.batch_size.observe(len(batch.images))
        self.engine.observe(batch.seconds)

    def failed(self, version: str, error: Exception) -> None:
        """Counts a batch that a model could not answer."""
        self._failures.inc()

    def predicted(self, class_names: Iterable[str], confidences: np.ndarray) -> None:
        """Counts predictions, float (n,) with their classes; from one thread."""
        self._classes.update(class_names)
        self._confidences += np.bincount(np.searchsorted(CONFIDENCES, confidences), minlength=len(self._confidences))
        self._confidence_sum += float(confidences.sum())

    def swapped(self, outcome: str) -> None:
        """Counts a change of the model: "done", "refused", "busy" or "failed"."""
        self._swaps.labels(outcome).inc()

    def render(self) -> bytes:
        """All metrics as text, for a scrape."""
        return generate_latest(self.registry)

    def _sample_predictions(self):
        counts = {(name,): count for name, count in self._classes.copy().items()}
        yield counter("predictions", "Images classified, by class", counts, ("class",))
        counts, edges = self._confidences.cumsum().tolist(), (*map(str, CONFIDENCES), "+Inf")
        text = "Probability of the class that was answered"
        yield HistogramMetricFamily(
            "suite_confidence", text, list(zip(edges, counts, strict=True)), sum_value=self._confidence_sum
        )


class _Sampler:
    def __init__(self, samplers):
        self._samplers = samplers

    def describe(self):
        return ()  # else registering would sample

    def collect(self):
        for sampler in self._samplers:
            yield from sampler()


def gauge(name: str, text: str, values: dict[tuple, float], labels: tuple[str, ...] = ()) -> GaugeMetricFamily:
    """The gauge ``suite_<name>`` with its values by labels, for a sampler."""
    return _fill(GaugeMetricFamily(f"suite_{name}", text, labels=labels), values)


def counter(name: str, text: str, values: dict[tuple, float], labels: tuple[str, ...] = ()) -> CounterMetricFamily:
    """The counter ``suite_<name>_total`` with its values by labels, for a sampler."""
    return _fill(CounterMetricFamily(f"suite_{name}", text, labels=labels), values)


def _fill(family, values):
    for labels, value in values.items():
        family.add_metric([str(label) for label in labels], value)
    return family
