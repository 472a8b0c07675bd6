"""`workspace`: which folder, bucket and secret a name stands for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.workspace import ROOT, bucket_url, run_directory, secret, show


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch):
    for name in ("SUITE_BUCKET", "SUITE_RUNS", "A_SECRET", "A_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def secret_file(monkeypatch, tmp_path):
    file = tmp_path / "secret"
    file.write_text("  from the file\n")
    file.chmod(0o600)
    monkeypatch.setenv("A_SECRET_FILE", str(file))
    return file


def test_the_root_is_the_folder_that_holds_the_helpers_from_wherever_python_starts(tmp_path):
    assert (ROOT / "helpers" / "workspace.py").is_file()
    program = "from helpers.workspace import ROOT; print(ROOT)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert Path(printed.strip()) == ROOT


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [
        ("gs://mine", "gs://theirs", "gs://mine"),
        ("", "gs://theirs", "gs://theirs"),
        ("", "", (ROOT / "store").as_uri()),
        ("", None, (ROOT / "store").as_uri()),
    ],
)
def test_the_bucket_is_the_argument_then_the_environment_then_the_store_here(argument, variable, expected, monkeypatch):
    if variable is not None:
        monkeypatch.setenv("SUITE_BUCKET", variable)
    assert bucket_url(argument) == expected


def test_a_run_writes_where_the_pipeline_says(tmp_path, monkeypatch):
    monkeypatch.setenv("SUITE_RUNS", str(tmp_path / "elsewhere"))
    assert run_directory(str(tmp_path / "runs" / "7")) == tmp_path / "runs" / "7"
    assert (tmp_path / "runs" / "7").is_dir()
    assert not (tmp_path / "elsewhere").exists()


def test_a_relative_run_directory_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_directory("runs/7") == tmp_path / "runs" / "7"


def test_an_interactive_session_writes_to_the_folder_interactive_and_may_do_so_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SUITE_RUNS", str(tmp_path))
    assert run_directory() == run_directory() == tmp_path / "interactive"
    assert (tmp_path / "interactive").is_dir()


def test_a_secret_comes_from_the_environment_without_the_space_around_it(monkeypatch):
    monkeypatch.setenv("A_SECRET", " value\n")
    assert secret("A_SECRET") == "value"


def test_a_secret_comes_from_its_file(secret_file):
    assert secret("A_SECRET") == "from the file"


def test_the_environment_wins_over_the_file(secret_file, monkeypatch):
    monkeypatch.setenv("A_SECRET", "from the environment")
    assert secret("A_SECRET") == "from the environment"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_secret_that_is_not_set_is_none(value, monkeypatch):
    if value is not None:
        monkeypatch.setenv("A_SECRET", value)
        monkeypatch.setenv("A_SECRET_FILE", value)
    assert secret("A_SECRET") is None


def test_an_empty_file_holds_no_secret(secret_file):
    secret_file.write_text("\n")
    assert secret("A_SECRET") is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o777])
def test_a_file_that_others_may_touch_is_refused_with_the_command_that_mends_it(mode, secret_file):
    secret_file.chmod(mode)
    with pytest.raises(PermissionError) as caught:
        secret("A_SECRET")
    assert str(caught.value) == (
        f"A_SECRET_FILE: {secret_file} can be read by others (mode {mode:04o}); run: chmod 600 {secret_file}"
    )


def test_a_file_that_is_not_there_is_an_error_and_not_a_missing_secret(monkeypatch, tmp_path):
    monkeypatch.setenv("A_SECRET_FILE", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        secret("A_SECRET")


def test_whoever_has_seen_enough_may_leave_before_the_last_line():
    program = "import itertools; from helpers.workspace import show; show(map(str, itertools.count()))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(10) == 0


def test_all_lines_are_shown_to_whoever_reads_on(capsys):
    show(["a", "b"])
    assert capsys.readouterr().out == "a\nb\n"
