"""Two object stores under one contract (`delivery.objects`): a folder (``file://``) and Google Cloud Storage (``gs://``)."""

import fcntl
import os
import re
import stat
import time
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

from helpers.delivery.google_store import GoogleStore
from helpers.delivery.objects import (
    Object,
    ObjectInfo,
    ObjectNotFound,
    PreconditionFailed,
    StorageError,
    StorageUnavailable,
    Store,
    check_key,
    prefix_folder,
)

__all__ = [
    "FileStore",
    "Object",
    "ObjectInfo",
    "ObjectNotFound",
    "PreconditionFailed",
    "StorageError",
    "StorageUnavailable",
    "Store",
    "open_store",
]

_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?", re.DOTALL)


def open_store(url: str, *, patience_s: float = 60.0) -> Store:
    """The store at ``gs://bucket[/prefix]``, ``file:///absolute/path`` or a path; not touched before its first use.

    `patience_s` bounds the retries of one ``gs://`` operation (429, 5xx, lost connections) before StorageUnavailable.
    It bounds the wait for each answer too, so that what hangs is given up after twice as long at most.
    """
    if match := _BUCKET.fullmatch(url):
        return GoogleStore(match[1], check_key(match[2].rstrip("/")) if match[2] else "", patience_s)
    path = unquote(url.removeprefix("file://")) if url.startswith("file:///") else url
    if not path or "\0" in path or re.match(r"[\w+.-]+:", path):
        raise ValueError(f"bucket must be gs://bucket[/prefix], file:///absolute/path or a path, got {url!r}")
    return FileStore(Path(path))


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
        folder, found = prefix_folder(prefix), []
        with self._errors(prefix, "list"):
            for place, folders, files in os.walk(self._path(folder) if folder else self._root, onerror=_unlisted):
                keys = Path(place).relative_to(self._root)
                folders[:] = [name for name in folders if _matches((keys / name).as_posix(), prefix)]
                for key in ((keys / name).as_posix() for name in files):
                    if _matches(key, prefix):
                        with suppress(FileNotFoundError):  # deleted since the folder was read
                            status = (self._root / key).lstat()
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
            if self._root.exists() and not self._root.is_dir():
                raise StorageUnavailable(f"{self.url} is a file, not a folder; name a folder")
            yield
        except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise ValueError(
                f"key must not be an object and a folder at once in a file:// store, got {key!r}"
            ) from error
        except OSError as error:
            raise StorageUnavailable(
                f"cannot {verb} {self.url}/{key}: {error.strerror}; check the folder and its disk"
            ) from error


def _matches(key, prefix):
    return key.startswith(prefix) and "/." not in f"/{key}"


def _unlisted(error):
    """Passes over a folder that is no longer there; one that cannot be read must not look empty."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageUnavailable(
            f"cannot list {error.filename}: {error.strerror}; check the folder and its disk"
        ) from error


def _generation(status):
    return max(status.st_mtime_ns // 1000, 1)  # 0 is kept for what does not exist


def _sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
