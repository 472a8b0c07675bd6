"""Says 503 to predictions while as many wait as may, before anything else is done for them.

By the app a refusal would cost half of what an answer costs beside the engine: at twice the load that a server can
bear, refusing would take the time of answering.
"""

import json
from collections.abc import Callable
from uuid import uuid4

from helpers.serving.guard import HEADERS
from helpers.serving.problems import RETRY

TARGETS = {b"/predict", b"/predict_single", b"/predict_batch"}
STATE = "shedder"  # where the lifespan leaves it for `serving.connection`


class Shedder:
    """Knows which requests to refuse, and the bytes to refuse them with.

    As `serving.guard.RequestFrame` it tells `answered` of each.
    """

    def __init__(self, is_full: Callable[[], bool], answered: Callable[[str, int, float], None]) -> None:
        self.is_full, self.answered = is_full, answered
        body = json.dumps({"detail": "too many requests are waiting already; try again in a second"}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **RETRY}
        head = [f"{name.lower()}: {value}".encode() for name, value in headers.items()]
        head += [name + b": " + value for name, value in HEADERS]
        self._head = b"\r\n".join((b"HTTP/1.1 503 Service Unavailable", *head))
        self._end = b"\r\n\r\n" + body

    def takes(self, method: bytes, target: bytes) -> bool:
        """Whether a request is for a prediction that must be refused now."""
        return method == b"POST" and target.partition(b"?")[0] in TARGETS and self.is_full()

    def refuse(self, target: bytes, *, closes: bool) -> bytes:
        """The whole answer, which says whether it `closes` the connection."""
        self.answered(target.partition(b"?")[0].decode(), 503, 0.0)
        closing = b"\r\nconnection: close" if closes else b""
        return self._head + b"\r\nx-request-id: " + uuid4().hex.encode() + closing + self._end
