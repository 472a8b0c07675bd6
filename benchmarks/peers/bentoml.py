"""A peer: BentoML with one worker and its adaptive batching; files in JSON as base64, which is how it batches them.

python -m bentoml serve benchmarks.peers.bentoml:Classifier --port PORT
"""

import base64

import bentoml

from benchmarks.peers.network import MAX_BATCH, Network


@bentoml.service(
    workers=1,
    traffic={"timeout": 30, "max_concurrency": 256},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Takes files, gives class names."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=1000)
    def predict_single(self, files: list[str]) -> list[str]:
        return self.network.name([base64.b64decode(data) for data in files])
