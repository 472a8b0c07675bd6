"""The network of the bundle in model/ as the peers run it: the same file, decoder, engine and threads as the service.

With PEER_ENGINE=onnxruntime in the environment they run it by ONNX Runtime in float32 instead. This imports nothing of
the service: what a peer does with a request is its own.
"""

import json
import os

import numpy as np

from helpers.data.images import decode_image
from helpers.inference.engine import OpenVinoEngine, available_cpus
from helpers.workspace import ROOT

MODEL = ROOT / "model"
MAX_BATCH = 32  # as in the service: more images at once are no faster an image


class Network:
    """Class names for files, in batches of any size."""

    def __init__(self) -> None:
        self._names = json.loads((MODEL / "labels.json").read_bytes())["fine"]
        path, threads = MODEL / "model.onnx", available_cpus()
        if os.environ.get("PEER_ENGINE") == "onnxruntime":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self._run = lambda images: session.run(["logits"], {"images": images})[0]
        else:
            engine = OpenVinoEngine(path, threads)
            self._run = lambda images: engine.run(images).logits
        for size in range(1, MAX_BATCH + 1):
            self._run(np.zeros((size, 32, 32, 3), np.uint8))

    def name(self, files: list[bytes]) -> list[str]:
        """What each PNG or JPEG shows."""
        logits = self._run(np.stack([decode_image(data) for data in files]))
        return [self._names[index] for index in logits.argmax(axis=1)]
