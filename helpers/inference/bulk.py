"""Scores any number of images in batches: while one batch is in the engine, the next are read and decoded."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa

from helpers.data.images import ImageError
from helpers.delivery.storage import StorageError, StorageUnavailable
from helpers.inference.collection import Array, Files, Item
from helpers.inference.loader import LoadedModel

BATCH = 64  # images
AHEAD = 2  # batches
READERS = 4  # threads; each may need 200 MB for the largest image that is decoded

SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # under the folder or prefix; of an array the number
        ("class", pa.string()),
        ("probability", pa.float32()),  # of that class
        ("top", pa.map_(pa.string(), pa.float32())),  # the most probable classes, the first one first
        ("version", pa.string()),  # of the model
        ("error", pa.string()),  # why there is no class
    ]
)


def score(
    collection: Files | Array, items: Iterable[Item], model: LoadedModel, top_k: int = 5
) -> Iterator[pa.RecordBatch]:
    """A row of `SCHEMA` for each of `items`, in their order; what is no image has an error and no class.

    Memory does not grow with their number: three batches are held at most.

    Raises:
        StorageUnavailable: if of a whole batch nothing can be read: then it is not the images.
        ModelRejected: if the model fails.
    """
    ahead: deque[list[tuple[Item, Future]]] = deque()
    pool = ThreadPoolExecutor(READERS, "reader")
    try:
        rest = iter(items)
        while batch := list(islice(rest, BATCH)):
            ahead.append([(item, pool.submit(collection.read, item)) for item in batch])
            if len(ahead) > AHEAD:
                yield _answer(ahead.popleft(), model, top_k)
        while ahead:
            yield _answer(ahead.popleft(), model, top_k)
    finally:
        pool.shutdown(cancel_futures=True)  # what nobody will ask for is not read


def _answer(batch, model, top_k):
    rows, images, errors = [], [], []
    for item, future in batch:
        rows.append({"path": item.path, "version": model.version, "error": None})
        try:
            images.append(future.result())
        except (ImageError, StorageError, ValueError) as error:
            rows[-1]["error"] = " ".join(str(error).split())
            errors.append(error)
    if len(errors) == BATCH and all(isinstance(error, StorageUnavailable) for error in errors):
        raise errors[-1]
    if images:
        probabilities = model.predict(np.stack(images)).probabilities
        good = [row for row in rows if row["error"] is None]
        for row, values in zip(good, probabilities, strict=True):
            order = np.argsort(-values, kind="stable")[:top_k]
            top = [(model.labels.fine[index], float(values[index])) for index in order]
            row |= {"class": top[0][0], "probability": top[0][1], "top": top}
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
