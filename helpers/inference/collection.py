"""Images to be scored: the files of a folder or under a prefix of a bucket, or the rows of an array on disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.data.images import SIZE, ImageTooLarge, decode_image
from helpers.delivery.storage import Store, open_store

MAX_BYTES = 16 * 2**20  # of a file; as much as the service takes in a request
PATIENCE_S = 20.0


class CollectionError(ValueError):
    """There is nothing to score; the message says what was looked for, and where."""


@dataclass(frozen=True)
class Item:
    """One image: its key under the url of the collection, and its size in bytes."""

    key: str
    size: int

    @property
    def path(self) -> str:
        """The key as text that any file can hold: a name need not be proper Unicode."""
        return self.key.encode("utf-8", "backslashreplace").decode()


class Files:
    """All files under `url` but hidden ones and links, whatever they are called.

    Args:
        url: see `delivery.storage.open_store`.
    """

    def __init__(self, url: str) -> None:
        self.store: Store = open_store(url, patience_s=PATIENCE_S)

    def items(self) -> list[Item]:
        """By key.

        Raises:
            CollectionError: if there are none.
            StorageUnavailable: if they cannot be listed.
        """
        found = [Item(info.key, info.size) for info in self.store.list()]
        if not found:
            raise CollectionError(f"there is no file in {self.store.url}; name a folder or a prefix that has some")
        return found

    def read(self, item: Item) -> np.ndarray:
        """The image, uint8 (32, 32, 3) RGB.

        Raises:
            ImageError: if it is none.
            StorageError, ValueError: if it cannot be read.
        """
        if item.size > MAX_BYTES:
            raise ImageTooLarge(f"the file has {item.size:,} bytes, at most {MAX_BYTES:,} are read")
        return decode_image(self.store.read(item.key).data)


class Array:
    """The images of a ``.npy`` file, uint8 (n, 32, 32, 3) RGB, which is mapped and not loaded.

    Raises:
        CollectionError: if the file is not there, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.images = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise CollectionError(f"{path} cannot be read as an array: {error}; write it with numpy.save") from error
        if self.images.dtype != np.uint8 or self.images.shape[1:] != (SIZE, SIZE, 3) or not len(self.images):
            raise CollectionError(
                f"{path} must hold uint8 (n, {SIZE}, {SIZE}, 3) images, got {self.images.dtype} {self.images.shape}"
            )

    def items(self) -> list[Item]:
        """By number, from 0."""
        return [Item(str(index), self.images[0].nbytes) for index in range(len(self.images))]

    def read(self, item: Item) -> np.ndarray:
        """The image, uint8 (32, 32, 3) RGB."""
        return np.array(self.images[int(item.key)])


def open_collection(source: str) -> Files | Array:
    """What `source` names: an array if it ends with ``.npy``, else a folder or the url of a bucket or a prefix in it.

    Raises:
        CollectionError: as `Array`.
        ValueError: if it is no url that there can be.
    """
    return Array(Path(source)) if source.endswith(".npy") else Files(source)
