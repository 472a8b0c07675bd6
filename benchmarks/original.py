"""The opponent: the way of the project that this suite grew out of, ``model.predict`` inside an async handler.

    python -m benchmarks.original PORT          serves the bundle in model/

Weights, decoder, form parser, server and answer are this suite's, so that what is compared is the way alone.
"""

import sys

import numpy as np
import uvicorn
from fastapi import FastAPI, Request

from helpers.data.images import decode_image
from helpers.delivery.bundle import read_bundle
from helpers.delivery.graph import read_weights
from helpers.serving.upload import read_files
from helpers.training.model import build_vgg16, set_weights
from helpers.workspace import ROOT


def create_app() -> FastAPI:
    """The service with the two routes that the benchmark asks for."""
    bundle = read_bundle(ROOT / "model")
    network = build_vgg16(**bundle.manifest.config)
    set_weights(network, read_weights(bundle.model_path))
    app = FastAPI()

    @app.post("/predict_single")
    async def predict_single(request: Request) -> str:
        image = decode_image(read_files(request.headers["content-type"], await request.body())[0])
        logits = network.predict(image[np.newaxis].astype(np.float32), verbose=0)
        return bundle.labels.fine[int(logits.argmax())]

    @app.get("/health/live")
    async def live() -> dict:
        return {"status": "live"}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), access_log=False, log_level="warning")
