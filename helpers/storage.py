"""One contract for object stores, and two that keep it: a folder (``file://``) and Google Cloud Storage (``gs://``).

Every state of an object has a generation, a number that only grows. Writes and deletions name the generation that they
replace, so of two rivals exactly one wins and the other is told. Readers see the old bytes or the new, never a mix.
"""

import fcntl
import os
import re
import stat
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

MAX_KEY_BYTES = 1024
_KEY = re.compile(r"[^./\\][^/\\]*(?:/[^./\\][^/\\]*)*")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", re.DOTALL)
_REQUEST_S = (5.0, 60.0)  # to connect, and between two reads


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


def open_store(url: str, *, patience_s: float = 60.0) -> Store:
    """The store at ``gs://bucket[/prefix]``, ``file:///absolute/path`` or a path; not touched before its first use.

    `patience_s` bounds the retries of one ``gs://`` operation (429, 5xx, lost connections) before StorageUnavailable.
    """
    if match := _BUCKET.fullmatch(url):
        return GoogleStore(match[1], check_key(match[2].rstrip("/")) if match[2] else "", patience_s)
    path = unquote(url.removeprefix("file://")) if url.startswith("file:///") else url
    if not path or "\0" in path or re.match(r"[\w+.-]+:", path):
        raise ValueError(f"bucket must be gs://bucket[/prefix], file:///absolute/path or a path, got {url!r}")
    return FileStore(Path(path))


def check_key(key: str) -> str:
    """`key` itself; ValueError if no store may have it."""
    if not _KEY.fullmatch(key) or _UNSAFE.search(key) or len(key.encode()) > MAX_KEY_BYTES:
        raise ValueError(
            "key must be parts joined by '/', none empty, none starting with a dot, no control characters, no "
            f"backslashes, at most {MAX_KEY_BYTES} bytes; got {key if len(key) < 200 else key[:200] + '...'!r}"
        )
    return key


class FileStore(Store):
    """A folder whose files lie at their keys, as in a bucket; copy it with its times (``cp -a``).

    A generation is the file's modification time in microseconds, set before the file is renamed into place: bytes and
    generation change in one atomic step. A lock file puts the writers of all threads and processes in order.
    """

    def __init__(self, root: Path):
        self._root = root.expanduser().resolve()
        self.url = self._root.as_uri()

    def read(self, key):
        with self._errors(key, "read"):
            try:
                with self._path(key).open("rb") as file:  # the name may pass to a newer file, the open file stays
                    return Object(file.read(), _generation(os.fstat(file.fileno())))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise self._absent(key) from None

    def write(self, key, data, *, if_generation):
        path, temporary = self._path(key), self._root / f".write-{uuid.uuid4().hex}"
        with self._errors(key, "write"):
            self._root.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                with self._locked() as lock:
                    current = self._require(key, path, if_generation)
                    # The clock may step back, and a deleted object's generation must not return.
                    generation = max(time.time_ns() // 1000, int(os.pread(lock, 20, 0) or 0) + 1, current + 1)
                    os.pwrite(lock, b"%020d" % generation, 0)
                    os.utime(temporary, ns=(generation * 1000, generation * 1000))
                    if _generation(temporary.stat()) != generation:
                        raise StorageUnavailable(
                            f"{self.url}: this file system rounds file times; choose another folder"
                        )
                    changed = 1 if path.parent.is_dir() else key.count("/") + 1  # folders with a new name in them
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, path)
                    for folder in path.parents[:changed]:
                        _sync(folder)
            finally:
                temporary.unlink(missing_ok=True)
        return generation

    def list(self, prefix=""):
        folder, found = _prefix_folder(prefix), []
        with self._errors(prefix, "list"):
            for path in (self._path(folder) if folder else self._root).rglob("*"):
                key = path.relative_to(self._root).as_posix()
                if key.startswith(prefix) and "/." not in f"/{key}":
                    with suppress(FileNotFoundError):  # deleted since the folder was read
                        status = path.lstat()
                        if stat.S_ISREG(status.st_mode):
                            found.append(ObjectInfo(key, status.st_size, _generation(status)))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key, *, if_generation):
        path = self._path(key)
        with self._errors(key, "delete"):
            if not path.is_file():
                raise self._absent(key)
            with self._locked():
                if not self._require(key, path, if_generation):
                    raise self._absent(key)
                path.unlink()
                _sync(path.parent)

    def _path(self, key):
        path = self._root / check_key(key)
        if path.resolve() != path:
            raise ValueError(f"key must not lead through a symbolic link, got {key!r} in {self.url}")
        return path

    def _require(self, key, path, expected):
        current = _generation(path.stat()) if path.is_file() else 0
        if expected is not None and expected != current:
            raise self._conflict(key, expected)
        return current

    @contextmanager
    def _locked(self):
        lock = os.open(self._root / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)

    @contextmanager
    def _errors(self, key, verb):
        try:
            yield
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise ValueError(
                f"key must not be an object and a folder at once in a file:// store, got {key!r}"
            ) from error
        except OSError as error:
            raise StorageUnavailable(
                f"cannot {verb} {self.url}/{key}: {error.strerror}; check the folder and its disk"
            ) from error


