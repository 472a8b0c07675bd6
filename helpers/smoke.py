"""Whether a service that was just deployed works: ``python -m helpers.smoke URL``, one sentence and an exit code."""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import requests

from helpers.client import Client
from helpers.delivery.bundle import Bundle, BundleError, read_bundle
from helpers.delivery.storage import StorageError, open_store
from helpers.registry import PRODUCTION, Registry, RegistryError, UnknownModel, add_store_options
from helpers.workspace import ROOT, bucket_url, secret

IMAGES = 4
PATIENCE_S = 120.0
TOKEN = "SUITE_IDENTITY_TOKEN"  # for a service that lets in only whom its platform knows, as Cloud Run's private ones


class SmokeError(RuntimeError):
    """The service does not do what it should; one sentence."""


def expected_bundle(registry: Registry, version: str, cache: Path) -> Bundle:
    """The bundle that should serve: `version` of the registry or an alias of it; while there is none, ``model/``.

    Raises:
        UnknownModel: if there is no such version, and an alias only if ``model/`` holds no bundle either.
    """
    try:
        return read_bundle(registry.download(registry.find(version), cache))
    except UnknownModel:
        if version != PRODUCTION or not (ROOT / "model").is_dir():
            raise
        return read_bundle(ROOT / "model")


def smoke(url: str, bundle: Bundle, *, token: str | None = None, patience: float = PATIENCE_S) -> str:
    """One sentence on what was found right: ready, the version of `bundle`, and the clearest of its golden images.

    Args:
        token: sent as ``Authorization: Bearer``.
        patience: seconds until the service must be ready with that version.

    Raises:
        SmokeError: if anything else is found.
    """
    client, deadline = Client(url, token, timeout=30), time.monotonic() + patience
    try:
        while problem := _not_ready(client, bundle.version):
            if time.monotonic() > deadline:
                raise SmokeError(f"{url} is not what was deployed after {patience:g} s: {problem}")
            time.sleep(0.5)
        images, probabilities = bundle.golden()
        for row in _clearest(probabilities):
            wanted, reply = bundle.labels.fine[probabilities[row].argmax()], client.predict_single(images[row])
            if (reply.status, reply.body) != (200, wanted):
                raise SmokeError(
                    f"{url} must answer golden image {row} with 200 and {wanted!r}, got {reply.status} {reply.body!r}"
                )
    except requests.RequestException as error:
        raise SmokeError(f"{url} gives no answer ({error})") from error
    finally:
        client.close()
    return f"{url} is ready, serves version {bundle.version}, and answers {IMAGES} golden images as it must"


def main(argv: Sequence[str] | None = None) -> int:
    """Asks the service that the command line names; 0 if it works, 1 if not, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        registry = Registry(open_store(bucket_url(arguments.bucket)), arguments.name)
        with tempfile.TemporaryDirectory() as cache:
            bundle = expected_bundle(registry, arguments.version, Path(cache))
            print(smoke(arguments.url, bundle, token=secret(TOKEN), patience=arguments.patience))
    except (SmokeError, RegistryError, StorageError, BundleError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what must serve, where it is published, and how soon."""
    add = parser.add_argument
    add("--version", default=PRODUCTION, help=f"that must serve, or an alias (default: {PRODUCTION})")
    add_store_options(parser)
    add("--patience", type=float, default=PATIENCE_S, help=f"seconds until it must be ready (default: {PATIENCE_S:g})")


def _not_ready(client, version):
    try:
        ready, model = client.get("/health/ready"), client.get("/model")
    except (requests.ConnectionError, requests.Timeout) as error:
        return str(error)
    if ready.status != 200:
        return f"/health/ready says {ready.status} {ready.body!r}"
    serving = model.body.get("version") if isinstance(model.body, dict) else model.body
    return "" if serving == version else f"it serves {serving!r} and not version {version!r}"


def _clearest(probabilities):
    """Rows whose best class leads most: the rounding of another processor does not turn them."""
    ordered = np.sort(probabilities, axis=1)
    return np.argsort(ordered[:, -2] - ordered[:, -1])[:IMAGES].tolist()


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.smoke", description="Asks a service whether it works.")
    parser.add_argument("url", help="of the service")
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
