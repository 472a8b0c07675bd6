"""The summary of a run for a job: from real receipts, with the gate's decision as a table."""

import pytest

from helpers.pipeline.execution import Failure
from helpers.pipeline.journal import Journal
from helpers.pipeline.summary import main
from helpers.receipts import start_stage

GATE = {
    "passed": True,
    "reason": "top-1 0.7000 is not below | the champion's",
    "floor": 0.5,
    "tolerance": 0.01,
    "champion": "20260101T000000Z-aaaaaaaaaaaa",
    "difference": 0.02,
    "interval": [0.01, 0.03],
    "regressions": {"fish": -0.04},
}
RESULTS = {"version": "20260102T000000Z-bbbbbbbbbbbb", "promoted": True, "top1": 0.7, "top5": 0.9} | {
    "calibration_error": 0.02,
    "gate": GATE,
}
DATA = {"source": "CIFAR-100", "fingerprint": "f0", "synthetic": False}


def make_run(runs, name="20260102-000000-aaaa", data=DATA, **changes):
    """A run whose stage train is done; returns its journal."""
    directory = runs / name
    directory.mkdir(parents=True)
    plan = {"notebook": "notebooks/02_train_and_upload.ipynb", "parameters": {}, "timeout": None}
    journal = Journal(directory, {}, {"train": plan})
    journal.begin("train", "digest")
    start_stage("train", directory, name, {}).finish(data=data, results=RESULTS | changes)
    journal.finish("train")
    return journal


def summary(runs, capsys, *arguments, code=0):
    assert main([*arguments, "--run-dir", str(runs)]) == code
    captured = capsys.readouterr()
    return captured.err if code else captured.out


def test_the_gate_is_a_table_with_its_reason_and_what_was_lost(tmp_path, capsys):
    make_run(tmp_path).close("done")
    text = summary(tmp_path, capsys)
    assert text.startswith("### Run 20260102-000000-aaaa: done\n\n| gate | |\n|---|---|\n| decision | passed |\n")
    assert "| reason | top-1 0.7000 is not below \\| the champion's |" in text
    assert "| difference | +2.00%, 95 % interval +1.00% to +3.00% |" in text
    assert "| lost: fish | -4.00% |" in text
    assert "SYNTHETIC" not in text


def test_a_refusal_and_a_first_model_are_said(tmp_path, capsys):
    none = dict.fromkeys(("champion", "difference", "interval", "regressions"))
    make_run(tmp_path, gate=GATE | none | {"passed": False}, promoted=False).close("done")
    text = summary(tmp_path, capsys)
    assert "| decision | refused |" in text
    assert "| in production | no |" in text
    assert "| compared with | nothing yet |" in text
    assert "difference" not in text


@pytest.mark.parametrize(("promoted", "word"), [(True, "true"), (False, "false")])
def test_the_outputs_for_the_next_steps_are_added_to_the_file(tmp_path, capsys, promoted, word):
    make_run(tmp_path, promoted=promoted).close("done")
    outputs = tmp_path / "outputs"
    outputs.write_text("before=1\n")
    summary(tmp_path, capsys, "--outputs", str(outputs))
    assert outputs.read_text() == f"before=1\nversion={RESULTS['version']}\npromoted={word}\n"


def test_a_run_that_failed_says_where_and_promoted_nothing(tmp_path, capsys):
    journal = make_run(tmp_path)
    journal.begin("train", "digest")
    journal.fail("train", Failure(7, "ValueError: <b> is wrong"))
    journal.close("failed")
    text = summary(tmp_path, capsys, "--outputs", str(tmp_path / "outputs"))
    assert "**train** failed: notebooks/02_train_and_upload.ipynb, cell 7: ValueError: &lt;b> is wrong" in text
    assert "| gate |" not in text
    assert (tmp_path / "outputs").read_text() == "version=\npromoted=false\n"


def test_the_run_that_started_last_is_taken_unless_one_is_named(tmp_path, capsys):
    for name in ("z-first", "a-second"):
        make_run(tmp_path, name).close("done")
    assert "Run a-second" in summary(tmp_path, capsys)
    assert "Run z-first" in summary(tmp_path, capsys, "z-first")


def test_synthetic_data_is_said_loudly(tmp_path, capsys):
    make_run(tmp_path, data=DATA | {"synthetic": True}).close("done")
    assert "SYNTHETIC DATA in train" in summary(tmp_path, capsys)


def test_a_receipt_that_was_changed_is_refused(tmp_path, capsys):
    make_run(tmp_path).close("done")
    path = tmp_path / "20260102-000000-aaaa" / "train.receipt.json"
    path.write_text(path.read_text().replace('"stage": "train"', '"stage": "tram"'))
    assert "stage must be 'train', got 'tram'" in summary(tmp_path, capsys, code=1)


def test_a_run_whose_record_is_broken_is_named(tmp_path, capsys):
    make_run(tmp_path).close("done")
    broken = make_run(tmp_path, "20260101-000000-aaaa").directory / "run.json"
    broken.write_text("{")
    text = summary(tmp_path, capsys, code=1)
    assert text.startswith(f"error: cannot read {broken} (no record of a run: ")
    assert text.count("\n") == 1


def test_no_run_at_all_is_an_error_with_the_next_step(tmp_path, capsys):
    assert summary(tmp_path, capsys, code=1) == f"error: there is no run in {tmp_path}; start one with: make run\n"
