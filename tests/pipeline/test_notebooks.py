"""Single lines of the notebooks, run without a kernel on values that a run seldom has."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest

from helpers.pipeline.profile import declared_parameters
from helpers.workspace import ROOT
from run_pipeline import STAGES


def statements(stage: str, cell_id: str) -> list[str]:
    """The statements of a cell, without IPython's magics."""
    cells = nbformat.read(ROOT / "notebooks" / STAGES[stage], as_version=4).cells
    (source,) = [cell.source for cell in cells if cell.id == cell_id]
    code = re.sub(r"^(\s*)[%!].*$", r"\1pass", source, flags=re.M)
    return [ast.unparse(node) for node in ast.parse(code).body]


@pytest.mark.parametrize(
    ("cell_id", "name", "row"),
    [("unusual-answers", "unusual", ("a", 400, "<name>", 0.1)), ("replace-model", "sentences", ("a", 400, "<name>"))],
)
def test_a_table_shows_the_whole_sentence_of_the_server(cell_id, name, row):
    columns = ["file", "status", "answer", "seconds"]
    table = eval(statements("deploy", cell_id)[-1], {"pd": pd, "columns": columns, name: [row]})
    assert "&lt;name&gt;" in table.to_html()


@pytest.mark.parametrize(
    ("log", "run_id", "found"), [("", "r", ["runs/r"]), ("", "", ["newest in runs"]), ("a.db", "r", ["a.db"])]
)
def test_a_run_diagnoses_no_log_of_another_run(log, run_id, found):
    scope = {"log": log, "run_id": run_id, "ROOT": Path(), "stage": SimpleNamespace(directory=Path("runs/r"))}
    scope |= {"find_logs": lambda place: [str(place)], "newest_logs": lambda runs: [f"newest in {runs}"]}
    exec("\n".join(statements("diagnose", "find-logs")[:2]), scope)
    assert scope["paths"] == found


@pytest.mark.parametrize(("previous", "word"), [(None, "nothing"), ("v1", "v1")])
def test_before_the_first_promotion_nothing_was_in_production(previous, word, capsys):
    alias = SimpleNamespace(version="v2", previous=previous)
    exec("\n".join(statements("train", "upload")[-2:]), {"alias": alias, "promoted": alias})
    assert capsys.readouterr().out == f"Production is v2, before it {word}\n"


@pytest.mark.parametrize("count", [0, 3])
def test_groups_of_equal_images_are_spoken_of_only_where_there_are_some(count):
    duplicates = SimpleNamespace(within_train=0, within_test=0, across=0, conflicting=0, groups=[()] * count)
    scope = {"statistics": SimpleNamespace(duplicates=duplicates), "images": [()] * count, "test": range(10)}
    said = []
    exec("\n".join(statements("explore", "duplicate-finding")), scope | {"Markdown": str, "display": said.append})
    assert said[0].startswith("*Figure 5. " if count else "**Finding.** ")
    assert ("0 of the 3 groups of equal images" in said[0]) is bool(count)
    assert ("groups" in said[0]) is bool(count)


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_outside_the_repository_says_where_it_must_run(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"must run in the repository, not in .*; papermill takes --cwd"):
        exec("\n".join(statements(stage, "bootstrap")), {})


@pytest.mark.parametrize(
    ("stage", "cell_id", "name"),
    [
        ("explore", "imports", "seed"),
        ("deploy", "imports-rest", "serve_seconds"),
        ("deploy", "imports-rest", "seed"),
        ("diagnose", "imports-rest", "seed"),
    ],
)
def test_a_negative_number_is_refused_by_name_before_any_work(stage, cell_id, name):
    scope = {item.name: item.default for item in declared_parameters(ROOT / "notebooks" / STAGES[stage]).values()}
    (check,) = [code for code in statements(stage, cell_id) if re.match(r"if .* < 0", code)]
    exec(check, scope)
    with pytest.raises(ValueError, match=rf"\b{name}\b.* at least 0.*, got .*-1\b"):
        exec(check, scope | {name: -1})
