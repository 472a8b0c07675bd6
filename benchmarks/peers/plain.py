"""A peer: FastAPI as its tutorial has it, a handler in the thread pool that runs the network on one image.

python -m benchmarks.peers.plain PORT
"""

import sys

import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.network import Network


def create_app() -> FastAPI:
    """The service with the one route that the benchmark asks for."""
    network, app = Network(), FastAPI()

    @app.post("/predict_single")
    def predict_single(file: UploadFile) -> str:
        return network.name([file.file.read()])[0]

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), access_log=False, log_level="warning")
