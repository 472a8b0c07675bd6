"""A peer: LitServe with one worker.

    python -m benchmarks.peers.litserve PORT

A worker that waits for a batch waits its whole time out where fewer clients are there than the batch has places, so
that the wait is short.
"""

import sys

import litserve

from benchmarks.peers.network import MAX_BATCH, Network


class Classifier(litserve.LitAPI):
    """Takes a form with a file, gives a class name."""

    def setup(self, device) -> None:
        self.network = Network()

    def decode_request(self, request):
        return request["file"].file.read()

    def batch(self, inputs):
        return inputs

    def predict(self, files):
        return self.network.name(files)

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=MAX_BATCH, batch_timeout=0.001, api_path="/predict_single")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run("127.0.0.1", int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning")
