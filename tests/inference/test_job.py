"""inference/job.py: whose images are there, who waits for their answer, and what the others are told."""

from concurrent.futures import Future, wait

import numpy as np
import pytest

from helpers.inference.job import DeadlineExceeded, Job

IMAGES = np.zeros((3, 32, 32, 3), np.uint8)


def test_images_that_somebody_waits_for_are_begun_and_cannot_be_cancelled_any_more():
    job = Job(IMAGES, Future(), single=False)
    assert job.count == 3
    assert job.begin(1)
    assert job.future.running()
    assert not job.future.cancel()


def test_an_image_is_decoded_when_it_is_begun():
    job = Job(None, Future(), single=True, decode=lambda: IMAGES[:1])
    assert (job.count, job.images) == (1, None)
    assert job.begin(1)
    assert job.images.shape == (1, 32, 32, 3)


def test_what_decoding_raises_becomes_the_futures():
    error = ValueError("no image")

    def decode():
        raise error

    job = Job(None, Future(), single=True, decode=decode)
    assert not job.begin(1)
    assert job.future.exception(0) is error


def test_what_goes_another_way_is_left_as_it_is():
    job = Job(None, Future(), single=True, decode=lambda: None)
    assert not job.begin(1)
    assert not job.future.running()
    assert not job.future.done()


def test_what_is_cancelled_is_not_decoded_and_whoever_waits_is_told():
    decoded = []
    job = Job(None, Future(), single=True, decode=lambda: decoded.append(1))
    job.future.cancel()
    assert not job.begin(1)
    assert not decoded
    assert job.future in wait([job.future], timeout=0).done


def test_what_is_cancelled_while_it_is_decoded_is_not_begun():
    future = Future()
    job = Job(None, future, single=True, decode=lambda: future.cancel() and IMAGES[:1])
    assert not job.begin(1)


def test_what_is_cancelled_while_decoding_fails_harms_nothing():
    future = Future()

    def decode():
        future.cancel()
        raise ValueError

    assert not Job(None, future, single=True, decode=decode).begin(1)


def test_what_waited_too_long_is_told_how_long_and_is_not_decoded():
    decoded = []
    job = Job(None, Future(), single=True, decode=lambda: decoded.append(1))
    job.arrived -= 2
    assert not job.begin(1.5)
    assert not decoded
    with pytest.raises(DeadlineExceeded, match=r"waited 2\.0 s, 1\.5 s are allowed; try again"):
        job.future.result(0)
