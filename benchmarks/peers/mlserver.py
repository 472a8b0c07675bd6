"""A peer: MLServer with its adaptive batching; files as base64 in a tensor of the Open Inference Protocol.

    python -m benchmarks.peers.mlserver PORT

It always waits for a batch as long as it may, so that the wait is short.
"""

import asyncio
import base64
import socket
import sys

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import StringCodec
from mlserver.types import InferenceResponse

from benchmarks.peers.network import MAX_BATCH, Network


class Classifier(MLModel):
    """Takes files, gives class names."""

    async def load(self) -> bool:
        self.network = Network()
        return True

    async def predict(self, payload):
        files = [base64.b64decode(data) for data in StringCodec.decode_input(payload.inputs[0])]
        outputs = [StringCodec.encode_output("class", self.network.name(files))]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


async def serve(port: int) -> None:
    """Until SIGTERM."""
    settings = Settings(
        host="127.0.0.1", http_port=port, grpc_port=free_port(), metrics_endpoint=None, parallel_workers=0, debug=False
    )
    model = ModelSettings(
        name="cifar100", implementation=Classifier, max_batch_size=MAX_BATCH, max_batch_time=0.001, parallel_workers=0
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
