"""What happened to a model, told to whoever asked: published, promoted, rolled back, drift.

An event is a JSON object in the structured mode of CloudEvents 1.0, posted to the URL in ``SUITE_WEBHOOK_URL``. With
``SUITE_WEBHOOK_SECRET`` the header ``X-Hub-Signature-256`` holds ``sha256=`` and the HMAC of the body, as GitHub's own
webhooks have it. With ``SUITE_DISPATCH_URL`` and ``SUITE_DISPATCH_TOKEN`` a drift also starts the workflows of a GitHub
repository that wait for a ``repository_dispatch`` of type ``drift``. Each is sent from a thread of its own, tried three
times, and never fails what it tells of: where it cannot be delivered, the log says so.
"""

import atexit
import hashlib
import hmac
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from helpers.workspace import secret

PUBLISHED, PROMOTED, ROLLED_BACK, DRIFT = KINDS = ("published", "promoted", "rolled-back", "drift")
URL, SECRET = "SUITE_WEBHOOK_URL", "SUITE_WEBHOOK_SECRET"
DISPATCH_URL, DISPATCH_TOKEN = "SUITE_DISPATCH_URL", "SUITE_DISPATCH_TOKEN"

TIMEOUT_S = 3.0
PAUSES_S = (0.5, 2.0)  # between the tries
LAST_S = 10.0  # that a process waits at its end for what is under way

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """What happened to `version` of the model `name`; `kind` is one of KINDS, `data` holds JSON values."""

    kind: str
    name: str
    version: str
    data: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """A new CloudEvent: its id and time are those of this call."""
        return {
            "specversion": "1.0",
            "id": uuid.uuid4().hex,
            "source": f"/models/{self.name}",
            "type": f"cifar100-suite.model.{self.kind}",
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "subject": self.version,
            "datacontenttype": "application/json",
            "data": dict(self.data),
        }


observers: list[Callable[[Event], None]] = []  # called in the thread of whoever announces; `monitoring.tracking` is one
_under_way: set[threading.Thread] = set()


def announce(kind: str, name: str, version: str, **data: Any) -> None:
    """Tells all observers and sends the event, if anybody asked for it; returns at once and raises nothing."""
    event = Event(kind, name, version, data)
    for observer in tuple(observers):
        try:
            observer(event)
        except Exception:
            log.exception("an observer did not take the event %s of version %s", kind, version)
    if any(os.environ.get(variable) for url in (URL, DISPATCH_URL) for variable in (url, f"{url}_FILE")):
        thread = threading.Thread(target=_send, args=(event,), name="event", daemon=True)
        if not _under_way:
            atexit.unregister(wait)
            atexit.register(wait)  # a command ends right after it promoted
        _under_way.add(thread)
        thread.start()


def wait(timeout: float = LAST_S) -> None:
    """Waits until what is under way was delivered or given up, at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for thread in tuple(_under_way):
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            log.warning("an event is given up, for this process ends")


def _send(event):
    try:
        value = event.as_dict()
        if url := secret(URL):
            body, headers = json.dumps(value).encode(), {"Content-Type": "application/cloudevents+json"}
            if key := secret(SECRET):
                headers["X-Hub-Signature-256"] = f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"
            _post(event, url, body, headers)
        if event.kind == DRIFT and (url := secret(DISPATCH_URL)):
            body = json.dumps({"event_type": DRIFT, "client_payload": {"event": value}}).encode()
            headers = {"Content-Type": "application/json", "Accept": "application/vnd.github+json"}
            _post(event, url, body, headers | {"Authorization": f"Bearer {secret(DISPATCH_TOKEN) or ''}"})
    except Exception:
        log.exception("the event %s of version %s could not be sent", event.kind, event.version)
    finally:
        _under_way.discard(threading.current_thread())


def _post(event, url, body, headers):
    host = urlsplit(url).hostname  # the rest of the URL may be a secret
    if urlsplit(url).scheme not in ("http", "https") or not host:
        log.error("%s and %s must be http:// or https:// with a host; no event is sent there", URL, DISPATCH_URL)
        return
    opener, problem = build_opener(_NoRedirect), ""
    for pause in (*PAUSES_S, None):
        try:
            with opener.open(Request(url, body, {"User-Agent": "cifar100-suite", **headers}), timeout=TIMEOUT_S):
                return
        except HTTPError as error:
            error.close()
            problem = f"it answered {error.code}"
            if error.code < 500 and error.code != 429:
                break  # it will not take it later either
        except (OSError, HTTPException) as error:
            problem = str(error) or type(error).__name__
        if pause is not None:
            time.sleep(pause)
    log.warning("event %s of version %s was not delivered to %s: %s", event.kind, event.version, host, problem)


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would turn the POST into a GET, and take the token elsewhere."""

    def redirect_request(self, *_):
        return None
