"""Says 503 to predictions while as many wait as may, before anything else is done for them.

By the app a refusal would cost half of what an answer costs beside the engine: at twice the load that a server can
bear, refusing would take the time of answering.
"""

from collections.abc import Callable, Iterable

from helpers.serving.problems import RETRY
from helpers.serving.raw_answer import raw_answer
from helpers.serving.request_id import new_request_id

TARGETS = {b"/predict", b"/predict_single", b"/predict_batch"}
BODY = b'{"detail":"too many requests are waiting already; try again in a second"}'


class Shedder:
    """Knows which requests to refuse, and the bytes to refuse them with.

    As `serving.guard.RequestFrame` it tells `answered` of each.
    """

    def __init__(self, is_full: Callable[[], bool], answered: Callable[[str, int, float], None]) -> None:
        self.is_full, self.answered = is_full, answered

    def takes(self, method: bytes, target: bytes) -> bool:
        """Whether a request is for a prediction that must be refused now."""
        return method == b"POST" and target.partition(b"?")[0] in TARGETS and self.is_full()

    def refuse(self, target: bytes, defaults: Iterable[tuple[bytes, bytes]], *, closes: bool) -> bytes:
        """The whole answer, as `serving.raw_answer` has it."""
        self.answered(target.partition(b"?")[0].decode(), 503, 0.0)
        return raw_answer(503, BODY, RETRY, new_request_id(), defaults, closes=closes)
