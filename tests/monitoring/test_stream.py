"""`stream`: what a prediction log holds of the version that answered last, as arrays."""

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from conftest import make_bundle
from logged import Filler

from helpers.delivery.storage import open_store
from helpers.monitoring import stream as module
from helpers.monitoring.log_file import LogError
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.scores import NAMES
from helpers.monitoring.stream import UNKNOWN, find_bundle, find_logs, newest_logs, read_images, read_stream
from helpers.registry import Registry

VALUES = [1.5, 0.5, -9.0, 6.0, 0.25, 0.125, 0.75, 0.375]
SCORES = json.dumps(dict(zip(NAMES, VALUES, strict=True)))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def log(tmp_path):
    with closing(PredictionLog(tmp_path / "predictions.db", keep_images=True)) as log:
        yield log


def make_log(path, count=1, **changes):
    path.parent.mkdir(exist_ok=True)
    with closing(PredictionLog(path)) as log:
        if count:
            Filler(log).fill(count, scores=SCORES, **changes)
    return path


def test_rows_become_arrays_in_their_order(log):
    filler = Filler(log)
    filler.fill(5, scores=SCORES)
    log.label("request-2", 0, 42)
    found = read_stream(log.path)

    assert (len(found), found.model, found.version) == (5, "tiny", filler.rows[0]["version"])
    assert (found.before, found.unscored, found.rehearsal, found.log) == ((), 0, None, log.path)
    assert found.sequences.tolist() == [1, 2, 3, 4, 5]
    assert found.times.tolist() == [row["time"] for row in filler.rows]
    assert found.answers.tolist() == [row["class_index"] for row in filler.rows]
    assert found.labels.tolist() == [UNKNOWN, 42, UNKNOWN, UNKNOWN, UNKNOWN]
    assert found.confidences.tolist() == [0.5] * 5
    np.testing.assert_array_equal(found.scores, np.float32([VALUES] * 5))
    assert not found.kept.any()


def test_only_the_last_version_counts_and_those_before_it_are_named(log):
    filler = Filler(log)
    for count, version in ((3, "a"), (2, "b"), (4, "a")):
        filler.fill(count, scores=SCORES, version=version)
    found = read_stream(log.path)
    assert (found.version, found.before, found.sequences.tolist()) == ("a", ("a", "b"), [6, 7, 8, 9])
    assert read_stream(log.path, latest=5).whole
    assert not read_stream(log.path, latest=4).whole


def test_only_the_latest_are_read_if_so_many_are_asked_for(log, monkeypatch):
    monkeypatch.setattr(module, "_BATCH", 2)
    Filler(log).fill(7, scores=SCORES)
    part, whole = read_stream(log.path, latest=3), read_stream(log.path)
    assert (part.sequences.tolist(), part.whole) == ([5, 6, 7], False)
    assert (whole.sequences.tolist(), whole.whole) == (list(range(1, 8)), True)


def test_predictions_without_drift_scores_are_left_out_and_counted(log):
    filler = Filler(log)
    filler.fill(2)
    filler.fill(3, scores=SCORES)
    found = read_stream(log.path)
    assert (found.unscored, found.sequences.tolist()) == (2, [3, 4, 5])


def test_a_log_says_if_it_is_a_rehearsal(log):
    Filler(log).fill(1, scores=SCORES)
    log.report("rehearsal", {"kind": "fog", "severity": 3, "change": 101})
    assert read_stream(log.path).rehearsal == {"kind": "fog", "severity": 3, "change": 101}


def test_a_log_without_anything_to_judge_says_so(log):
    with pytest.raises(LogError, match=r"predictions.db holds no prediction; serve a model that has a drift reference"):
        read_stream(log.path)
    Filler(log).fill(2)
    with pytest.raises(LogError, match=r"holds none of version 2026\S+ with drift scores"):
        read_stream(log.path)


def test_images_come_back_where_they_were_kept(log):
    filler = Filler(log)
    for image in IMAGES:
        filler.fill(1, scores=SCORES, image=image.tobytes())
    filler.fill(1, scores=SCORES)
    found = read_stream(log.path)
    assert found.kept.tolist() == [True] * 4 + [False]
    np.testing.assert_array_equal(read_images(found, np.array([3, 0])), IMAGES[[3, 0]])
    assert read_images(found, np.array([], int)).shape == (0, 32, 32, 3)


def test_the_logs_of_a_folder_come_with_the_real_predictions_first(tmp_path):
    for name, count in (("a.db", 1), ("predictions.db", 1), ("empty.db", 0)):
        make_log(tmp_path / name, count)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE notes (text)")
    assert [path.name for path in find_logs(tmp_path)] == ["predictions.db", "a.db"]
    assert find_logs(tmp_path / "a.db") == [tmp_path / "a.db"]
    assert find_logs(tmp_path / "nowhere") == []


def test_a_file_that_is_no_log_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no database")
    with pytest.raises(LogError, match=r"notes.txt cannot be read as a prediction log"):
        find_logs(tmp_path / "notes.txt")


def test_the_run_with_the_latest_prediction_is_found(tmp_path):
    assert newest_logs(tmp_path) == newest_logs(tmp_path / "nowhere") == []
    for time, name in enumerate(("old", "young", "middle"), 1):
        make_log(tmp_path / name / "predictions.db", time=1e9 + time % 3)
    (tmp_path / "none").mkdir()
    assert newest_logs(tmp_path) == [tmp_path / "young" / "predictions.db"]


@pytest.fixture
def answered(log, tmp_path):
    """The bundle that answered, and the stream of its log."""
    bundle = make_bundle(tmp_path / "bundle")
    Filler(log).fill(1, scores=SCORES, version=bundle.version)
    return bundle, read_stream(log.path)


def test_the_bundle_that_answered_is_found_in_the_bucket(answered, tmp_path):
    bundle, found = answered
    url = (tmp_path / "store").as_uri()
    Registry(open_store(url), "tiny").publish(bundle.path)
    assert find_bundle(found, url, tmp_path / "cache").path.is_relative_to(tmp_path / "cache")


def test_the_bundle_beside_the_code_is_taken_where_it_is_the_one_that_answered(answered, tmp_path, monkeypatch):
    bundle, found = answered
    monkeypatch.setattr(module, "ROOT", tmp_path)
    bundle.path.rename(tmp_path / "model")
    assert find_bundle(found, (tmp_path / "store").as_uri(), tmp_path / "cache").version == bundle.version


def test_a_version_that_is_nowhere_is_an_error(answered, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path)
    make_bundle(tmp_path / "model", seed=1)
    with pytest.raises(
        LogError, match=r"predictions.db was answered by version \S+ of tiny, which is neither in file:"
    ):
        find_bundle(answered[1], (tmp_path / "store").as_uri(), tmp_path / "cache")
