"""serving/request_id.py: no two requests have one name, in threads and after a fork."""

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor

from helpers.serving.request_id import new_request_id


def test_names_are_32_hexadecimal_digits_and_never_the_same():
    with ThreadPoolExecutor(8) as pool:
        names = [
            name for part in pool.map(lambda _: [new_request_id() for _ in range(2000)], range(8)) for name in part
        ]
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
    assert len(set(names)) == len(names)


def test_a_child_of_a_fork_has_names_of_its_own():
    new_request_id()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other threads run here; the child uses none
        child = os.fork()
    if child == 0:
        os.write(writing, new_request_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() != new_request_id()
