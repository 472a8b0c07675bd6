"""Python's collector of circles while a server serves."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000  # between walks: requests leave no circles, and a walk stops all threads for milliseconds


@contextmanager
def seldom_collected() -> Iterator[None]:
    """While the block runs the collector walks seldom, and never over what is there at its beginning."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
