"""What is committed: notebooks without outputs, and no secret, machine path or stray file anywhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from helpers.workspace import ROOT

SECRETS = {
    "a Google API key": r"AIza[0-9A-Za-z_-]{35}",
    "a Google service account": r"\"private_key_id\"\s*:\s*\"[0-9a-f]{20,}",
    "a private key": r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s*\n\s*[A-Za-z0-9+/]{40}",
    "a GitHub token": r"\bgh[pousr]_[0-9A-Za-z]{36}\b|\bgithub_pat_\w{50,}",
    "an AWS key": r"\bAKIA[0-9A-Z]{16}\b",
    "an ngrok token": r"\b[12][0-9A-Za-z]{26}_[0-9A-Za-z]{21}\b",
    "a W&B key": r"(?i)wandb\W?(?:_?api)?_?key\W{1,4}[0-9a-f]{40}\b",
    "a bearer token": r"(?i)\bbearer\s+[0-9a-z._~+/-]{32,}",
}
# A path of somebody's machine; documentation writes ~ or $HOME.
MACHINE = re.compile(r"(?<![\w.~-])/(?:home|Users|root|work|mnt|media)/[\w.-]+")
BINARY = {".onnx", ".npz", ".png", ".jpg", ".jpeg", ".h5", ".gz"}


def committed() -> list[Path]:
    """The files that git tracks, or would with ``git add``; none outside a checkout."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        output = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [path for name in output.decode().split("\0") if name and (path := ROOT / name).is_file()]


FILES = committed()
TEXTS = [path for path in FILES if path.suffix not in BINARY]
NOTEBOOKS = [path for path in FILES if path.suffix == ".ipynb"]
needs_git = pytest.mark.skipif(not FILES, reason="not a git checkout")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def findings(pattern: re.Pattern) -> list[str]:
    found = []
    for path in TEXTS:
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{name_of(path)}: {match[0][:60]}" for match in pattern.finditer(text)]
    return found


@needs_git
@pytest.mark.parametrize("what", SECRETS)
def test_no_file_holds_a_secret(what):
    assert not findings(re.compile(SECRETS[what])), what


SAMPLES = {
    "a Google API key": "AIza" + "x" * 35,
    "a Google service account": '"private_key_id": "' + "0" * 40,
    "a private key": "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "A" * 64,
    "a GitHub token": "ghp_" + "a" * 36,
    "an AWS key": "AKIA" + "A" * 16,
    "an ngrok token": "2" + "a" * 26 + "_" + "b" * 21,
    "a W&B key": "WANDB_API_KEY=" + "0" * 40,
    "a bearer token": "Authorization: Bearer " + "a" * 40,
}


@pytest.mark.parametrize("what", SECRETS)
def test_each_pattern_finds_what_it_is_for(what):
    assert re.search(SECRETS[what], SAMPLES[what])


@needs_git
def test_no_file_holds_a_path_of_a_machine():
    invented = {"/home/jovyan", "/home/jo"}  # the Jupyter images' user, and one that a test makes up
    assert not [line for line in findings(MACHINE) if line.rpartition(" ")[2] not in invented]


def test_the_pattern_for_paths_finds_homes_and_no_addresses():
    assert MACHINE.search('open("/' + "home/somebody/suite")
    assert not MACHINE.search("https://example.com/home/page ~/work/x src/home/x")


@needs_git
def test_nothing_is_committed_that_runs_or_tools_make():
    made = re.compile(r"(^|/)(runs|store|wandb|__pycache__|\.ipynb_checkpoints|\.venv)/|\.(pyc|log)$|(^|/)\.env$")
    assert not [name_of(path) for path in FILES if made.search(name_of(path))]


@needs_git
def test_the_four_notebooks_are_there():
    assert {path.name for path in NOTEBOOKS} >= {
        "01_explore_data.ipynb", "02_train_and_upload.ipynb", "03_deploy_and_monitor.ipynb", "04_diagnose_drift.ipynb"
    }  # fmt: skip


@each_notebook
def test_a_notebook_is_valid_and_its_cells_have_names_of_their_own(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len(set(ids))
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_a_notebook_is_committed_without_outputs_and_traces_of_runs(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id
        assert not {"papermill", "execution"} & cell.metadata.keys(), cell.id
        assert "injected-parameters" not in cell.metadata.get("tags", [])
    assert not {"papermill", "widgets", "signature"} & notebook.metadata.keys()


@each_notebook
def test_a_notebook_composes_helpers_in_short_cells(path):
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells, 1):
        if cell.cell_type != "code":
            continue
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 15 or "parameters" in cell.metadata.get("tags", []), f"cell {number}: {len(lines)} lines"
        code = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)  # magics are IPython's, not Python's
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        defined = [node.name for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]
        assert not defined, f"cell {number} defines {defined}; that belongs in helpers/"


@each_notebook
def test_a_notebook_has_one_parameters_cell_and_opens_with_a_title(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert cells[0].cell_type == "markdown"
    assert re.match(r"# \S", cells[0].source)


def hook(name: str) -> str:
    """The command of a pre-commit hook, with the Python that runs these tests."""
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (entry,) = [item["entry"] for repo in config["repos"] for item in repo["hooks"] if item["id"] == name]
    return entry.replace(".venv/bin/python", f'"{sys.executable}"')


def test_the_nbstripout_hook_removes_outputs_and_traces_of_papermill(tmp_path):
    path = tmp_path / "n.ipynb"
    cell = nbformat.v4.new_code_cell("1 + 1", execution_count=3, metadata={"papermill": {"status": "completed"}})
    cell.outputs = [nbformat.v4.new_output("stream", text="2")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {"parameters": {"a": 1}}}), path)

    subprocess.run(f'{hook("nbstripout")} "{path}"', shell=True, check=True, timeout=60)

    stripped = nbformat.read(path, as_version=4)
    assert (stripped.cells[0].outputs, stripped.cells[0].execution_count) == ([], None)
    assert "papermill" not in stripped.metadata
    assert "papermill" not in stripped.cells[0].metadata
