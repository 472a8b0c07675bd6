"""Reads the CIFAR-100 "python version" without trusting it: a gzipped tar of pickles from the internet.

Nothing is unpacked to disk: three members are read by name, so no path in the archive is ever used. The pickles may
build NumPy arrays and plain containers, nothing else.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NAME = "cifar-100-python"
MEMBERS = {"train": 50_000, "test": 10_000, "meta": None}  # number of images
MAX_BYTES = 256 * 2**20  # of one file, and of the whole archive unpacked; the real one has 186 MB

_ARRAY_BUILDERS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how Python 3 writes bytes for protocol 2
}


class DatasetError(ValueError):
    """Data that is missing, damaged, or not what it should be; the message says which, and what to do."""


@dataclass(frozen=True)
class RawSplit:
    """One split as stored: pixels uint8 (n, 3072), channel first; labels int64 (n,)."""

    pixels: np.ndarray
    fine: np.ndarray
    coarse: np.ndarray


def read_archive(folder: Path) -> tuple[RawSplit, RawSplit, tuple[str, ...], tuple[str, ...]]:
    """Train split, test split, class names and superclass names from `folder`.

    `folder` holds ``cifar-100-python.tar.gz``, or the extracted ``cifar-100-python/``, or is that folder itself.

    Raises:
        DatasetError: for anything absent, damaged, or of the wrong keys, shapes, types or ranges.
    """
    members = read_members(Path(folder))
    meta = _unpickle(members["meta"], "meta", ("fine_label_names", "coarse_label_names"))
    names = [_names(meta[key], key, count) for key, count in (("fine_label_names", 100), ("coarse_label_names", 20))]
    return _split(members["train"], "train"), _split(members["test"], "test"), *names


def read_members(folder: Path) -> dict[str, bytes]:
    """The bytes of the files train, test and meta in `folder` (see `read_archive`), not looked into yet."""
    archive, extracted = folder / f"{NAME}.tar.gz", folder / NAME
    for directory in (extracted, folder):
        if all((directory / name).is_file() for name in MEMBERS):
            return {
                name: _bounded(directory / name, (directory / name).stat().st_size).read_bytes() for name in MEMBERS
            }
    if not archive.is_file():
        raise DatasetError(
            f"{folder} holds neither {archive.name} nor {NAME}/ with the files {', '.join(MEMBERS)}; "
            "put the CIFAR-100 python version there, or point CIFAR100_DIR to the folder that holds it"
        )
    members = {}
    try:
        with gzip.open(archive) as file:
            unpacked = file.read(MAX_BYTES + 1)  # bounded here: a tar's long names and headers have sizes of their own
        _bounded(f"{archive}, unpacked,", len(unpacked))
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for entry in tar:
                folder_name, _, name = entry.name.removeprefix("./").rpartition("/")
                if folder_name == NAME and name in MEMBERS and entry.isfile():
                    _bounded(f"{archive}:{entry.name}", entry.size)
                    members[name] = tar.extractfile(entry).read()
    except DatasetError:
        raise
    except (tarfile.TarError, EOFError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise DatasetError(f"{archive} is damaged or incomplete ({error}); delete it and get it again") from error
    if absent := MEMBERS.keys() - members.keys():
        raise DatasetError(
            f"{archive} does not hold {NAME}/{sorted(absent)[0]}; it is not the CIFAR-100 python version"
        )
    return members


def _bounded(what, size):
    if size > MAX_BYTES:
        raise DatasetError(f"{what} has {size} bytes or more; nothing in CIFAR-100 has more than {MAX_BYTES}")
    return what


def _split(data, name):
    raw = _unpickle(data, name, ("data", "fine_labels", "coarse_labels"))
    count, pixels = MEMBERS[name], raw[b"data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (count, 3072):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DatasetError(f"{name}: data must be uint8 ({count}, 3072), got {got}")
    return RawSplit(
        pixels, _labels(raw, name, "fine_labels", count, 100), _labels(raw, name, "coarse_labels", count, 20)
    )


def _labels(raw, name, key, count, classes):
    values = raw[key.encode()]
    if not isinstance(values, list) or len(values) != count or not all(type(value) is int for value in values):
        raise DatasetError(f"{name}: {key} must be a list of {count} integers")
    labels = np.array(values)
    if labels.min() < 0 or labels.max() >= classes:
        raise DatasetError(f"{name}: {key} must be from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    return labels


def _names(values, key, count):
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, bytes) for value in values):
        raise DatasetError(f"meta: {key} must be a list of {count} names")
    return tuple(value.decode("ascii", "replace") for value in values)


def _unpickle(data, name, keys):
    try:
        value = _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DatasetError:
        raise
    except Exception as error:
        raise DatasetError(
            f"{name} is not a readable CIFAR-100 pickle ({type(error).__name__}: {error}); get it again"
        ) from error
    if not isinstance(value, dict) or (absent := [key for key in keys if key.encode() not in value]):
        wanted = ", ".join(keys)
        raise DatasetError(
            f"{name} must be a dict with {wanted}; {absent[0] if isinstance(value, dict) else 'it is none'} is missing"
        )
    return {key: value[key] for key in value} | {key: value[key.encode()] for key in keys}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        module = module.replace("numpy.core", "numpy._core")  # where NumPy 1 kept it
        if (module, name) not in _ARRAY_BUILDERS:
            raise DatasetError(
                f"the pickle asks for {module}.{name}, which CIFAR-100 does not need; do not trust this file"
            )
        return super().find_class(module, name)
