"""Talks to the service as anyone would: over HTTP."""

import io
import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        status: HTTP status code.
        body: parsed JSON, or the text where it is none.
        seconds: from sending the request to having the whole answer.
    """

    status: int
    body: object
    seconds: float


class Client:
    """Requests to the service at `url`, over one kept connection; HTTP errors come back as replies.

    Args:
        url: of the service, local or public.
        token: for the routes that change the model.
        timeout: seconds that an answer may take; a model from an unreachable bucket takes a minute to be refused.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 90):
        import requests

        self.url, self.timeout = url.rstrip("/"), timeout
        self._session = requests.Session()
        self._session.headers["ngrok-skip-browser-warning"] = (
            "1"  # else ngrok's free plan answers with a page of its own
        )
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def predict_single(self, image: np.ndarray | bytes, name: str = "image.png") -> Reply:
        """The class of `image`: uint8 (height, width, 3) pixels, sent as PNG, or the bytes of a file called `name`."""
        data = image if isinstance(image, bytes) else encode_png(image)
        return self._reply("POST", "/predict_single", files={"file": (name, data)})

    def get(self, path: str, **query: str) -> Reply:
        """The answer to a GET of `path`, such as "/change_model", with `query`."""
        return self._reply("GET", path, params=query)

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _reply(self, method, path, **options):
        started = time.perf_counter()
        answer = self._session.request(method, self.url + path, timeout=self.timeout, **options)
        seconds = time.perf_counter() - started
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return Reply(answer.status_code, answer.json() if is_json else answer.text, seconds)


def encode_png(image: np.ndarray, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """`image`, uint8 (height, width, 3), as the bytes of a file: `mode` as Pillow names it, `kind` PNG or JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind)
    return file.getvalue()
