"""serving/collector.py: the collector walks seldom while a server serves, and then as before."""

import gc
from contextlib import suppress

from helpers.serving.collector import NEW_OBJECTS, seldom_collected


def test_within_it_what_was_there_is_frozen_and_afterwards_all_is_as_before():
    before, seen = gc.get_threshold(), []
    with suppress(RuntimeError), seldom_collected():
        seen.append((gc.get_threshold(), gc.get_freeze_count() > 10_000))
        raise RuntimeError("the server ended")
    assert seen == [((NEW_OBJECTS, *before[1:]), True)]
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
