"""What the README says is so: its commands work, and the names in it exist."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml
from conftest import make_bundle
from PIL import Image

import run_pipeline
from helpers.delivery.model_dir import resolve
from helpers.delivery.storage import open_store
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.inference.predictor import Predictor
from helpers.registry import Registry
from helpers.serving.service import create_app
from helpers.workspace import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
]
REPOSITORY = "cifar100-suite/cifar100-notebook-suite"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The service as `make serve` starts it, over a store with one version in production."""
    folder = tmp_path_factory.mktemp("readme")
    store = open_store((folder / "store").as_uri())
    registry = Registry(store, "cifar100-vgg16")
    registry.promote(registry.publish(make_bundle(folder / "bundle", name="cifar100-vgg16").path), reason="test")

    def load(model_dir):
        return load_model(resolve(store, model_dir, folder / "cache"))

    predictor = Predictor(load("models/cifar100-vgg16"))
    yield create_app(predictor, load, "models/cifar100-vgg16")
    predictor.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("curl ")])
def test_a_curl_line_works_when_pasted(line, app, tmp_path):
    Image.new("RGB", (32, 32), "orange").save(tmp_path / "picture.png")
    np.save(tmp_path / "images.npy", np.zeros((3, 32, 32, 3), np.uint8))
    with Server(app, port=0) as server:
        command = line.replace("http://127.0.0.1:8000", server.url).replace(
            "curl ", "curl --silent --show-error --fail "
        )
        result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    if "predict_single" in line:
        assert re.fullmatch(r'"class_\d\d"', result.stdout)
    if "predict_batch" in line:
        assert len(json.loads(result.stdout)["predictions"]) == 3


@pytest.mark.parametrize("line", [line for line in COMMANDS if "run_pipeline.py" in line and "RUN_ID" not in line])
def test_a_pipeline_line_is_accepted(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    arguments = line.split("run_pipeline.py")[1].split()
    check = [] if {"--list", "--dry-run"} & set(arguments) else ["--dry-run"]
    assert run_pipeline.main([*arguments, *check]) == 0, capsys.readouterr().err


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"(?:^|[`/] ?|folder )make (?:PYTHON=\S+ )?([a-z-]+)\b", README, re.M))
    assert named >= {"run", "test", "lab", "serve", "help", "lint"}
    assert named <= targets


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) >= 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_route_of_the_service_is_in_the_table_and_the_other_way_round(app):
    rows = re.findall(r"^\| (`(?:GET|POST).*?) \|", README, re.M)
    stated = {path.split("?")[0] for row in rows for path in re.findall(r"(/[\w/?=]*)", row.replace("`", " "))}
    protocol = {path for path in app.openapi()["paths"] if path.startswith("/v2")}
    assert stated == {"/", *app.openapi()["paths"]} - protocol
    assert protocol
    assert "\n| `/v2/...` | the Open Inference Protocol" in README


def test_every_profile_is_in_the_table():
    assert {f"params/{path.name}" for path in (ROOT / "params").glob("*.yaml")} == set(
        re.findall(r"\]\((params/\w+\.yaml)\)", README)
    )


def test_the_badges_open_these_notebooks_and_all_texts_name_one_repository():
    badges = re.findall(r"colab\.research\.google\.com/github/([\w./-]+)\)", README)
    notebooks = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(badges) == [f"{REPOSITORY}/blob/main/notebooks/{name}" for name in notebooks]
    for name in notebooks:
        text = (ROOT / "notebooks" / name).read_text(encoding="utf-8")
        assert f"colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{name})" in text
        assert f"https://github.com/{REPOSITORY} /content/suite" in text


def test_the_environment_variables_it_names_are_read_somewhere():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "helpers").rglob("*.py"))
    code += "".join(path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").glob("*.ipynb"))
    named = set(re.findall(r"`((?:SUITE|CIFAR100|NGROK|PYNGROK|WANDB)_[A-Z_]+)", README))
    assert named
    assert [name for name in sorted(named) if name not in code] == []


def test_the_flow_of_ci_runs_what_the_readme_says():
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert {"make run", "make lint"} <= set(commands)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_figures_of_the_ablation_are_those_of_its_file():
    result = json.loads((ROOT / "benchmarks" / "results" / "ablation.json").read_text(encoding="utf-8"))
    for name, row in result["arms"].items():
        low, high = (f"{100 * value:+.1f}" for value in row["interval"])
        seen = f"{row['epochs'] * row['images_an_epoch']:,}"
        points = f"{100 * row['difference']:+.1f} ({low} to {high})"
        assert f"| {name} | {row['accuracy']:.1%} | {points} | {seen} |" in README
    assert f"images, seed {result['seed']}, one run an arm" in README
    assert f"does on {result['options']['images']:,} images" in README
