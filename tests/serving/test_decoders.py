"""serving/decoders.py: small images do not wait for large ones, and what goes wrong is whoever asked's."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest
from held_model import wait_until

from helpers.data.images import MAX_PIXELS, ImageTooLarge
from helpers.serving.decoders import QUICK_PIXELS, Decoders

IMAGE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture
def decoders():
    decoders = Decoders()
    with decoders.running():
        yield decoders


def submit(image, future):
    future.set_result((image, threading.current_thread().name))
    return future


def small(max_pixels):
    return IMAGE


def large(max_pixels):
    if max_pixels < MAX_PIXELS:
        raise ImageTooLarge("not here")
    return IMAGE


def test_small_images_are_decoded_in_one_thread_and_large_ones_in_others(decoders):
    futures = [Future() for _ in range(4)]
    for future, decode in zip(futures, (small, large) * 2, strict=True):
        decoders.put(decode, submit, future, quick=True)
    threads = [future.result(5)[1] for future in futures]
    assert threads[0] == threads[2] == "decoder"
    assert all(thread.startswith("patient decoder") for thread in threads[1::2])


def test_small_images_pass_large_ones(decoders):
    gate, slow, quick = threading.Event(), [Future() for _ in range(5)], Future()

    def held(max_pixels):
        large(max_pixels)
        assert gate.wait(5)
        return IMAGE

    for future in slow:
        decoders.put(held, submit, future, quick=True)
    decoders.put(small, submit, quick, quick=True)
    assert quick.result(5)[0] is IMAGE
    assert decoders.waiting == 5
    gate.set()
    assert [future.result(5)[0] is IMAGE for future in slow] == [True] * 5
    wait_until(lambda: decoders.waiting == 0)


def test_the_limit_is_that_of_the_thread(decoders):
    limits = []
    for quick in (True, False):
        decoders.put(lambda most: limits.append(most) or IMAGE, submit, future := Future(), quick=quick)
        future.result(5)
    assert limits == [QUICK_PIXELS, MAX_PIXELS]


@pytest.mark.parametrize("quick", [True, False])
def test_what_decoding_or_submitting_raises_becomes_the_futures(decoders, quick):
    def fail(*_):
        raise ImageTooLarge("too large for anyone")

    for decode, send in ((fail, submit), (small, fail)):
        decoders.put(decode, send, future := Future(), quick=quick)
        with pytest.raises(ImageTooLarge, match="for anyone"):
            future.result(5)
    decoders.put(small, submit, after := Future(), quick=quick)
    assert after.result(5)[0] is IMAGE, "the thread lives"


def test_what_is_cancelled_is_not_decoded(decoders):
    decoded, future, after = [], Future(), Future()
    future.cancel()
    decoders.put(lambda most: decoded.append(most), submit, future, quick=True)
    decoders.put(small, submit, after, quick=True)
    after.result(5)
    assert decoded == []
    wait_until(lambda: decoders.waiting == 0)


def test_what_is_cancelled_while_it_fails_harms_nothing(decoders):
    future, after = Future(), Future()

    def leave(max_pixels):
        future.cancel()
        raise ValueError("nobody hears this")

    decoders.put(leave, submit, future, quick=True)
    decoders.put(small, submit, after, quick=True)
    assert after.result(5)[0] is IMAGE


def test_what_waits_at_the_end_is_still_done():
    decoders, futures = Decoders(), [Future() for _ in range(20)]
    with decoders.running():
        for index, future in enumerate(futures):
            decoders.put((small, large)[index % 2], submit, future, quick=True)
    assert all(future.done() for future in futures)
    assert decoders.waiting == 0
