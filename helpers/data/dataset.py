"""CIFAR-100 from wherever it can be had, checked, in one order; or the drawn stand-in, which says so."""

import http.client
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from helpers.data.archive import NAME, DatasetError, read_archive, read_members
from helpers.data.labels import Labels
from helpers.data.synthetic import draw_images, synthetic_labels

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
FINGERPRINT = "fcbf38e81f9cd39c183805d81376dc2dd89a9fd8792c5242910d02a8a492b412"  # of the 60,000 images
SOURCES = ("auto", "cifar100", "synthetic")
CONNECT_SECONDS = 5


@dataclass(frozen=True)
class Split:
    """Images, uint8 (n, 32, 32, 3) RGB, and labels, int64 (n,), class indices."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.labels)

    def take(self, indices) -> "Split":
        """The images and labels at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """Both splits, the names, and where it all came from.

    Attributes:
        source: "CIFAR-100" or "synthetic", and from where.
        fingerprint: SHA-256 over the sorted digests of all images and labels; the same however they were packed.
        synthetic: whether this is the stand-in.
    """

    train: Split
    test: Split
    labels: Labels
    source: str
    fingerprint: str
    synthetic: bool

    @property
    def title(self) -> str:
        """What figures and reports call this data."""
        return "synthetic stand-in, not CIFAR-100" if self.synthetic else "CIFAR-100"

    def provenance(self) -> dict:
        """Source, fingerprint and whether synthetic, as receipts and manifests keep it."""
        return {"source": self.source, "fingerprint": self.fingerprint, "synthetic": self.synthetic}


def load_dataset(data: str = "auto", seed: int = 0) -> Dataset:
    """CIFAR-100, or its stand-in.

    Args:
        data: "cifar100" must find the real data; "synthetic" draws the stand-in; "auto" takes the real data where it
            can be had and else draws the stand-in. A ``CIFAR100_DIR`` that does not hold CIFAR-100 is always an error.
        seed: of the stand-in.

    The real data is looked for in the folder that ``CIFAR100_DIR`` names, in Keras' cache, and at its official
    address, in this order. Images come sorted by digest, so that index i is the same image however they were packed.

    Raises:
        DatasetError: if the data cannot be had, or is not CIFAR-100.
    """
    if data not in SOURCES:
        raise DatasetError(f"data must be one of {', '.join(SOURCES)}, got {data!r}")
    if data == "synthetic":
        return draw_dataset(seed)
    if folder := os.environ.get("CIFAR100_DIR"):
        return read_cifar100(Path(folder), "CIFAR100_DIR")
    cache = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets"
    for found in (*cache.glob(f"**/{NAME}/meta"), *cache.glob(f"{NAME}.tar.gz")):  # the depth differs by Keras version
        return read_cifar100(found.parent, "the Keras cache")
    try:
        download_cifar100(cache)
    except OSError as error:
        if data == "auto":
            drawn = draw_dataset(seed)
            return replace(drawn, source=f"{drawn.source}, since CIFAR-100 could not be had from {URL} ({error})")
        raise DatasetError(
            f"CIFAR-100 could not be had from {URL} ({error}). Put cifar-100-python.tar.gz into a folder and set "
            "CIFAR100_DIR to that folder, or run with data=synthetic for the drawn stand-in"
        ) from error
    return read_cifar100(cache, URL)


def read_cifar100(folder: Path, source: str) -> Dataset:
    """CIFAR-100 from `folder` (see `data.archive.read_archive`), proven to be it by its fingerprint."""
    raw_train, raw_test, fine, superclasses = read_archive(folder)
    train, test = _sorted_by_digest(raw_train), _sorted_by_digest(raw_test)
    fingerprint = _fingerprint(train[1], test[1])
    if fingerprint != FINGERPRINT:
        raise DatasetError(f"{folder} is not CIFAR-100: its content has fingerprint {fingerprint}, not {FINGERPRINT}")
    superclass_of = np.zeros(len(fine), int)
    superclass_of[raw_train.fine] = raw_train.coarse
    labels = Labels(fine, superclasses, tuple(superclass_of.tolist()))
    return Dataset(train[0], test[0], labels, f"CIFAR-100 from {source}", fingerprint, synthetic=False)


