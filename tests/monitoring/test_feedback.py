from contextlib import closing

import pytest
from logged import Filler

from helpers.monitoring.feedback import LabelConflict, UnknownRequest, keep_label
from helpers.monitoring.prediction_log import PredictionLog


def test_the_first_word_stands_and_the_same_again_is_nothing_new(tmp_path):
    with closing(PredictionLog(tmp_path / "log.db")) as log:
        Filler(log).fill(2)
        first = keep_label(log, "request-2", None, 14)
        assert (first.right, first.known, first.position, first.confidence) == (True, False, 0, 0.5)
        assert keep_label(log, "request-2", 0, 14).known
        with pytest.raises(LabelConflict, match="the true class was said to be 14 before, now 15; the first stands"):
            keep_label(log, "request-2", None, 15)
        with pytest.raises(UnknownRequest):
            keep_label(log, "request-3", None, 1)
