"""Names for requests."""

import os
from collections import deque

_AT_ONCE = 256  # a call of the system gives the interpreter away, and to have it back may take milliseconds
_ids: deque[str] = deque()


def new_request_id() -> str:
    """32 hexadecimal digits that nobody can guess: who knows them may say what the true class was."""
    while True:
        try:
            return _ids.pop()
        except IndexError:
            digits = os.urandom(16 * _AT_ONCE).hex()
            _ids.extend(digits[at : at + 32] for at in range(0, len(digits), 32))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.clear)  # or both processes would give the same
