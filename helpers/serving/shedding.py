"""Says 503 to predictions while as many wait as may, before anything else is done for them.

By the app a refusal would cost half of what an answer costs beside the engine: at twice the load that a server can
bear, refusing would take the time of answering.
"""

import json
from collections.abc import Callable
from uuid import uuid4

from starlette.types import Receive, Scope, Send

from helpers.serving.guard import HEADERS
from helpers.serving.problems import RETRY

TARGETS = {b"/predict", b"/predict_single", b"/predict_batch"}
STATE = "shedder"  # where the lifespan leaves it for `serving.connection`
WHOLE = "whole"  # in the state of a request, once its body has come


class Shedder:
    """An ASGI app for requests that `takes` says it takes; as `serving.guard.RequestFrame` it tells `answered`.

    A connection whose request is not whole yet is closed: nobody would wait for the rest, for however long it takes.
    """

    def __init__(self, is_full: Callable[[], bool], answered: Callable[[str, int, float], None]) -> None:
        self.is_full, self.answered = is_full, answered
        self._body = json.dumps({"detail": "too many requests are waiting already; try again in a second"}).encode()
        self._headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(self._body)),
            *((name.lower().encode(), value.encode()) for name, value in RETRY.items()),
            *HEADERS,
        ]

    def takes(self, method: bytes, target: bytes) -> bool:
        """Whether a request is for a prediction that must be refused now."""
        return method == b"POST" and target.partition(b"?")[0] in TARGETS and self.is_full()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self._headers, (b"x-request-id", uuid4().hex.encode())]
        if not scope["state"].get(WHOLE):
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": self._body})
        self.answered(scope["path"], 503, 0.0)
