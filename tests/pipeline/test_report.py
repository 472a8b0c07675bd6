"""pipeline/report.py: what a reader of a run sees."""

import subprocess

import nbformat
import pytest

from helpers.pipeline.report import describe, export_html, how_to_go_on, key_results, synthetic_warning, write_index
from helpers.receipts import Receipt
from helpers.workspace import ROOT


def receipt(stage="train", synthetic=False, **results):
    return Receipt(
        stage=stage, run_id="r", started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00",
        duration_s=60.0, parameters={}, data={"source": "CIFAR-100", "fingerprint": "f", "synthetic": synthetic},
        results=results, artifacts={},
    )  # fmt: skip


def record(state="done", error=None, **parameters):
    stage = {"state": state, "notebook": "notebooks/02_train.ipynb", "parameters": parameters, "error": error}
    return {"run_id": "r", "state": state, "started": "then", "finished": None, "stages": {"train": stage}}


def test_key_results_are_single_values_to_four_digits():
    found = key_results(receipt(top_1=0.512345, epochs=2, version="v1", gate=True, per_class=[1, 2], table={"a": 1}))
    assert found == {"top 1": "0.5123", "epochs": "2", "version": "v1", "gate": "True"}


def test_synthetic_data_is_named_by_stage_and_real_data_not_at_all():
    receipts = {"explore": receipt("explore"), "train": receipt(synthetic=True)}
    assert synthetic_warning(receipts).startswith("SYNTHETIC DATA in train: drawn by a program, not CIFAR-100.")
    assert synthetic_warning({"explore": receipt("explore")}) == ""


@pytest.mark.parametrize("name", ["runs", "my runs", "{runs}", "it's", "50 $ `each`", 'a "b" \\c'])
def test_the_command_to_go_on_can_be_pasted_whatever_the_folder_is_called(tmp_path, name):
    (tmp_path / "Makefile").write_text("run:\n\t@printf '%s\\n' $(ARGS)\n")
    directory = tmp_path / name / "20260101-000000-abcd"
    pasted = subprocess.run(
        how_to_go_on(directory), cwd=tmp_path, shell=True, capture_output=True, text=True, check=True, timeout=60
    )
    assert pasted.stdout.splitlines() == ["--resume", directory.name, "--run-dir", str(directory.parent)]


def test_the_command_to_go_on_names_no_folder_but_an_unusual_one():
    assert how_to_go_on(ROOT / "runs" / "r") == 'make run ARGS="--resume r"'


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_index_says_loudly_that_data_was_synthetic_and_only_then(tmp_path, synthetic):
    page = write_index(tmp_path, record(), {"train": receipt(synthetic=synthetic)}).read_text()
    assert ("<p class=loud>SYNTHETIC DATA" in page) is synthetic
    assert ("CIFAR-100 (SYNTHETIC)" in page) is synthetic


def test_the_index_links_only_what_is_there(tmp_path):
    (tmp_path / "02_train.ipynb").touch()
    page = write_index(tmp_path, record(), {}).read_text()
    assert 'href="02_train.ipynb"' in page
    assert "02_train.html" not in page
    assert "train.receipt.json" not in page


def test_what_people_and_errors_say_is_text_and_not_html(tmp_path):
    error = {"notebook": "n.ipynb", "cell": 3, "message": "ValueError: <script>"}
    run = record("failed", error, label="<b>&")
    page = write_index(tmp_path, run, {"train": receipt(version="<i>")}).read_text()
    assert "n.ipynb, cell 3: ValueError: &lt;script&gt;" in page
    assert "&lt;b&gt;&amp;" in page
    assert "&lt;i&gt;" in page
    assert "<script>" not in page


def test_an_error_without_a_cell_is_one_line_too():
    assert describe({"notebook": "n.ipynb", "cell": None, "message": "no"}) == "n.ipynb: no"


def test_an_executed_notebook_becomes_a_page_with_its_code(tmp_path):
    cell = nbformat.v4.new_code_cell("answer = 6 * 7", outputs=[nbformat.v4.new_output("stream", text="forty-two")])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    page = export_html(tmp_path / "n.ipynb")
    assert page == tmp_path / "n.html"
    assert "answer" in page.read_text()
    assert "forty-two" in page.read_text()
