"""Whole answers as bytes, for who speaks at the connection and not through the app."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus

from helpers.serving.guard import HEADERS

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_COMMON = b"".join(name + b": " + value + b"\r\n" for name, value in HEADERS)


def raw_answer(
    status: int,
    body: bytes,
    headers: Mapping[str, str],
    request_id: str,
    defaults: Iterable[tuple[bytes, bytes]] = (),
    *,
    closes: bool,
) -> bytes:
    """An HTTP/1.1 answer with the JSON `body` and the headers that every answer has.

    Args:
        headers: more of them, as are the server's `defaults`.
        closes: says that the connection ends with it.
    """
    more = "".join([f"{name.lower()}: {value}\r\n" for name, value in headers.items()])  # as the app writes them
    if closes:
        more += "connection: close\r\n"
    own = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nx-request-id: {request_id}\r\n{more}\r\n"
    known = b"".join([name + b": " + value + b"\r\n" for name, value in defaults])
    return _LINES[status] + known + _COMMON + own.encode() + body
