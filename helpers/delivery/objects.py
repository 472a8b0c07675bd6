"""The contract of object stores: keys, objects, generations, and what can go wrong.

Every state of an object has a generation, a number that only grows. Writes and deletions name the generation that they
replace, so of two rivals exactly one wins and the other is told. Readers see the old bytes or the new, never a mix.
"""

import re
from dataclasses import dataclass
from typing import Protocol

MAX_KEY_BYTES = 1024
_KEY = re.compile(r"[^./\\][^/\\]*(?:/[^./\\][^/\\]*)*")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class StorageError(Exception):
    """What the store could not do, and what to do about it."""


class ObjectNotFound(StorageError):
    """No object has this key."""


class PreconditionFailed(StorageError):
    """The object is not at the generation that the caller named; nothing was changed."""


class StorageUnavailable(StorageError):
    """Out of reach, refused, full, or damaged on the way. What was to be written may have been: read to know."""


@dataclass(frozen=True)
class Object:
    """The bytes of an object and the generation that they belong to."""

    data: bytes
    generation: int


@dataclass(frozen=True)
class ObjectInfo:
    """An object as listed; size in bytes."""

    key: str
    size: int
    generation: int


class Store(Protocol):
    """Objects under keys like ``models/vgg16/aliases/production.json``; safe to share between threads.

    A key has at most 1024 bytes in parts joined by ``/``, none empty, none starting with a dot, without control
    characters and backslashes: ValueError otherwise. The methods raise ObjectNotFound, PreconditionFailed where the
    object is not at `if_generation`, and StorageUnavailable.
    """

    url: str

    def read(self, key: str) -> Object:
        """The object at `key`."""

    def write(self, key: str, data: bytes, *, if_generation: int | None) -> int:
        """Puts `data` at `key`, which must be at `if_generation` (0: absent; None: whatever); the new generation."""

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """The objects whose keys start with `prefix`, sorted by key."""

    def delete(self, key: str, *, if_generation: int | None) -> None:
        """Removes the object at `key`, which must be at `if_generation` (None: whatever)."""

    def close(self) -> None:
        """Gives connections back; using the store again opens new ones."""

    def _absent(self, key):
        return ObjectNotFound(f"{self.url} holds no object {key!r}")

    def _conflict(self, key, expected):
        rule = "exists already" if expected == 0 else f"is no longer at generation {expected}"
        return PreconditionFailed(f"{self.url}/{key} {rule}: another writer came first; read it and decide again")


def check_key(key: str) -> str:
    """`key` itself; ValueError if no store may have it."""
    if not _KEY.fullmatch(key) or _UNSAFE.search(key) or len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(
            "key must be parts joined by '/', none empty, none starting with a dot, no control characters, no "
            f"backslashes, at most {MAX_KEY_BYTES} bytes; got {key if len(key) < 200 else key[:200] + '...'!r}"
        )
    return key


def prefix_folder(prefix: str) -> str:
    """The folder of keys that `prefix` leads into, "" for all; ValueError if no key can start so."""
    folder, slash, start = prefix.rpartition("/")
    if _UNSAFE.search(start) or "\\" in start:
        raise ValueError(f"prefix must have no control characters and no backslashes, got {prefix!r}")
    return check_key(folder) if slash else ""
