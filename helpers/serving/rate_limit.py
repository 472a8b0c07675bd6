"""So many predictions a minute for each client, and no more."""

import ipaddress
import math
import time

from fastapi import HTTPException, Request


class RateLimit:
    """Counts the requests of each client in a sliding window: two counters a client, however many it sends.

    A client is an address; of IPv6 its first 64 bits, since who has one of those has them all. All who come through
    a tunnel come from this machine: there the address is what the proxy put into X-Forwarded-For, which uvicorn takes
    from a proxy on 127.0.0.1 alone, and of it the last address, since a client can write only those before.

    Args:
        rate: as ``"60/minute"`` or ``"1000 per 2 hours"``.

    Raises:
        ValueError: if `rate` is no such text.
    """

    def __init__(self, rate: str) -> None:
        from limits import parse, storage, strategies  # takes 70 ms, which a start without it need not

        try:
            self._item = parse(rate)
        except ValueError:
            raise ValueError(f"rate limit must be like 60/minute, got {rate!r}") from None
        if self._item.amount < 1:
            raise ValueError(f"rate limit must allow at least 1 request, got {rate!r}")
        self._window = strategies.SlidingWindowCounterRateLimiter(storage.MemoryStorage())

    def check(self, request: Request) -> None:
        """Counts `request`, or raises HTTPException 429 with the seconds to wait in Retry-After."""
        client = _client_of(request)
        if self._window.hit(self._item, client):
            return
        wait = max(1, math.ceil(self._window.get_window_stats(self._item, client).reset_time - time.time()))
        raise HTTPException(
            429, f"more than {self._item} from one address; try again in {wait} s", {"Retry-After": str(wait)}
        )


def _client_of(request):
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
