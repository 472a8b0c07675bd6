"""helpers/receipts.py: what is written is read back, and nothing else passes for a receipt."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from helpers.receipts import (
    Receipt,
    ReceiptError,
    file_sha256,
    read_receipt,
    receipt_path,
    start_stage,
    write_json,
    write_receipt,
)
from helpers.workspace import ROOT

DATA = {"source": "stand-in", "fingerprint": "f" * 64, "synthetic": True}


@pytest.fixture
def receipt(tmp_path):
    (tmp_path / "figures").mkdir()
    artifact = tmp_path / "figures" / "counts.json"
    artifact.write_text("[1, 2, 3]")
    clock = start_stage("explore", tmp_path, "run-1", {"seed": 7})
    return clock.finish(data=DATA, results={"classes": 100}, artifacts={"counts": artifact})


def change(path, **changes):
    value = json.loads(path.read_text())
    for key, new in changes.items():
        if new is ...:
            del value[key]
        else:
            value[key] = new
    path.write_text(json.dumps(value))


def test_a_receipt_is_read_back_as_it_was_written(receipt, tmp_path):
    found = read_receipt(receipt, stage="explore", run_id="run-1")

    assert receipt == tmp_path / "explore.receipt.json"
    assert (found.schema, found.stage, found.run_id) == (1, "explore", "run-1")
    assert (found.parameters, found.data, found.results) == ({"seed": 7}, DATA, {"classes": 100})
    digest = "a36b1f2c3f84522dd1005145646617d7054c0851e97c72a039c0bdfac9fa07f3"
    assert found.artifacts == {"counts": {"path": "figures/counts.json", "sha256": digest, "size": 9}}
    assert found.started <= found.finished
    assert found.started.endswith("+00:00")


def test_the_duration_is_in_seconds(tmp_path):
    clock = start_stage("train", tmp_path, "r", {})
    time.sleep(0.05)
    duration = read_receipt(clock.finish(data=DATA, results={}), stage="train").duration_s
    assert 0.05 <= duration < 5


def test_an_artifact_outside_the_run_keeps_its_whole_path(tmp_path):
    outside = tmp_path / "store" / "manifest.json"
    outside.parent.mkdir()
    outside.write_text("{}")
    path = start_stage("train", tmp_path / "run", "r", {}).finish(
        data=DATA, results={}, artifacts={"manifest": outside}
    )
    assert read_receipt(path, stage="train").artifacts["manifest"]["path"] == str(outside)


def test_starting_a_stage_again_removes_its_old_receipt(receipt, tmp_path):
    start_stage("explore", tmp_path, "run-1", {})
    assert not receipt.exists()


def test_a_notebook_that_no_pipeline_started_writes_to_the_interactive_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SUITE_RUNS", str(tmp_path))
    path = start_stage("explore", "", "", {}).finish(data=DATA, results={})
    assert path == tmp_path / "interactive" / "explore.receipt.json"
    assert read_receipt(path, stage="explore").run_id == "interactive"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"results": ...}, "missing: results"),
        ({"mood": "good"}, "unknown: mood"),
        ({"stage": "train"}, "stage must be 'explore', got 'train'"),
        ({"run_id": "run-2"}, "run_id must be 'run-1', got 'run-2'"),
        ({"run_id": ""}, "run_id must be a string, got ''"),
        ({"duration_s": "long"}, "duration_s must be a number of seconds, got 'long'"),
        ({"duration_s": True}, "duration_s must be a number of seconds, got True"),
        ({"parameters": []}, "parameters must be an object, got []"),
        ({"data": {**DATA, "synthetic": "no"}}, "data.synthetic must be bool, got 'no'"),
        ({"data": {"synthetic": False, "source": "x"}}, "data.fingerprint must be str, got None"),
        ({"artifacts": {"a": {"path": "x"}}}, "artifacts.a must hold path, sha256 and size, got {'path': 'x'}"),
    ],
)
def test_a_wrong_field_is_refused_by_name(receipt, changes, problem):
    change(receipt, **changes)
    with pytest.raises(ReceiptError) as caught:
        read_receipt(receipt, stage="explore", run_id="run-1")
    assert str(caught.value) == f"{receipt}: {problem}; run the stage again"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not a JSON file (Expecting value: line 1 column 1 (char 0)); run stage 'explore' again"),
        ('{"schema": 1,', "not a JSON file"),
        ("\udcff", "not a JSON file"),
        ("[]", "a receipt is a JSON object, got list; run the stage again"),
        ('{"schema": NaN}', "JSON has no NaN; run the stage again"),
    ],
)
def test_what_is_not_a_receipt_is_refused(receipt, text, sentence):
    receipt.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ReceiptError) as caught:
        read_receipt(receipt, stage="explore")
    assert str(caught.value).startswith(f"{receipt}: {sentence}")


def test_an_absent_receipt_says_that_the_stage_did_not_finish(tmp_path):
    with pytest.raises(ReceiptError, match="there is no receipt, so stage 'train' did not finish; run it again"):
        read_receipt(receipt_path(tmp_path, "train"), stage="train")


@pytest.mark.parametrize("content", [b"[1, 2, 4]", b"[1, 2, 3] "])
def test_a_changed_artifact_is_found(receipt, tmp_path, content):
    (tmp_path / "figures" / "counts.json").write_bytes(content)
    with pytest.raises(ReceiptError, match="artifact counts was changed after the receipt"):
        read_receipt(receipt, stage="explore")


def test_a_missing_artifact_is_found(receipt, tmp_path):
    (tmp_path / "figures" / "counts.json").unlink()
    with pytest.raises(ReceiptError, match="artifact counts is gone"):
        read_receipt(receipt, stage="explore")


def test_a_moved_run_still_holds(receipt, tmp_path):
    new = tmp_path.rename(tmp_path.with_name("moved"))
    assert read_receipt(new / receipt.name, stage="explore").results == {"classes": 100}


@pytest.mark.parametrize("wrong", ["absent.json", "."])
def test_an_artifact_must_be_a_file(tmp_path, wrong):
    clock = start_stage("train", tmp_path, "r", {})
    with pytest.raises(ValueError, match="artifacts: model must be an existing file"):
        clock.finish(data=DATA, results={}, artifacts={"model": tmp_path / wrong})
    assert not receipt_path(tmp_path, "train").exists()


def test_a_receipt_with_wrong_data_is_not_written(tmp_path):
    good = Receipt(stage="s", run_id="r", started="t", finished="t", duration_s=1.0, parameters={}, data=DATA,
                   results={}, artifacts={})  # fmt: skip
    with pytest.raises(ReceiptError, match=r"data\.synthetic must be bool, got None"):
        write_receipt(tmp_path, replace(good, data={"source": "x", "fingerprint": "y"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"loss": float("nan")}, "x.json: loss: JSON has no nan; write None, or leave it out"),
        ({"a": [1, np.float32("inf")]}, "x.json: a[1]: JSON has no inf; write None, or leave it out"),
        ({3: "three"}, "x.json: keys must be strings, got 3 (int)"),
        ({"a": np.zeros(3)}, "x.json: a: ndarray is no JSON type; convert it to a number, string, list or dict"),
    ],
)
def test_what_json_cannot_say_is_refused_and_the_old_file_stays(tmp_path, value, sentence):
    path = tmp_path / "x.json"
    write_json(path, {"old": True})
    with pytest.raises(ValueError, match=r"x\.json") as caught:
        write_json(path, value)
    assert str(caught.value) == sentence
    assert json.loads(path.read_text()) == {"old": True}
    assert list(tmp_path.iterdir()) == [path]


def test_numpy_scalars_and_tuples_become_plain_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": np.float32(0.5), "b": np.int64(3), "c": (np.bool_(True), None), "d": "é"})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 0.5, "b": 3, "c": [True, None], "d": "é"}


def test_a_failed_write_leaves_no_temporary_file(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_json(tmp_path / "taken", {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


def test_a_reader_never_sees_a_torn_file_when_the_writer_is_killed(tmp_path):
    path = tmp_path / "run.json"
    code = "import sys; from helpers.receipts import write_json as w\nfor n in range(10**9): w(sys.argv[1], [n] * 2000)"
    for _ in range(3):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
        try:
            deadline = time.monotonic() + 20
            while not path.exists():
                assert time.monotonic() < deadline, "the writer wrote nothing"
                time.sleep(0.01)
            for _ in range(50):
                assert len(set(json.loads(path.read_text()))) == 1
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait()
        assert len(json.loads(path.read_text())) == 2000


def test_the_digest_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
