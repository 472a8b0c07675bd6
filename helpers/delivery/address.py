"""Where a service can be reached now, kept next to the alias that it serves: tunnels get another URL at each start."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from helpers.delivery.layout import NAME, Layout, RegistryError, check
from helpers.delivery.objects import ObjectNotFound, PreconditionFailed, Store
from helpers.delivery.versions import PRODUCTION

_URL = re.compile(r"https?://[^\s/?#@]+(?:/[^\s?#]*)?")


class UnknownAddress(RegistryError):
    """No service says where it is."""


@dataclass(frozen=True)
class Address:
    """A URL, when it was published (ISO 8601, UTC), and the generation of the object that says so."""

    url: str
    since: str
    generation: int


def find_address(store: Store, name: str, alias: str = PRODUCTION) -> Address:
    """Where the service is that serves `alias` of the model `name`.

    Raises:
        UnknownAddress: if none says so.
    """
    key = _key(name, alias)
    try:
        found = store.read(key)
    except ObjectNotFound:
        raise UnknownAddress(
            f"no service of {name!r} says in {store.url} where it is; start one with the third notebook"
        ) from None
    try:
        value = json.loads(found.data)
        url, since = value["url"], value["since"]
    except (ValueError, KeyError, TypeError):
        url = since = ""
    if not isinstance(url, str) or not _URL.fullmatch(url):
        raise UnknownAddress(f"{store.url}/{key} holds no address; remove it and start the service again")
    return Address(url, str(since), found.generation)


def publish_address(store: Store, url: str, name: str, alias: str = PRODUCTION) -> Address:
    """Says that the service is at `url`; of several the one that started last counts."""
    if not _URL.fullmatch(url):
        raise ValueError(f"url must be http:// or https:// with a host, got {url!r}")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    data = json.dumps({"url": url, "since": since}).encode()
    while True:
        try:
            generation = store.read(_key(name, alias)).generation
        except ObjectNotFound:
            generation = 0
        with suppress(PreconditionFailed):  # another one started at this moment: look again
            return Address(url, since, store.write(_key(name, alias), data, if_generation=generation))


def withdraw_address(store: Store, address: Address, name: str, alias: str = PRODUCTION) -> None:
    """Says no longer what `publish_address` said, unless another service has published its own since."""
    with suppress(PreconditionFailed, ObjectNotFound):
        store.delete(_key(name, alias), if_generation=address.generation)


@contextmanager
def published_address(store: Store, url: str, name: str, alias: str = PRODUCTION) -> Iterator[Address]:
    """`publish_address` while the block runs."""
    address = publish_address(store, url, name, alias)
    try:
        yield address
    finally:
        withdraw_address(store, address, name, alias)


def _key(name, alias):
    return Layout(name).key("addresses", f"{check('alias', NAME, alias)}.json")
