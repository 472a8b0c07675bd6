"""The real pipeline over tiny notebooks that write real receipts, as a process of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import run_pipeline
from helpers.workspace import ROOT

PARAMETERS = """\
epochs: int = 2  # passes over the images
rate: float = 0.1  # learning rate
label: str = "x"  # a word
fast: bool = True  # whether to hurry
run_id: str = ""  # set by the pipeline
run_dir: str = ""  # set by the pipeline"""
START = (
    "from helpers.receipts import start_stage\n"
    "clock, more = start_stage({stage!r}, run_dir, run_id, {{'epochs': epochs}}), {{}}"
)
FINISH = """\
artifact = clock.directory / f"{clock.stage}.txt"
artifact.write_text(f"{clock.stage} {rate} {label} {fast}")
clock.finish(data={"source": "stand-in", "fingerprint": "f0", "synthetic": True},
             results={"top_1": 0.51234, "epochs": epochs, **more}, artifacts={"text": artifact})"""
# The kernel says who it and its child (which no interrupt ends) are, and then works for ever.
HANG = """\
import os, pathlib, subprocess, time
child = subprocess.Popen(["sh", "-c", "trap '' INT; exec sleep 300"])
pathlib.Path(run_dir, "pids.tmp").write_text(f"{os.getpid()} {child.pid}")
pathlib.Path(run_dir, "pids.tmp").rename(pathlib.Path(run_dir, "pids"))
time.sleep(300)"""


def write_notebooks(repository: Path, **cells: str) -> None:
    """The four notebooks, tiny; `cells` gives a stage one cell of its own between start and receipt."""
    (repository / "notebooks").mkdir(parents=True, exist_ok=True)
    for stage, name in run_pipeline.STAGES.items():
        sources = [START.format(stage=stage), *([cells[stage]] if stage in cells else []), FINISH]
        notebook = new_notebook(
            cells=[
                new_markdown_cell(f"# {stage}", id="title"),
                new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
                *(new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)),
            ],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                "language_info": {"name": "python"},
            },
        )
        nbformat.write(notebook, repository / "notebooks" / name)


def make_repository(folder: Path, profile: str = "train: {epochs: 3}\n", **cells: str) -> Path:
    """The real pipeline and helpers with tiny notebooks and a profile of their own."""
    shutil.copytree(ROOT / "helpers", folder / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run_pipeline.py", folder)
    (folder / "params").mkdir()
    (folder / "params" / "demo.yaml").write_text(profile)
    write_notebooks(folder, **cells)
    return folder


def start(repository: Path, *arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "run_pipeline.py", *arguments],
        cwd=repository,
        env={key: value for key, value in os.environ.items() if key != "SUITE_RUNS"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def result_of(process: subprocess.Popen) -> Result:
    with process:
        try:
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.kill()
    return Result(process.returncode, stdout, stderr)


def pipeline(repository: Path, *arguments: str) -> Result:
    return result_of(start(repository, *arguments))


def only_run(repository: Path) -> tuple[Path, dict]:
    (directory,) = (repository / "runs").iterdir()
    return directory, json.loads((directory / "run.json").read_text())


def states(record: dict) -> list[str]:
    return [stage["state"] for stage in record["stages"].values()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # a system without /proc, or the process went between the two lines
        return not Path("/proc/self").exists()
    return state != "Z"


def wait_for(condition, what: str, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.05)
    return value


def pids_of(repository: Path) -> list[int]:
    (file,) = wait_for(lambda: list(repository.glob("runs/*/pids")), "the cell that hangs")
    return [int(pid) for pid in file.read_text().split()]
