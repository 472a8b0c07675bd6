"""A peer: mosec with one worker behind its Rust server; the body of a request is the file.

python -m benchmarks.peers.mosec --address 127.0.0.1 --port PORT
"""

import json

import mosec

from benchmarks.peers.network import MAX_BATCH, Network


class Classifier(mosec.Worker):
    """Takes files, gives class names."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Network()

    def deserialize(self, data):
        return bytes(data)

    def serialize(self, data):
        return json.dumps(data).encode()

    def forward(self, data):
        return self.network.name(data)


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Classifier, max_batch_size=MAX_BATCH, max_wait_time=1, timeout=30)  # ms, s
    server.run()