def draw_dataset(seed: int = 0, train_per_class: int = 100, test_per_class: int = 20) -> Dataset:
    """The drawn stand-in, see `data.synthetic`."""
    labels = synthetic_labels()
    classes = np.arange(len(labels.fine))
    splits = []
    for offset, count in enumerate((train_per_class, test_per_class)):
        targets = np.tile(classes, count)
        splits.append(Split(draw_images(targets, seed=2 * seed + offset), targets))
    superclass_of = np.array(labels.superclass_of)
    digests = [_digests(split.images, split.labels, superclass_of[split.labels]) for split in splits]
    return Dataset(*splits, labels, f"synthetic, seed {seed}", _fingerprint(*digests), synthetic=True)


def download_cifar100(folder: Path) -> None:
    """Downloads the official archive into `folder`; a partial download leaves nothing there.

    Raises:
        OSError: if the address cannot be reached within `CONNECT_SECONDS`, or the connection breaks.
    """
    from tqdm.auto import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(URL, timeout=CONNECT_SECONDS) as reply,
            tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch,
        ):
            size = int(reply.headers.get("Content-Length") or 0)
            with (
                open(Path(scratch) / f"{NAME}.tar.gz", "wb") as file,
                tqdm.wrapattr(reply, "read", total=size, desc="CIFAR-100", leave=False) as source,
            ):
                shutil.copyfileobj(source, file, 2**20)
                if size and file.tell() != size:
                    raise urllib.error.ContentTooShortError(f"got {file.tell()} of {size} bytes", None)
            read_members(Path(scratch))  # a captive portal, too, answers every address
            os.replace(file.name, folder / f"{NAME}.tar.gz")  # no link: not every file system has them
    except http.client.HTTPException as error:  # which is no OSError: what answers does not speak HTTP, or stopped
        raise urllib.error.URLError(f"{type(error).__name__}: {str(error).strip()}") from error
    except DatasetError as error:
        raise urllib.error.URLError(f"what it sent is not CIFAR-100: {error}") from error


def split_validation(split: Split, per_class: int | None = None, seed: int = 0) -> tuple[Split, Split]:
    """Training and validation parts of `split`: `per_class` random images of each class are held out.

    By default 50, and a fifth of the smallest class where that is fewer; with CIFAR-100 the parts are 45,000 and 5,000
    images. The same for the same seed.
    """
    counts = np.bincount(split.labels)
    if per_class is None:
        per_class = min(50, counts.min() // 5)
    if not 0 < per_class < counts.min():
        raise ValueError(f"per_class must be from 1 to {counts.min() - 1}, got {per_class}")
    held_out = choose_per_class(split.labels, per_class, seed)
    return split.take(np.setdiff1d(np.arange(len(split)), held_out)), split.take(held_out)


def choose_per_class(labels: np.ndarray, per_class: int, seed: int = 0) -> np.ndarray:
    """Sorted indices of up to `per_class` random examples of each class in `labels` (n,)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[rank < per_class])


def _sorted_by_digest(raw):
    digests = _digests(raw.pixels, raw.fine, raw.coarse)
    order = sorted(range(len(digests)), key=digests.__getitem__)
    images = raw.pixels[order].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), raw.fine[order]), [digests[index] for index in order]


def _digests(pixels, fine, coarse):
    rows, pairs = pixels.reshape(len(pixels), -1), np.stack([fine, coarse], axis=1).astype(np.uint8)
    return [sha256(row.tobytes() + pair.tobytes()).digest() for row, pair in zip(rows, pairs, strict=True)]


def _fingerprint(*splits):
    whole = sha256()
    for digests in splits:
        whole.update(sha256(b"".join(sorted(digests))).digest())
    return whole.hexdigest()
