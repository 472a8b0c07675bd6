"""Talks to the service as anyone would: over HTTP."""

import io
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from helpers.delivery.address import find_address
from helpers.delivery.layout import RegistryError
from helpers.delivery.storage import StorageError, open_store
from helpers.delivery.versions import PRODUCTION
from helpers.workspace import bucket_url

PATIENCE_S = 60.0
ONCE = ("/rollback_model",)  # what does more when it is done twice


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
        patience: seconds in which a request that reached no service, or a busy one, is sent again; 0 sends it once.
        find: says where the service is by now, before a request is sent again.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 90,
        *,
        patience: float = 0,
        find: Callable[[], str] | None = None,
    ):
        import requests

        self.url, self.timeout, self.patience, self._find = url.rstrip("/"), timeout, patience, find
        self._session = requests.Session()
        self._session.headers["ngrok-skip-browser-warning"] = (
            "1"  # else ngrok's free plan answers with a page of its own
        )
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    @classmethod
    def of(
        cls,
        name: str,
        alias: str = PRODUCTION,
        *,
        bucket: str = "",
        token: str | None = None,
        patience: float = PATIENCE_S,
    ) -> "Client":
        """A client of whichever service serves `alias` of the model `name`, wherever it is (`delivery.address`).

        Args:
            bucket: see `workspace.bucket_url`.

        Raises:
            UnknownAddress: if no service says where it is.
        """
        store = open_store(bucket_url(bucket))

        def find():
            return find_address(store, name, alias).url

        return cls(find(), token, patience=patience, find=find)

    def predict_single(self, image: np.ndarray | bytes, name: str = "image.png") -> Reply:
        """The class of `image`: uint8 (height, width, 3) pixels, sent as PNG, or the bytes of a file called `name`."""
        data = image if isinstance(image, bytes) else encode_png(image)
        return self._reply("POST", "/predict_single", files={"file": (name, data)})

    def predict(self, image: np.ndarray) -> Reply:
        """As `predict_single`, by ``/predict``: with probabilities and the request id that `feedback` wants."""
        return self._reply("POST", "/predict", files={"file": ("image.png", encode_png(image))})

    def feedback(self, request_id: str, label: str | int) -> Reply:
        """Tells the service what the picture of a request really showed: the class by name or index."""
        return self._reply("POST", "/feedback", json={"request_id": request_id, "label": label})

    def get(self, path: str, **query: str) -> Reply:
        """The answer to a GET of `path`, such as "/change_model", with `query`."""
        return self._reply("GET", path, params=query)

    def close(self) -> None:
        """Closes the connection."""
        self._session.close()

    def _reply(self, method, path, **options):
        import requests

        started, pause = time.perf_counter(), 0.1
        while True:
            last = path in ONCE or time.perf_counter() - started + pause > self.patience
            try:
                answer = self._session.request(method, self.url + path, timeout=self.timeout, **options)
                # The tunnel answers for a service that it does not reach.
                if last or not (answer.status_code == 503 or "Ngrok-Error-Code" in answer.headers):
                    break
            except requests.ConnectionError:
                if last:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
            if self._find is not None:
                with suppress(StorageError, RegistryError):  # it may be starting
                    self.url = self._find().rstrip("/")
        seconds = time.perf_counter() - started
        is_json = answer.headers.get("Content-Type", "").startswith("application/json")
        return Reply(answer.status_code, answer.json() if is_json else answer.text, seconds)


def encode_png(image: np.ndarray, mode: str = "RGB", kind: str = "PNG") -> bytes:
    """`image`, uint8 (height, width, 3), as the bytes of a file: `mode` as Pillow names it, `kind` PNG or JPEG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind)
    return file.getvalue()
