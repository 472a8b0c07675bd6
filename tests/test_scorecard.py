"""helpers/scorecard.py: a model whose answers are known, and a bundle scored from the command line."""

import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_bundle

from helpers import scorecard
from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split, choose_per_class, draw_dataset
from helpers.data.synthetic import synthetic_labels
from helpers.inference.engine import Scores
from helpers.scorecard import find_intervals, format_table, main, score_model
from helpers.training.evaluation import bootstrap_interval
from helpers.workspace import ROOT


class Rote:
    """A model that knows the test images by heart and takes everything else for the class after the right one."""

    labels, engine_name, precision, threads = synthetic_labels(), "rote", "f32", 1
    bundle = SimpleNamespace(manifest=SimpleNamespace(name="rote", version="1", temperature=2.0))

    def __init__(self, test, wrong_at):
        self.known = {image.tobytes(): label for image, label in zip(test.images, test.labels, strict=True)}
        for index in wrong_at:
            self.known[test.images[index].tobytes()] += 1

    def predict(self, images, *, shared=False):
        answers = [self.known.get(image.tobytes(), -1) for image in images]
        logits = np.where(np.array(answers)[:, None] < 0, 0, 9 * np.eye(100)[answers]).astype(np.float32)
        return Scores(logits, logits, logits)


@pytest.fixture(scope="module")
def data():
    """200 test images; training holds copies of 20, which carry the only wrong answers, and 100 other images."""
    random = np.random.default_rng(0)
    dataset = draw_dataset(train_per_class=1, test_per_class=2)
    patches = random.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)  # textures: drawn shapes resemble each other
    test = Split(patches.repeat(2, axis=1).repeat(2, axis=2), dataset.test.labels)
    train = Split(np.concatenate([dataset.train.images, test.images[:20]]), np.arange(120) % 100)
    return replace(dataset, train=train, test=test)


@pytest.fixture(scope="module")
def card(data):
    return score_model(Rote(data.test, wrong_at=range(10)), data, per_class=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("scorecard") / "bundle", labels=synthetic_labels()).path


@pytest.fixture
def quick(monkeypatch, data):
    """The command with few images: the small data, and two corruptions."""
    monkeypatch.setattr(scorecard, "load_dataset", lambda source: data)
    monkeypatch.setattr(scorecard, "CORRUPTIONS", ("contrast", "fog"))


def test_a_scorecard_counts_what_the_model_answers(card):
    assert card.evaluation.top1 == 190 / 200
    assert card.corruption_images == 100
    assert card.clean >= 0.9
    assert list(card.corruptions) == list(CORRUPTIONS)
    assert {value for values in card.corruptions.values() for value in values} <= {0.0, 0.01}  # unknown: class 0
    assert card.mean_corruption_accuracy < 0.02


def test_each_corruption_is_scored_at_each_severity(monkeypatch, data):
    monkeypatch.setattr(scorecard, "CORRUPTIONS", ("contrast", "fog"))
    model, sample = Rote(data.test, wrong_at=()), choose_per_class(data.test.labels, 1)
    for image, label in zip(corrupt(data.test.images[sample], "contrast", 4), data.test.labels[sample], strict=True):
        model.known[image.tobytes()] = label

    found = score_model(model, data, per_class=1).corruptions

    assert found["contrast"][3] == 1
    assert max(*found["contrast"][:3], found["contrast"][4], *found["fog"]) <= 0.01


def test_near_duplicates_are_left_out_of_the_second_accuracy(card):
    assert card.near_duplicates == 20
    assert card.top1_without_duplicates == (1.0, 1.0, 1.0)


def test_intervals_hold_their_figures_and_are_as_wide_as_statistics_says():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2000, 10))
    targets = np.where(random.random(2000) < 0.6, logits.argmax(axis=1), 0)
    found = find_intervals(logits, targets, np.arange(10) // 2, 0.5)

    low, high = found["top1"]
    accuracy = np.mean(logits.argmax(axis=1) == targets)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / 2000), rel=0.1)
    assert found["top1"] == bootstrap_interval(logits.argmax(axis=1) == targets)
    five = np.argsort(-logits, axis=1)[:, :5]
    assert found["top5"] == bootstrap_interval((five == targets[:, None]).any(axis=1))
    for low, high in found.values():
        assert 0 <= low < high


def test_the_interval_of_a_calibration_error_holds_the_error(card):
    for name in ("calibration_error_raw", "calibration_error", "nll", "superclass_top1"):
        low, high = card.intervals[name]
        assert low <= getattr(card.evaluation, name) <= high


def test_the_table_names_the_stand_in_and_its_columns_are_aligned(card):
    lines = format_table(card).splitlines()
    assert lines[0] == "rote 1 on synthetic stand-in, not CIFAR-100: 200 test images"
    start = next(index for index, line in enumerate(lines) if line.startswith("top-1, 100 images"))
    assert len({len(line) for line in lines[start : start + 17]}) == 1
    assert [line.split()[0] for line in lines[start + 1 : start + 17]] == [*CORRUPTIONS, "mean"]
    assert any(line.startswith("top-1, no near-duplicates") and line.endswith("(20 left out)") for line in lines)


def test_the_command_prints_the_table_and_writes_all_figures(quick, bundle, tmp_path, capsys):
    out = tmp_path / "new" / "evaluation.json"

    assert main(["--model", str(bundle), "--quick", "--out", str(out)]) == 0

    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert f"{written['evaluation']['top1']:.4f}" in printed
    assert printed.endswith(f"all figures: {out}\n")
    assert written["data"]["synthetic"] is True
    assert written["model"]["engine"] == "openvino"
    assert {"python", "numpy", "openvino"} <= written["versions"].keys()
    assert set(written["corruptions"]) == {"contrast", "fog"}
    assert 0 <= written["mean_corruption_accuracy"] <= 1


def damaged(bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "damaged")
    (folder / "model.onnx").write_bytes(b"not a network")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda bundle, tmp_path: tmp_path / "absent", "absent"),
        (damaged, "model.onnx"),
        (lambda bundle, tmp_path: make_bundle(tmp_path / "other").path, "it knows 100 from 'class_00' to 'class_99'"),
    ],
    ids=["no bundle", "a damaged bundle", "a bundle of other classes"],
)
def test_what_cannot_be_scored_is_one_line_and_exit_status_2(quick, bundle, tmp_path, capsys, make, message):
    out = tmp_path / "evaluation.json"

    assert main(["--model", str(make(bundle, tmp_path)), "--out", str(out)]) == 2

    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not out.exists()


def test_an_interrupted_command_ends_quietly_with_130(monkeypatch, tmp_path, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scorecard, "load_model", interrupt)
    assert main(["--out", str(tmp_path / "evaluation.json")]) == 130
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_lists_the_command_and_passes_the_model_on():
    def run(*arguments):
        return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout

    assert "make evaluate" in run("help")
    assert 'helpers.scorecard --model "some/folder" --quick' in run(
        "-n", "evaluate", "MODEL=some/folder", "ARGS=--quick"
    )