class GoogleStore(Store):
    """A bucket of Google Cloud Storage, or what lies under a prefix of it, with the application default credentials.

    ``STORAGE_EMULATOR_HOST`` names another endpoint, which is used without credentials.
    """

    def __init__(self, bucket: str, prefix: str, patience_s: float):
        self.url = f"gs://{bucket}/{prefix}".rstrip("/")
        self._bucket_name, self._prefix, self._patience_s = bucket, f"{prefix}/" if prefix else "", patience_s
        self._client, self._lock = None, threading.Lock()

    def read(self, key):
        check_key(key)
        with self._calls(key, "read") as (bucket, retry):
            blob = bucket.blob(self._prefix + key)
            # Retried as a whole: the library's own retry resumes a cut download and then compares no checksum.
            download = retry(blob.download_as_bytes)
            data = download(raw_download=True, checksum="crc32c", timeout=_REQUEST_S, retry=None)
            return Object(data, int(blob.generation))

    def write(self, key, data, *, if_generation):
        check_key(key)
        attempt = uuid.uuid4().hex
        try:
            with self._calls(key, "write", if_generation) as (bucket, retry):
                blob = bucket.blob(self._prefix + key)  # a fresh one: a used blob is pinned to its generation
                blob.metadata = {"attempt": attempt}
                blob.upload_from_string(
                    data, if_generation_match=if_generation, checksum="crc32c", timeout=_REQUEST_S, retry=retry
                )
        except PreconditionFailed:
            # Where the reply to the first try was lost, the retry meets our own object.
            with self._calls(key, "read") as (bucket, retry):
                blob = bucket.get_blob(self._prefix + key, timeout=_REQUEST_S, retry=retry)
            if blob is None or (blob.metadata or {}).get("attempt") != attempt:
                raise
        return int(blob.generation)

    def list(self, prefix=""):
        _prefix_folder(prefix)
        with self._calls(prefix, "list") as (bucket, retry):
            fields = "items(name,size,generation),nextPageToken"
            pages = bucket.list_blobs(prefix=self._prefix + prefix, fields=fields, timeout=_REQUEST_S, retry=retry)
            blobs = [*pages]
        found = [ObjectInfo(blob.name.removeprefix(self._prefix), blob.size, int(blob.generation)) for blob in blobs]
        return sorted((info for info in found if not info.key.endswith("/")), key=lambda info: info.key)

    def delete(self, key, *, if_generation):
        check_key(key)
        retried = []
        try:
            with self._calls(key, "delete", if_generation) as (bucket, retry):
                delete = retry(bucket.blob(self._prefix + key).delete, on_error=retried.append)
                delete(if_generation_match=if_generation, timeout=_REQUEST_S, retry=None)
        except ObjectNotFound:
            if not retried:  # otherwise our own first try removed it, and its reply was lost
                raise

    def close(self):
        with self._lock:
            client, self._client = self._client, None
        if client:
            client.close()

    @contextmanager
    def _calls(self, key, verb, expected=None):
        """The bucket and how to retry a call; raises the library's errors as this module's."""
        from google.api_core import exceptions as api
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud import storage
        from google.cloud.storage.exceptions import DataCorruption
        from google.cloud.storage.retry import DEFAULT_RETRY
        from requests import RequestException
        from urllib3.exceptions import HTTPError

        problem = f"cannot {verb} {self.url}/{key}"
        retry = DEFAULT_RETRY.with_delay(initial=0.1, maximum=8, multiplier=2).with_timeout(self._patience_s)
        try:
            with self._lock:
                self._client = self._client or storage.Client(project=None)
                bucket = self._client.bucket(self._bucket_name)
            yield bucket, retry
        except api.PreconditionFailed:
            raise self._conflict(key, expected) from None
        except api.NotFound as error:
            if verb in ("write", "list") or "bucket does not exist" in error.message:
                raise StorageUnavailable(
                    f"{problem}: there is no bucket {self._bucket_name!r}; check its name"
                ) from error
            raise self._absent(key) from None
        except DefaultCredentialsError as error:
            raise StorageUnavailable(
                f"{problem}: no Google credentials; run `gcloud auth application-default login`, or set "
                "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
            ) from error
        except (api.Forbidden, api.Unauthorized, GoogleAuthError) as error:
            raise StorageUnavailable(f"{problem}: access refused; check the rights of this account: {error}") from error
        except (api.GoogleAPIError, RequestException, HTTPError, DataCorruption, ConnectionError) as error:
            raise StorageUnavailable(f"{problem}: {error}; check the network and try again") from error


def _prefix_folder(prefix):
    folder, slash, start = prefix.rpartition("/")
    if _UNSAFE.search(start) or "\\" in start:
        raise ValueError(f"prefix must have no control characters and no backslashes, got {prefix!r}")
    return check_key(folder) if slash else ""


def _generation(status):
    return max(status.st_mtime_ns // 1000, 1)  # 0 is kept for what does not exist


def _sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
