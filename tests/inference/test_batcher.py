"""inference/batcher.py: which requests are a batch, and when it is taken."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np
import pytest

from helpers.inference.batcher import Batcher, PredictorClosed, QueueFull
from helpers.inference.job import Job

ONE_AT_A_TIME, TWO_AT_ONCE = 1, 2
STOPPING = "the server is stopping; send requests elsewhere"


def job(images=1):
    return Job(np.zeros((images, 32, 32, 3), np.uint8), Future(), single=False)


def make_batcher(*requests, full=32, streams=TWO_AT_ONCE, queue_size=256):
    """A batcher where `requests` wait, of so many images each."""
    batcher = Batcher(queue_size, lambda: (full, streams))
    put(batcher, *requests)
    return batcher


def put(batcher, *requests):
    for images in requests:
        batcher.put(job(images))


@pytest.fixture
def waiter():
    """Takes a turn in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield lambda batcher: pool.submit(batcher.take)


def test_a_lone_request_is_taken_at_once():
    turn = make_batcher(1).take()
    assert (len(turn.jobs), turn.images, turn.shared) == (1, 1, False)


def test_where_nothing_waits_whoever_takes_does(waiter):
    batcher = make_batcher()
    taken = waiter(batcher)
    time.sleep(0.05)
    assert not taken.done()
    put(batcher, 1)
    assert taken.result(5).images == 1


def test_what_waits_when_the_engine_is_free_is_one_batch_in_the_order_it_came():
    batcher, requests = make_batcher(), [job() for _ in range(20)]
    for request in requests:
        batcher.put(request)
    assert batcher.waiting == 20
    assert batcher.take().jobs == tuple(requests)
    assert batcher.waiting == 0


@pytest.mark.parametrize(("streams", "part"), [(ONE_AT_A_TIME, 16), (TWO_AT_ONCE, 8)])
def test_while_the_engine_is_busy_requests_gather_until_they_are_part_of_a_batch(waiter, streams, part):
    batcher = make_batcher(1, streams=streams)
    batcher.take()
    put(batcher, *[1] * (part - 1))
    taken = waiter(batcher)
    time.sleep(0.05)
    assert (taken.done(), batcher.waiting) == (False, part - 1)
    put(batcher, 1)
    turn = taken.result(5)
    assert (turn.images, turn.shared) == (part, True)


@pytest.mark.parametrize("streams", [ONE_AT_A_TIME, TWO_AT_ONCE])
def test_there_are_never_three_under_way(waiter, streams):
    batcher = make_batcher(1, streams=streams)
    first = batcher.take()
    put(batcher, *[1] * 64)
    batcher.take()
    third = waiter(batcher)
    time.sleep(0.05)
    assert not third.done()
    batcher.done(first)
    assert third.result(5).shared


def test_where_one_of_two_that_shared_is_done_an_eighth_of_a_batch_will_do(waiter):
    batcher = make_batcher(1)
    first = batcher.take()
    put(batcher, *[1] * 8)
    batcher.take()
    put(batcher, *[1] * 3)
    batcher.done(first)
    taken = waiter(batcher)
    time.sleep(0.05)
    assert not taken.done()
    put(batcher, 1)
    assert taken.result(5).images == 4


def test_after_a_pause_it_takes_a_quarter_again_to_share(waiter):
    batcher = make_batcher(1)
    turns = [batcher.take()]
    put(batcher, *[1] * 8)
    turns.append(batcher.take())
    for turn in turns:
        batcher.done(turn)
    put(batcher, 1)
    assert not batcher.take().shared
    put(batcher, *[1] * 7)
    taken = waiter(batcher)
    time.sleep(0.05)
    assert not taken.done()
    put(batcher, 1)
    assert taken.result(5).images == 8


