"""helpers/score.py: the command, here and on a Ray cluster where Ray is installed."""

import csv
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_bundle
from served import IMAGES, PNG

from helpers import score
from helpers.delivery.storage import open_store
from helpers.inference.bulk import SCHEMA
from helpers.registry import Registry
from helpers.workspace import ROOT


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one version in production, and its id."""
    folder = tmp_path_factory.mktemp("score")
    store = open_store((folder / "store").as_uri())
    registry = Registry(store, "tiny")
    version = registry.publish(make_bundle(folder / "bundle").path)
    registry.promote(version, reason="test")
    return store.url, version


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    (folder / "b.png").write_bytes(PNG[:50])
    return folder


def run(store, source, out, *more):
    return score.main([str(source), "--out", str(out), "--bucket", store[0], "--model", "models/tiny", *more])


def test_a_folder_becomes_a_table_and_the_end_says_how_fast(store, pictures, tmp_path, capsys):
    out = tmp_path / "new" / "scores.parquet"
    assert run(store, pictures, out, "--top-k", "2") == 0
    good, bad = pq.read_table(out).to_pylist()
    assert (good["path"], good["version"], good["error"], len(good["top"])) == ("a.png", store[1], None, 2)
    assert good["class"] == good["top"][0][0]
    assert (bad["path"], bad["class"], bad["top"]) == ("b.png", None, None)
    assert "cut off" in bad["error"]
    said = capsys.readouterr().out
    assert said.startswith("1 images in ")
    assert f" a second, by version {store[1]}; 1 could not be read, their rows say why\nlook at {out}\n" in said
    assert [path.name for path in out.parent.iterdir()] == ["scores.parquet"]


def test_an_array_becomes_a_csv_file(store, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    assert run(store, tmp_path / "images.npy", tmp_path / "scores.csv") == 0
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(index) for index in range(len(IMAGES))]
    assert list(rows[0]) == ["path", "class", "probability", "top", "version", "error"]
    top = json.loads(rows[0]["top"])
    assert (len(top), next(iter(top)), rows[0]["error"]) == (5, rows[0]["class"], "")


def test_without_any_image_the_status_is_1(store, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "notes.txt").write_text("none")
    assert run(store, tmp_path / "pictures", tmp_path / "scores.csv") == 1


@pytest.mark.parametrize(
    ("out", "more", "sentence"),
    [
        ("scores.json", [], "--out must end with .parquet or .csv, got "),
        ("scores.csv", ["--top-k", "101"], "--top-k must be 1 to 100, got 101"),
        ("scores.csv", ["--model", "models/other"], "model 'other' has no alias 'production' in "),
        ("scores.csv", ["--model", "../x"], "model_dir must be models/<name>"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_no_file(store, pictures, tmp_path, capsys, out, more, sentence):
    assert run(store, pictures, tmp_path / out, *more) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {sentence}")
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.glob("*scores*"))


def test_a_run_that_ends_before_its_end_leaves_no_file(store, pictures, tmp_path, monkeypatch):
    def fail(*_):
        yield from ()
        raise OSError("no space left on device")

    monkeypatch.setattr(score, "score", fail)
    assert run(store, pictures, tmp_path / "scores.csv") == 2
    assert not list(tmp_path.glob("*scores*"))


def test_a_folder_in_the_place_of_the_file_is_refused_before_anything_is_scored(
    store, pictures, tmp_path, monkeypatch, capsys
):
    (tmp_path / "scores.csv").mkdir()
    monkeypatch.setattr(score, "score", lambda *_: pytest.fail("it was scored"))
    assert run(store, pictures, tmp_path / "scores.csv") == 2
    assert capsys.readouterr().err == (
        f"error: --out must be a file, got the folder '{tmp_path}/scores.csv'; name a file in it\n"
    )
    assert not list((tmp_path / "scores.csv").iterdir())


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
def test_an_interrupted_run_ends_quietly_with_130_and_leaves_no_file(
    store, pictures, tmp_path, monkeypatch, capsys, name
):
    def interrupt(*_):
        yield from ()
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "score", interrupt)
    assert run(store, pictures, tmp_path / name) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert "error" not in captured.err
    assert not list(tmp_path.glob("*scores*"))


@pytest.mark.parametrize("name", ["scores.parquet", "scores.csv"])
def test_of_two_runs_to_one_file_the_last_to_end_is_there_whole(tmp_path, name):
    out, counts = tmp_path / name, {"other": 2, "own": 3000}
    batches = {
        key: pa.RecordBatch.from_pylist([{"path": key, "version": "v"}] * count, schema=SCHEMA)
        for key, count in counts.items()
    }
    with score._writer(out) as own:
        own(batches["own"])
        with score._writer(out) as other:
            other(batches["other"])
        assert out.is_file()
        own(batches["own"])
    if out.suffix == ".csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    else:
        rows = pq.read_table(out).to_pylist()
    assert [row["path"] for row in rows] == ["own"] * 6000
    assert list(tmp_path.iterdir()) == [out]


def test_without_ray_its_engine_names_what_to_install(store, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(store, pictures, tmp_path / "scores.csv", "--engine", "ray") == 2
    assert "install it with: pip install --require-hashes -r requirements/ray.lock" in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="Ray is not installed")
def test_on_a_ray_cluster_the_table_is_the_same(store, pictures, tmp_path):
    for index in range(200):
        (pictures / f"c{index:03d}.png").write_bytes(PNG if index % 3 else b"none")
    assert run(store, pictures, tmp_path / "here.parquet") == 0
    arguments = [
        str(pictures),
        "--out",
        str(tmp_path / "there.parquet"),
        "--bucket",
        store[0],
        "--model",
        "models/tiny",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "helpers.score", *arguments, "--engine", "ray"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    here, there = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("here", "there"))
    for name in ("path", "class", "version", "error"):
        assert here[name] == there[name]
    np.testing.assert_allclose(
        np.array(here["probability"].to_pylist(), float), np.array(there["probability"].to_pylist(), float), atol=0.02
    )
