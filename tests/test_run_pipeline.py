"""run_pipeline.py as people run it: real processes, real kernels, tiny notebooks that write real receipts."""

import glob
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from pipelines import (
    HANG,
    alive,
    make_repository,
    only_run,
    pids_of,
    pipeline,
    result_of,
    start,
    states,
    wait_for,
    write_notebooks,
)

import run_pipeline
from helpers.pipeline.journal import Journal, RunError, inputs_digest, locked
from helpers.receipts import read_receipt


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A good run of four stages, in a folder whose braces papermill would fill in: repository, run, result."""
    profile = "all: {rate: 1}\ntrain: {epochs: 3}\ntimeouts: {train: 60}\n"
    connection = "import ipykernel\nmore = {'transport': ipykernel.get_connection_info(unpack=True)['transport']}"
    repository = make_repository(tmp_path_factory.mktemp("good") / "a {suite}", profile, diagnose=connection)
    result = pipeline(repository, "-p", 'deploy.label=it\'s "here"', "-p", "all.fast=false")
    assert result.returncode == 0, result.stderr
    return repository, only_run(repository)[0], result


def test_a_good_run_has_a_receipt_a_notebook_and_a_page_for_each_stage(good):
    repository, directory, _ = good
    names = {path.name for path in directory.iterdir()}
    for stage, notebook in run_pipeline.STAGES.items():
        stem = Path(notebook).stem
        assert {f"{stem}.ipynb", f"{stem}.html", f"{stage}.receipt.json"} <= names
        assert read_receipt(directory / f"{stage}.receipt.json", stage=stage, run_id=directory.name)
        assert "start_stage" in (directory / f"{stem}.html").read_text(), "code is kept in the page"
    assert not [name for name in names if name.startswith(".")]
    _, record = only_run(repository)
    assert (record["state"], record["run_id"], states(record)) == ("done", directory.name, ["done"] * 4)
    assert record["stages"]["train"]["timeout"] == 60


def test_parameters_reach_the_kernels(good):
    _, directory, _ = good
    assert (directory / "explore.txt").read_text() == "explore 1.0 x False"
    assert (directory / "deploy.txt").read_text() == 'deploy 1.0 it\'s "here" False'
    assert read_receipt(directory / "train.receipt.json", stage="train").parameters == {"epochs": 3}


def test_a_kernel_takes_no_port_which_another_process_could_take_before_it(good):
    assert read_receipt(good[1] / "diagnose.receipt.json", stage="diagnose").results["transport"] == "ipc"


def test_a_good_run_is_quiet_and_ends_with_where_to_look(good):
    _, directory, result = good
    shown = [line for line in result.stderr.replace("\r", "\n").splitlines() if line]
    assert [line for line in shown if "cell" not in line] == [], "nothing but papermill's progress bars"
    assert {line.split(":")[0] for line in shown} == {"explore", "train", "deploy", "diagnose"}
    lines = result.stdout.splitlines()
    assert lines[0] == f"run {directory.name}"
    assert "  top 1: 0.5123" in lines
    assert lines[-2].startswith("SYNTHETIC DATA in explore, train, deploy, diagnose")
    assert lines[-1] == f"look at runs/{directory.name}/index.html"


def test_the_index_links_the_pages_and_is_loud_about_synthetic_data(good):
    _, directory, _ = good
    page = (directory / "index.html").read_text()
    for stem in ("01_explore_data", "02_train_and_upload", "03_deploy_and_monitor", "04_diagnose_drift"):
        assert f'<a href="{stem}.html">' in page
    assert "<p class=loud>SYNTHETIC DATA" in page
    assert "<tr><th>top 1</th><td>0.5123</td></tr>" in page
    assert "<tr><th>label</th><td>it&#x27;s &quot;here&quot;</td></tr>" in page


def test_resume_skips_what_holds_and_runs_what_changed_and_all_after_it(good, tmp_path):
    repository = Path(shutil.copytree(good[0], tmp_path / "copy"))
    directory, before = only_run(repository)

    again = pipeline(repository, "--resume", directory.name)
    assert again.returncode == 0
    assert again.stdout.count("done before, and still holds") == 4
    assert only_run(repository)[1]["stages"] == before["stages"]

    write_notebooks(repository, train="print('another way')")
    again = pipeline(repository, "--resume", directory.name)
    assert again.returncode == 0
    _, after = only_run(repository)
    changed = [stage for stage in after["stages"] if after["stages"][stage] != before["stages"][stage]]
    assert changed == ["train", "deploy", "diagnose"]
    assert after["stages"]["train"]["parameters"]["epochs"] == 3
    assert after["stages"]["deploy"]["parameters"]["fast"] is False, "the run's own values, not the profile's"


def test_a_failing_cell_is_named_and_later_stages_do_not_start(tmp_path):
    repository = make_repository(tmp_path, train="raise ValueError('loss is nan\\nat step 3')")
    result = pipeline(repository, "--only", "explore,train,deploy")
    directory, record = only_run(repository)

    assert result.returncode == 1
    said = "notebooks/02_train_and_upload.ipynb, cell 4: ValueError: loss is nan ... at step 3"
    assert f"train: {said}\n" in result.stderr
    assert f'failed; go on with: make run ARGS="--resume {directory.name}"\n' in result.stderr
    assert "Traceback" not in result.stderr
    assert (record["state"], states(record)) == ("failed", ["done", "failed", "pending"])
    assert record["stages"]["deploy"]["started"] is None
    assert said in (directory / "index.html").read_text()
    assert "loss is nan" in (directory / "02_train_and_upload.html").read_text()

    write_notebooks(repository)
    again = pipeline(repository, "--resume", directory.name)
    assert again.returncode == 0
    assert "explore: done before, and still holds" in again.stdout
    assert only_run(repository)[1]["state"] == "done"


DEAF = HANG.replace("time.sleep(300)", "while True:\n    try: time.sleep(300)\n    except BaseException: pass")
LIES = {
    "exit": ("import sys\nsys.exit(0)", "called sys.exit(), so the notebook stopped there and left no receipt"),
    "end": ("import os\nos._exit(0)", "the kernel died (exit status 0)"),
    "kill": (
        HANG.replace("time.sleep(300)", "os.kill(os.getpid(), 9)"),
        "the kernel was killed (signal 9), which is often the system's answer",
    ),
}


@pytest.fixture(scope="module")
def lying_runs(tmp_path_factory):
    """A run for each of `LIES`, and one that is stopped, at the same time."""
    folder = tmp_path_factory.mktemp("lies")
    repositories = {name: make_repository(folder / name, train=cell) for name, (cell, _) in LIES.items()}
    repositories["too long"] = make_repository(folder / "too long", "timeouts: {train: 12}", train=DEAF)
    processes = {name: start(repository, "--only", "train") for name, repository in repositories.items()}
    return {name: (repositories[name], result_of(process)) for name, process in processes.items()}


@pytest.mark.parametrize("name", LIES)
def test_what_papermill_takes_for_success_is_a_failure_without_a_receipt(lying_runs, name):
    repository, result = lying_runs[name]
    assert result.returncode == 1
    assert f"notebooks/02_train_and_upload.ipynb, cell 4: {LIES[name][1]}" in result.stderr
    assert "Traceback" not in result.stderr
    directory, record = only_run(repository)
    assert {stage: entry["state"] for stage, entry in record["stages"].items()} == {"train": "failed"}
    assert "failed" in (directory / "index.html").read_text()


def test_a_kernel_that_is_killed_leaves_no_child_behind(lying_runs):
    assert not any(alive(pid) for pid in pids_of(lying_runs["kill"][0]))


def test_a_stage_that_takes_too_long_is_stopped_with_its_kernel_even_if_it_ignores_interrupts(lying_runs):
    repository, result = lying_runs["too long"]
    assert result.returncode == 1
    assert "cell 4: took longer than its 12 seconds (timeouts in the profile) and was stopped" in result.stderr
    assert not any(alive(pid) for pid in pids_of(repository))


@pytest.fixture(scope="module")
def interrupted_runs(tmp_path_factory):
    """By signal, at the same time, a run that was interrupted in its first stage: repository, result, its processes."""
    folder, signals = tmp_path_factory.mktemp("interrupted"), (signal.SIGINT, signal.SIGTERM)
    repositories = {number: make_repository(folder / number.name, explore=HANG) for number in signals}
    processes, pids, results = {number: start(repositories[number]) for number in signals}, {}, {}
    try:
        for number in signals:
            pids[number] = pids_of(repositories[number])
            assert all(alive(pid) for pid in pids[number])
            processes[number].send_signal(number)
    finally:
        results = {number: result_of(processes[number]) for number in signals}
    return {number: (repositories[number], results[number], pids[number]) for number in signals}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_kernel_and_its_children_and_says_so(interrupted_runs, number):
    repository, result, pids = interrupted_runs[number]
    directory, record = only_run(repository)
    assert result.returncode == 130
    assert not any(alive(pid) for pid in pids)
    assert (record["state"], states(record)) == ("interrupted", ["interrupted", "pending", "pending", "pending"])
    assert record["stages"]["explore"]["error"]["cell"] == 4
    assert f'interrupted; go on with: make run ARGS="--resume {directory.name}' in result.stderr
    assert "Traceback" not in result.stderr


def test_an_interrupt_while_the_kernel_starts_leaves_none(tmp_path):
    repository = make_repository(tmp_path / "suite", explore=HANG)
    temporary = tmp_path / "temporary"  # the connection file lies here, and every kernel has its path in its command
    temporary.mkdir()
    process = start(repository, "--only", "explore", TMPDIR=str(temporary))
    try:
        wait_for(lambda: list(temporary.glob("*.json")), "the kernel's connection file")
        process.send_signal(signal.SIGTERM)
    finally:
        result = result_of(process)
    assert result.returncode == 130
    assert not list(repository.glob("runs/*/pids")), "the signal came before the first cell"
    commands = [Path(path).read_bytes() for path in glob.glob("/proc/[0-9]*/cmdline") if os.path.exists(path)]
    assert not [line for line in commands if str(temporary).encode() in line]


def test_a_killed_run_shows_that_it_was_killed_and_can_be_resumed(tmp_path):
    repository = make_repository(tmp_path, train=HANG)
    process = start(repository, "--only", "explore,train")
    try:
        pids = pids_of(repository)
        directory, record = only_run(repository)
        process.kill()
        wait_for(lambda: not alive(pids[0]), "the kernel's end, which its parent's should bring", 15)
        os.kill(pids[1], signal.SIGKILL)  # its child, which nobody is left to end
    finally:
        result = result_of(process)
    assert result.returncode == -signal.SIGKILL
    assert (record["state"], record["pid"]) == ("running", process.pid)
    assert states(record) == ["done", "running"]

    write_notebooks(repository)
    again = pipeline(repository, "--resume", directory.name)
    assert again.returncode == 0, again.stderr
    assert only_run(repository)[1]["state"] == "done"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A repository that `run_pipeline.main` takes for its own."""
    monkeypatch.setattr(run_pipeline, "ROOT", make_repository(tmp_path, "timeouts: {train: 90}\n"))
    monkeypatch.delenv("SUITE_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-p", "train.epoch=1"], "-p train.epoch=1: train has no parameter 'epoch'; did you mean epochs?"),
        (["-p", "trian.epochs=1"], "-p trian.epochs=1: there is no stage 'trian'; did you mean train?"),
        (["--only", "explore,deplyo"], "--only: there is no stage 'deplyo'; did you mean deploy?"),
        (["--from", "x"], "--from: there is no stage 'x'; there are explore, train, deploy, diagnose"),
        (["--params", "params/dem.yaml"], "cannot read params/dem.yaml (No such file or directory)"),
        (["--run-dir", "params/demo.yaml"], "--run-dir: cannot make "),
        (["--from", "deploy", "--only", "train"], "--from and --only together leave no stage to run"),
        (["--resume", "../n"], "there is no run '../n' in "),
        (["--resume", "20260101-000000-abcd"], "there is no run '20260101-000000-abcd' in "),
    ],
)
def test_a_wrong_command_exits_2_with_one_sentence_before_anything_starts(here, capsys, arguments, sentence):
    assert run_pipeline.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"run_pipeline.py: {sentence}")
    assert not (here / "runs").exists()


