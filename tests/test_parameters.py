"""The parameters that the notebooks declare: every one typed and explained, and the default profile says the same."""

import re
import subprocess
import sys

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

from helpers.pipeline.profile import ALL, OWN, TIMEOUTS, TYPES, declared_parameters, read_profile, settings
from helpers.workspace import ROOT
from run_pipeline import STAGES

NOTEBOOKS = {stage: ROOT / "notebooks" / name for stage, name in STAGES.items()}
PROFILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.fixture(scope="module")
def declared():
    return {stage: declared_parameters(path) for stage, path in NOTEBOOKS.items()}


def parameters_cell(stage: str) -> str:
    cells = nbformat.read(NOTEBOOKS[stage], as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell.source


@pytest.mark.parametrize("stage", STAGES)
def test_every_parameter_is_a_typed_literal_with_help(stage, declared):
    for line in parameters_cell(stage).splitlines():
        if line.strip() and not line.startswith("#"):
            assert re.fullmatch(r"[a-z]\w*: (int|float|str|bool) = [^#=|]+  # [^=|]+", line), line
    for item in declared[stage].values():
        assert item.help, item.name
        assert type(item.default) is TYPES[item.type], f"{item.name}: {item.type} = {item.default!r}"


@pytest.mark.parametrize("stage", STAGES)
def test_papermill_shows_every_line_of_the_cell_typed_and_explained(stage, declared):
    shown = CliRunner().invoke(papermill, ["--help-notebook", str(NOTEBOOKS[stage])]).stdout
    written = re.findall(r"^(\w+): (\w+) =", parameters_cell(stage), re.M)
    assert [(item.name, item.type) for item in declared[stage].values()] == written
    for item in declared[stage].values():
        assert re.search(rf"^  {item.name}: {item.type} \(default .*\)\s+{re.escape(item.help)}$", shown, re.M), (
            item.name
        )
    assert "Unknown type" not in shown


@pytest.mark.parametrize("stage", STAGES)
def test_the_pipelines_own_two_are_empty_by_default(stage, declared):
    assert {name: declared[stage][name].default for name in OWN} == {"run_id": "", "run_dir": ""}


@pytest.mark.parametrize("stage", STAGES)
def test_no_parameter_asks_for_a_secret(stage, declared):
    secret = re.compile(r"token|secret|passw|api_?key|credential|auth", re.I)
    assert not [name for name in declared[stage] if secret.search(name)], (
        "papermill writes parameters into the notebook"
    )


def test_parameters_of_one_name_have_one_type(declared):
    """Otherwise ``all.NAME`` could not be given."""
    types = {}
    for parameters in declared.values():
        for item in parameters.values():
            assert types.setdefault(item.name, item.type) == item.type, item.name


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_profile_is_accepted_and_opens_with_its_command(path, declared):
    assert settings(declared, read_profile(path), origin=path.name)
    assert path.read_text().startswith("#")
    comment = path.read_text().split("\nall:")[0]
    assert f"--params params/{path.name}" in comment or f"PARAMS=params/{path.name}" in comment


def test_the_default_profile_equals_the_notebooks_defaults(declared):
    sections = read_profile(ROOT / "params" / "demo.yaml")
    assert set(sections) == {ALL, TIMEOUTS, *STAGES}
    for stage, parameters in declared.items():
        defaults = {name: item.default for name, item in parameters.items() if name not in OWN}
        shared = {name: value for name, value in sections[ALL].items() if name in defaults}
        assert shared | sections[stage] == defaults, f"params/demo.yaml and {NOTEBOOKS[stage].name} differ"
    assert set(sections[TIMEOUTS]) == set(STAGES)


def test_a_misspelt_parameter_of_the_real_notebooks_exits_2_and_names_the_right_one(tmp_path):
    command = [sys.executable, "run_pipeline.py", "--run-dir", str(tmp_path), "-p", "train.epoch=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "run_pipeline.py: -p train.epoch=1: train has no parameter 'epoch'; did you mean epochs?\n"
    )
    assert list(tmp_path.iterdir()) == []