def test_a_batch_that_shares_has_a_third_of_all_images_at_most():
    batcher = make_batcher(*[1] * 12, full=32)
    first = batcher.take()
    put(batcher, *[1] * 18)
    second = batcher.take()
    put(batcher, *[1] * 22)
    batcher.done(first)
    assert [first.images, second.images, batcher.take().images] == [12, 10, 13]  # of 12 and 18, of 10 and 30


def test_a_batch_that_stands_behind_another_is_a_full_one():
    batcher = make_batcher(*[1] * 57, full=32, streams=ONE_AT_A_TIME)
    turns = [batcher.take()]
    put(batcher, *[1] * 7)
    turns.append(batcher.take())
    batcher.done(turns[0])
    batcher.done(turns[1])
    assert [turn.images for turn in turns] == [32, 32]


def test_a_request_of_more_than_a_batch_is_a_batch_of_its_own_and_those_behind_wait_their_turn():
    batcher, sizes = make_batcher(2, 40, 1, 3, full=4), []
    for _ in range(3):
        turn = batcher.take()
        sizes.append([request.count for request in turn.jobs])
        batcher.done(turn)
    assert sizes == [[2], [40], [1, 3]]
    assert batcher.idle


def test_a_full_batch_is_what_the_engine_says_at_the_time():
    full = 4
    batcher = Batcher(64, lambda: (full, ONE_AT_A_TIME))
    put(batcher, *[1] * 12)
    first = batcher.take()
    batcher.done(first)
    full = 8
    assert (first.images, batcher.take().images) == (4, 8)


def test_past_the_queue_requests_are_refused_until_there_is_room():
    batcher = make_batcher(2, 1, queue_size=4)
    batcher.check_room()
    with pytest.raises(QueueFull, match="4 images are waiting already; try again in a second"):
        batcher.check_room(1)
    put(batcher, 1)
    with pytest.raises(QueueFull, match="4 images are waiting already; try again in a second"):
        put(batcher, 1)
    assert batcher.take().images == 4
    put(batcher, 1)


def test_a_large_request_needs_no_empty_queue():
    batcher = make_batcher(*[1] * 255, queue_size=256)
    put(batcher, 256)
    assert batcher.waiting == 511
    with pytest.raises(QueueFull, match="511 images are waiting already"):
        put(batcher, 1)


def test_it_is_idle_where_nothing_waits_and_nothing_is_under_way():
    batcher = make_batcher()
    assert batcher.idle
    put(batcher, 1)
    assert not batcher.idle
    turn = batcher.take()
    assert not batcher.idle
    batcher.done(turn)
    assert batcher.idle


def test_once_it_is_closed_what_waits_may_be_taken_and_nothing_comes():
    batcher = make_batcher(1)
    batcher.take()
    put(batcher, 1)
    batcher.close()
    assert batcher.closed
    with pytest.raises(PredictorClosed, match=STOPPING):
        put(batcher, 1)
    with pytest.raises(PredictorClosed, match=STOPPING):
        batcher.check_room()
    assert batcher.take().images == 1
    assert batcher.take() is None


def test_closing_wakes_all_who_wait():
    batcher = make_batcher()
    with ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(batcher.take) for _ in range(3)]
        batcher.close()
        assert [future.result(5) for future in taken] == [None] * 3


def test_of_many_threads_each_request_is_taken_once():
    batcher, numbers = make_batcher(full=4, queue_size=1000), count()
    taken, wanted = [], range(1000)

    def give():
        while (number := next(numbers)) in wanted:
            batcher.put(Job(np.full((1, 32, 32, 3), number % 256, np.uint8), Future(), single=True))

    def work():
        while turn := batcher.take():
            taken.extend(turn.jobs)
            batcher.done(turn)

    with ThreadPoolExecutor(7) as pool:
        workers = [pool.submit(work) for _ in range(3)]
        for giver in [pool.submit(give) for _ in range(4)]:
            giver.result(10)
        batcher.close()
        for worker in workers:
            worker.result(10)
    assert len({id(request) for request in taken}) == len(taken) == 1000
    assert batcher.idle