RUN = {"schema": 1, "run_id": "r", "state": "failed", "started": "then", "profile": {}, "stages": {}}
SWEPT = {"schema": 1, "sweep_id": "r", "started": "then", "members": {"1-a": {"state": "pending"}}}


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("run.json", "{", "not JSON: Expecting property name"),
        ("run.json", "[]", "it does not say schema 1 and run_id r"),
        ("run.json", json.dumps(RUN | {"run_id": "q"}), "it does not say schema 1 and run_id r"),
        ("run.json", json.dumps({**RUN, "profile": None}), "profile is missing or of a wrong type"),
        ("run.json", json.dumps(RUN | {"profile": []}), "profile is missing or of a wrong type"),
        ("run.json", json.dumps(RUN | {"profile": {"train": []}}), "a section of its profile is no mapping"),
        ("run.json", json.dumps(RUN | {"stages": {"train": {}}}), "one of its stages has no state"),
        ("sweep.json", "{", "not JSON: Expecting property name"),
        ("sweep.json", json.dumps(SWEPT | {"members": []}), "members is missing or of a wrong type"),
        ("sweep.json", json.dumps(SWEPT), "one of its members lacks values or figures"),
    ],
)
def test_a_record_that_is_broken_is_named_and_exits_2(here, capsys, name, text, why):
    folder = here / "runs" / "r"
    folder.mkdir(parents=True)
    (folder / name).write_text(text)
    assert run_pipeline.main(["--resume", "r"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"run_pipeline.py: cannot read {folder / name} ({why}")
    assert said.endswith("); move its folder away, or name another run\n")
    assert (folder / name).read_text() == text


def test_a_record_that_cannot_be_opened_is_named_and_exits_2(here, capsys):
    (here / "runs" / "r" / "run.json").mkdir(parents=True)
    assert run_pipeline.main(["--resume", "r"]) == 2
    assert f"cannot read {here / 'runs' / 'r' / 'run.json'} (Is a directory); move" in capsys.readouterr().err


def test_a_run_folder_that_is_closed_to_us_exits_2(here, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, to whom nothing is closed
    assert run_pipeline.main(["--only", "train"]) == 2
    (folder,) = (here / "runs").iterdir()
    assert capsys.readouterr().err == (
        f"run_pipeline.py: --run-dir: cannot read and write in {folder}; change its permissions or choose another\n"
    )


@pytest.mark.usefixtures("here")
def test_list_shows_stages_with_parameters_types_and_help(capsys):
    assert run_pipeline.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("explore  (")
    assert " ".join(next(line for line in lines if "epochs" in line).split()) == (
        "epochs: int = 2 passes over the images"
    )
    assert "run_id" not in "".join(lines)


def test_dry_run_shows_the_final_parameters_and_does_nothing(here, capsys):
    assert run_pipeline.main(["--dry-run", "--from", "train", "-p", "train.epochs=5"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("would run train, deploy, diagnose into ")
    assert "02_train_and_upload.ipynb, at most 90 s)" in out
    assert "  epochs = 5  (default 2)\n" in out
    assert not (here / "runs").exists()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "stages"),
    [
        ([], "explore, train, deploy, diagnose"),
        (["--only", "deploy,explore"], "explore, deploy"),
        (["--from", "train"], "train, deploy, diagnose"),
        (["--from", "train", "--only", "deploy"], "deploy"),
    ],
)
def test_stages_are_chosen_and_keep_their_order(capsys, arguments, stages):
    assert run_pipeline.main(["--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"would run {stages} into ")


@pytest.mark.parametrize("name", run_pipeline.PLACES)
def test_a_path_in_the_environment_means_one_in_the_current_folder_for_the_kernels_too(here, monkeypatch, name):
    for value, place in (("data", f"{here}/data"), ("gs://bucket", "gs://bucket"), ("", "")):
        monkeypatch.setenv(name, value)
        assert run_pipeline.main(["--list"]) == 0
        assert os.environ[name] == place


def entry(**changes):
    return {"notebook": "n.ipynb", "parameters": {}, "timeout": None} | changes


def test_a_stale_receipt_is_gone_before_its_stage_starts(tmp_path):
    stale = tmp_path / "train.receipt.json"
    stale.write_text("{}")
    Journal(tmp_path, {}, {"train": entry()}).begin("train", "inputs")
    assert not stale.exists()


def test_a_changed_artifact_or_input_makes_its_stage_run_again(good, tmp_path):
    directory = Path(shutil.copytree(good[1], tmp_path / good[1].name))
    inputs = json.loads((directory / "run.json").read_text())["stages"]["train"]["inputs"]
    assert Journal(directory, {}, {"train": entry()}).holds("train", inputs)
    assert not Journal(directory, {}, {"train": entry()}).holds("train", "other inputs")
    (directory / "train.txt").write_text("changed")
    assert not Journal(directory, {}, {"train": entry()}).holds("train", inputs)


def test_each_input_of_a_stage_is_in_its_digest(tmp_path, monkeypatch):
    notebook, receipt = tmp_path / "n.ipynb", tmp_path / "explore.receipt.json"
    notebook.write_text("1")
    monkeypatch.delenv("CIFAR100_DIR", raising=False)
    digests = [inputs_digest(notebook, {"a": 1}, [receipt]), inputs_digest(notebook, {"a": 2}, [receipt])]
    receipt.write_text("{}")
    digests.append(inputs_digest(notebook, {"a": 1}, [receipt]))
    monkeypatch.setenv("CIFAR100_DIR", "elsewhere")
    digests.append(inputs_digest(notebook, {"a": 1}, [receipt]))
    notebook.write_text("2")
    digests.append(inputs_digest(notebook, {"a": 1}, [receipt]))
    assert len(set(digests)) == 5
    assert digests[-1] == inputs_digest(notebook, {"a": 1}, [receipt])


def test_two_processes_cannot_work_in_one_run(tmp_path):
    with locked(tmp_path), pytest.raises(RunError, match="is still under way in another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
