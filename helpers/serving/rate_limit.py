"""So many predictions a minute for each client, and no more."""

import ipaddress
import math

from fastapi import HTTPException, Request


class RateLimit:
    """Counts the images of each client in a sliding window: two counters a client, however many it sends.

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
            raise ValueError(f"rate limit must allow at least 1 prediction, got {rate!r}")
        self._window = strategies.SlidingWindowCounterRateLimiter(storage.MemoryStorage())

    def check(self, request: Request) -> None:
        """Counts one image of `request`, or raises HTTPException 429 with the seconds to wait in Retry-After."""
        client = _client_of(request)
        if not self._window.hit(self._item, client):
            raise self._refusal(client, 1)

    def check_rest(self, request: Request, images: int) -> None:
        """Counts all of the `images` of `request` but the one that `check` counted, or none and raises as that does.

        Of more images than are ever allowed at once HTTPException 413.
        """
        if images > self._item.amount:
            rule = f"no more than {self._item} are taken from one address; send {self._item.amount} at most"
            raise HTTPException(413, f"the request has {images} images, and {rule}")
        client = _client_of(request)
        if images > 1 and not self._window.hit(self._item, client, cost=images - 1):
            raise self._refusal(client, images)

    def _refusal(self, client, images):
        wait = self._wait(client, images)
        rule = f"more than {self._item} from one address; try again in {wait} s"
        detail = rule if images == 1 else f"the {images} images of this request make {rule} or send fewer"
        return HTTPException(429, detail, {"Retry-After": str(wait)})

    def _wait(self, client, images):
        """Whole seconds after which `images` are allowed, if none come meanwhile.

        What counts is the window of now, and of the one before the part that lies in the last `length` seconds.
        """
        length = self._item.get_expiry()
        before, before_ends, now, now_ends = self._window.storage.get_sliding_window(self._item.key_for(client), length)
        below = self._item.amount - images + 1
        if now >= below:  # even in the next window, where it is the one before
            seconds = now_ends - below * length / now
        else:
            seconds = before_ends - (below - now) * length / max(1, before)
        return max(1, math.floor(seconds) + 1)


def _client_of(request):
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host
