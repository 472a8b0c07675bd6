"""pipeline/campaign.py: a sweep as people run it, here and on a Ray cluster where Ray is installed."""

import importlib.util
import json
import signal
import sys

import pytest
from pipelines import HANG, alive, make_repository, pipeline, result_of, start, wait_for

import run_pipeline
from helpers.pipeline.journal import locked
from helpers.receipts import read_receipt

LEARN = """\
more = {"top1": rate, "calibration_error": 0.01, "gate": {"passed": rate > 0.2}}
if rate > 0.8: raise ValueError("loss is nan")"""
SWEEP = ("--only", "train", "--sweep", "train.rate=0.1,0.5,0.9")


def only_sweep(repository):
    (directory,) = (repository / "runs").iterdir()
    return directory, json.loads((directory / "sweep.json").read_text())


def states(record):
    return [member["state"] for member in record["members"].values()]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of three runs, two at once, the last of which fails: repository, result."""
    repository = make_repository(tmp_path_factory.mktemp("sweep"), train=LEARN)
    return repository, pipeline(repository, *SWEEP, "--jobs", "2")


def test_each_value_has_a_run_of_its_own_and_a_row_and_one_that_fails_stops_no_other(swept):
    repository, result = swept
    directory, record = only_sweep(repository)
    assert result.returncode == 1
    assert (record["state"], states(record)) == ("failed", ["done", "done", "failed"])
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines[-6:-2]] == [
        ["train.rate", "status", "top-1", "calibration", "error", "gate", "seconds"],
        ["0.1", "done", "10.00%", "1.00%", "refused", "0"],
        ["0.5", "done", "50.00%", "1.00%", "passed", "0"],
        ["0.9", "failed", "-", "-", "-", "-"],
    ]
    assert lines[-2].startswith("SYNTHETIC DATA in train")
    assert lines[-1] == f"look at runs/{directory.name}/index.html"
    for name, rate in (("1-rate-0.1", 0.1), ("2-rate-0.5", 0.5)):
        receipt = read_receipt(directory / name / "train.receipt.json", stage="train", run_id=name)
        assert receipt.results["top1"] == rate
        assert (directory / name / "output.log").read_text().startswith(f"run {name}\n")
    error = "notebooks/02_train_and_upload.ipynb, cell 4: ValueError: loss is nan"
    assert record["members"]["3-rate-0.9"]["error"] == error
    assert f"3-rate-0.9: {error}\n" in result.stderr
    assert f'failed; go on with: make run ARGS="--resume {directory.name}"\n' in result.stderr
    assert error in (directory / "index.html").read_text()


def test_a_sweep_that_goes_on_runs_again_only_what_does_not_hold(swept):
    repository, _ = swept
    directory, _ = only_sweep(repository)
    (directory / "1-rate-0.1" / "train.txt").write_text("changed")
    before = (directory / "2-rate-0.5" / "train.receipt.json").read_bytes()

    again = pipeline(repository, "--resume", directory.name, "--jobs", "3")

    assert again.returncode == 1, "the third still fails"
    assert (directory / "2-rate-0.5" / "train.receipt.json").read_bytes() == before
    assert "done before, and still holds" in (directory / "2-rate-0.5" / "output.log").read_text()
    assert (directory / "1-rate-0.1" / "train.txt").read_text() == "train 0.1 x True"
    refused = pipeline(repository, "--resume", directory.name, "-p", "train.epochs=1")
    assert (refused.returncode, refused.stderr) == (
        2,
        f"run_pipeline.py: --resume: {directory.name} is a sweep, which goes on with what it was begun with\n",
    )


def test_an_interrupt_ends_all_kernels_and_their_children_and_starts_no_further_run(tmp_path):
    repository = make_repository(tmp_path, train=HANG)
    process = start(repository, *SWEEP, "--jobs", "2")
    try:
        files = wait_for(lambda: len(found := list(repository.glob("runs/*/*/pids"))) == 2 and found, "two kernels")
        pids = [int(pid) for file in files for pid in file.read_text().split()]
        assert all(alive(pid) for pid in pids)
        process.send_signal(signal.SIGINT)
    finally:
        result = result_of(process)
    directory, record = only_sweep(repository)
    assert result.returncode == 130
    assert not any(alive(pid) for pid in pids)
    assert (record["state"], states(record)) == ("interrupted", ["interrupted", "interrupted", "pending"])
    assert f'interrupted; go on with: make run ARGS="--resume {directory.name}"\n' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sweep", "train.rate=1,x"], "--sweep train.rate=x: must be a number (float), got 'x'"),
        (["--sweep", "train.rat=1,2"], "--sweep train.rat=1: train has no parameter 'rat'; did you mean rate?"),
        (["--sweep", "train.rate=1,2", "--resume", "x"], "--sweep and --resume: a sweep has runs of its own"),
        (["--jobs", "2"], "--jobs and --engine are for a sweep; begin one with --sweep STAGE.NAME=A,B,C"),
    ],
)
def test_a_wrong_sweep_exits_2_with_one_sentence_before_anything_starts(
    tmp_path, monkeypatch, capsys, arguments, sentence
):
    monkeypatch.setattr(run_pipeline, "ROOT", make_repository(tmp_path))
    monkeypatch.delenv("SUITE_RUNS", raising=False)
    assert run_pipeline.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"run_pipeline.py: {sentence}")
    assert not (tmp_path / "runs").exists()


def test_without_ray_its_engine_names_what_to_install_and_leaves_no_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(run_pipeline, "ROOT", make_repository(tmp_path))
    monkeypatch.delenv("SUITE_RUNS", raising=False)
    assert run_pipeline.main([*SWEEP, "--engine", "ray"]) == 2
    assert capsys.readouterr().err == (
        "run_pipeline.py: --engine ray needs Ray; install it with: "
        "pip install --require-hashes -r requirements/ray.lock\n"
    )
    assert not list(tmp_path.glob("runs/*/*"))


needs_ray = pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")


@needs_ray
def test_on_a_ray_cluster_the_members_end_as_they_do_here(tmp_path):
    repository = make_repository(tmp_path, train=LEARN)
    result = pipeline(repository, *SWEEP, "--engine", "ray")
    directory, record = only_sweep(repository)
    assert result.returncode == 1, result.stderr
    assert states(record) == ["done", "done", "failed"]
    assert [member["top1"] for member in record["members"].values()] == [0.1, 0.5, None]
    assert read_receipt(directory / "2-rate-0.5" / "train.receipt.json", stage="train", run_id="2-rate-0.5")


@needs_ray
def test_on_a_ray_cluster_an_interrupt_ends_the_kernel_too(tmp_path):
    repository = make_repository(tmp_path, train=HANG)
    process = start(repository, *SWEEP, "--engine", "ray")
    try:
        (file,) = wait_for(lambda: list(repository.glob("runs/*/*/pids")), "a kernel")
        pids = [int(pid) for pid in file.read_text().split()]
        process.send_signal(signal.SIGINT)
    finally:
        result = result_of(process)
    assert result.returncode == 130, result.stderr
    assert not any(alive(pid) for pid in pids)
    assert states(only_sweep(repository)[1]) == ["interrupted", "pending", "pending"]


def test_a_sweep_in_hand_of_another_process_is_refused(swept):
    repository, _ = swept
    directory, _ = only_sweep(repository)
    with locked(directory):
        again = pipeline(repository, "--resume", directory.name)
    assert again.returncode == 2
    assert "is still under way in another process" in again.stderr
