"""Trouble that must not spread: logged once while it lasts, and counted."""

import logging

_logger = logging.getLogger(__name__)


class Outage:
    """A context that swallows exceptions: the first of a row is logged with its traceback, and all are counted."""

    def __init__(self, message: str) -> None:
        self.message, self.lasting, self.count = message, False, 0

    def __enter__(self) -> "Outage":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if error is None:
            self.lasting = False
            return False
        if not isinstance(error, Exception):
            return False
        self.count += 1
        if not self.lasting:
            _logger.error(self.message, exc_info=error)
        self.lasting = True
        return True
