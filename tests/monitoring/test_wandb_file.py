import pytest
from held_model import wait_until

from helpers.monitoring.tracking import finish_run, start_run
from helpers.monitoring.wandb_file import read_history, read_records


def test_a_run_is_read_back_and_a_file_that_was_cut_off_as_far_as_it_goes(tmp_path, own_wandb):
    run = start_run("monitor", directory=tmp_path)
    for step in range(1, 2001):
        run.log({"value": step * 0.5, "text": "x" * 40}, step=step, commit=True)
    assert finish_run(run)
    (file,) = tmp_path.rglob("*.wandb")
    # W&B's service writes the end of the file a moment after run.finish() has returned.
    wait_until(lambda: "exit" in [record.WhichOneof("record_type") for record in read_records(file)])
    history = read_history(file)
    assert [(row["_step"], row["value"]) for row in history] == [(step, step * 0.5) for step in range(1, 2001)]
    data = file.read_bytes()
    assert len(data) > 3 * 32768
    for cut in (len(data) * 2 // 3, 32768, 32775, 100):
        file.write_bytes(data[:cut])
        whole = read_history(file)
        assert whole == history[: len(whole)]
        assert len(whole) == pytest.approx(2000 * cut / len(data), abs=60)


def test_another_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the file of a W&B run"):
        read_history(tmp_path / "x")
