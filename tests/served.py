"""A service over a store of good and bad versions, and what is sent to it."""

import io
import socket
import struct
import zlib
from contextlib import contextmanager
from types import SimpleNamespace

import httpx2
import numpy as np
from conftest import make_bundle
from PIL import Image

from helpers.delivery.graph import read_weights
from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import open_store
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.registry import Registry
from helpers.serving.service import create_app

ALIAS, TOKEN = "models/tiny", "a token of the tests"


def open_shop(folder):
    """A store with two good versions (the first in production), one that answers NaN and one with a damaged file."""
    store, cache = open_store(str(folder / "store")), folder / "cache"
    registry = Registry(store, "tiny")
    bundles = [make_bundle(folder / str(seed), seed) for seed in (0, 1)]
    weights = read_weights(bundles[0].model_path)
    weights["logits/bias"][3] = np.nan
    bundles.append(make_bundle(folder / "nan", weights=weights, golden=bundles[0].golden()))
    bundles.append(make_bundle(folder / "damaged", 3))
    good, other, nan, damaged = (registry.publish(bundle.path) for bundle in bundles)
    key = f"models/tiny/versions/{damaged}/labels.json"
    store.write(key, b"{" + store.read(key).data[1:-1] + b" ", if_generation=None)
    registry.promote(good, reason="test")
    models = [load_model(bundle.path) for bundle in bundles[:2]]
    return SimpleNamespace(
        folder=folder,
        registry=registry,
        good=good,
        other=other,
        nan=nan,
        damaged=damaged,
        models=models,
        load=lambda model_dir: load_model(resolve(store, model_dir, cache)),
    )


@contextmanager
def serve(shop, model=None, *, load=None, limits=None, **options):
    """A server of its own with a client; `predictor` and `app` are those behind it."""
    predictor = Predictor(model or shop.models[0], **(limits or {}))
    app = create_app(predictor, load or shop.load, ALIAS, **options)
    try:
        with Server(app, port=0) as server, httpx2.Client(base_url=server.url, timeout=20, verify=False) as client:
            yield SimpleNamespace(client=client, predictor=predictor, app=app, port=server.port, url=server.url)
    finally:
        predictor.close()


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PIXELS = np.random.default_rng(5).integers(0, 256, (32, 32, 3), dtype=np.uint8)
PNG = encode(Image.fromarray(PIXELS))
IMAGES = np.random.default_rng(8).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def send(client, data=PNG, name="image.png", route="/predict_single", **options):
    return client.post(route, files={"file": (name, data)}, **options)


def version_path(version):
    return f"models/tiny/versions/{version}"


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def read_answer(source):
    """Status, headers and body of the next answer, of a socket or of the file that reads one."""
    file = source.makefile("rb") if isinstance(source, socket.socket) else source
    status = int(file.readline().split()[1])
    headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in iter(file.readline, b"\r\n"))
    return status, headers, file.read(int(headers["content-length"]))


def bomb(side):
    """A PNG of a few bytes that says it has `side` x `side` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
