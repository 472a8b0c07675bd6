"""Local copies of published bundles: fetched once, verified at every use, fetched again where they are damaged."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from helpers.delivery.bundle import FILES, MANIFEST, OPTIONAL, SIGNATURE, Bundle, BundleError, read_bundle
from helpers.delivery.objects import ObjectNotFound, StorageUnavailable, Store


def keep_copy(target: Path, fetch: Callable[[Path], object]) -> Path:
    """`target` itself, a folder named after its version, with a verified bundle in it.

    Args:
        fetch: called with a folder to fill, at most twice, where `target` is not there or damaged.

    Raises:
        BundleError: if what was fetched is damaged both times; it is not kept.
        StorageUnavailable: if the copy cannot be written.
    """
    if _is_valid(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target.parent / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time fills the cache of a model
            if not _is_valid(target):
                _refresh(target, fetch)
    except OSError as error:
        what = f"cannot keep {target.name} in {target.parent.parent}: {error.strerror}"
        raise StorageUnavailable(f"{what}; make room or choose another folder") from error
    return target


def fetch_bundle(store: Store, prefix: str, folder: Path) -> Bundle:
    """The bundle whose files lie under `prefix` in `store`, read into the new `folder` and verified.

    Raises:
        BundleError: in the words of `delivery.bundle.read_bundle`, with the place in the store.
    """
    folder.mkdir()
    for file in (MANIFEST, SIGNATURE, *FILES, *OPTIONAL):
        try:
            (folder / file).write_bytes(store.read(f"{prefix}/{file}").data)
        except ObjectNotFound:
            continue  # read_bundle names what is missing, and whether a signature is asked for
    try:
        return read_bundle(folder)
    except BundleError as error:
        raise type(error)(str(error).replace(str(folder), f"{store.url}/{prefix}")) from error


def _refresh(target, fetch):
    for leftover in target.parent.glob(".download-*"):  # of a process that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
        folder = Path(scratch, "first")
        try:
            fetch(folder)
        except BundleError:
            folder = Path(scratch, "second")
            fetch(folder)
        if target.exists():
            os.rename(target, Path(scratch, "damaged"))
        os.rename(folder, target)


def _is_valid(folder):
    try:
        return read_bundle(folder).version == folder.name
    except BundleError:
        return False
