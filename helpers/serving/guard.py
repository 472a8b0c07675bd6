"""What stands around the routes: time and headers of every request, and who may change the model."""

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from helpers.serving.problems import RETRY, body_too_large, describe, problem
from helpers.serving.request_id import new_request_id

OTHER = "other"  # the route of what no route takes
CHANGING = ("/reload_model", "/change_model", "/rollback_model")  # also by GET, which to ask about must not do
BODY_S = 10.0
MAX_BYTES_IN_FLIGHT = 256 * 2**20
HEADERS = (
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)

_BEARER = HTTPBearer(auto_error=False, description="the value of SUITE_ADMIN_TOKEN on the server")
_OWN_ADDRESS = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?P<port>(?::\d{1,5})?)")


class RequestFrame:
    """ASGI middleware: gives each request an id, its body limits, and its answer the headers above.

    A body of more than `max_body_bytes` is answered 413, announced or not; 503 where the bodies of all requests
    together have more than `MAX_BYTES_IN_FLIGHT`. uvicorn waits for ever for the rest of a body; here the answer is 408
    after `body_s` seconds. These close the connection, or uvicorn would read on. What the app raises is logged and 500.
    HEAD is answered as GET would be.

    `answered` is told of each answer: the path as its route declares it, the status, and the seconds it took.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        body_s: float = BODY_S,
        answered: Callable[[str, int, float], None] = lambda route, status, seconds: None,
    ) -> None:
        self.app, self.max_body_bytes, self.body_s, self.answered = app, max_body_bytes, body_s, answered
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and scope["path"] not in CHANGING:  # uvicorn leaves the body out
            scope = {**scope, "method": "GET"}
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        deadline, size, whole, status = asyncio.get_running_loop().time() + self.body_s, 0, False, 0
        started = perf_counter()

        async def receive_in_time():
            nonlocal size, whole
            if whole:  # from here on the only message is the client's leaving, and that may take its time
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request body took more than {self.body_s:g} s; send it again") from None
            received = len(message.get("body", b""))
            size += received
            self._in_flight += received
            if size > self.max_body_bytes:
                raise HTTPException(413, body_too_large(self.max_body_bytes))
            if self._in_flight > MAX_BYTES_IN_FLIGHT:
                raise HTTPException(503, "too many large requests at once; try again in a second", RETRY)
            whole = not message.get("more_body", False)
            return message

        async def send_with_headers(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", request_id.encode())]
                if not whole and message["status"] in (408, 413, 429, 503):
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        try:
            if announced.isdigit() and int(announced) > self.max_body_bytes:
                answer = problem(scope["path"], 413, body_too_large(self.max_body_bytes))
                await answer(scope, receive, send_with_headers)
                return
            await self.app(scope, receive_in_time, send_with_headers)
        except Exception as error:
            if status:  # too late to say anything: uvicorn logs it and closes the connection
                raise
            answer = problem(scope["path"], *describe(error))
            await answer(scope, receive, send_with_headers)
        finally:
            self._in_flight -= size
            if status:  # else the client left before there was an answer
                self.answered(getattr(scope.get("route"), "path", OTHER), status, perf_counter() - started)


def admin_guard(token: str | None, required: bool) -> Callable[..., Awaitable[None]]:
    """A route dependency that lets only the owner through.

    With a token: whoever sends it as bearer token; else 401. Without one: nobody if one is `required`, else requests
    from this machine to its own address; else 403.
    """

    async def guard(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if token:
            if not given or not secrets.compare_digest(given.credentials.encode(), token.encode()):
                detail = "changing the model needs the header Authorization: Bearer with the server's admin token"
                raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})
        elif required:
            detail = (
                "changing the model is off; set SUITE_ADMIN_TOKEN or SUITE_ADMIN_TOKEN_FILE and start the server again"
            )
            raise HTTPException(403, detail)
        elif not _comes_from_here(request):
            detail = "without SUITE_ADMIN_TOKEN the model can only be changed from this machine, by its own address"
            raise HTTPException(403, detail)

    return guard


def watch_guard(token: str | None) -> Callable[..., Awaitable[None]]:
    """A route dependency for what only operators should see: requests on this machine, or with the token; else 403."""

    async def guard(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        known = token and given and secrets.compare_digest(given.credentials.encode(), token.encode())
        if not known and not _comes_from_here(request):
            detail = "only for requests on this machine, or with the admin token in the header Authorization: Bearer"
            raise HTTPException(403, detail)

    return guard


def _comes_from_here(request):
    """A tunnel, a rebound name and another site's page in a browser here all come over loopback; none passes this."""
    headers, near = request.headers, request.client is not None and request.client.host in ("127.0.0.1", "::1")
    if not near or "x-forwarded-for" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return False
    host, origin = headers.get("host", ""), headers.get("origin")
    addresses = [host] if origin is None else [host, origin.removeprefix("http://")]
    own = [_OWN_ADDRESS.fullmatch(address) for address in addresses]
    return all(own) and own[0]["port"] == own[-1]["port"]
