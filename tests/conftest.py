"""What several test modules share: a folder for stores and runs, and tiny bundles made without Keras."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fake_gcs import FakeGCS

from helpers.data.corruptions import CORRUPTIONS
from helpers.data.labels import Labels
from helpers.delivery.bundle import DataSource, write_bundle
from helpers.delivery.quantisation import Quantisation
from helpers.monitoring.drift_reference import Reference, cut_ranks
from helpers.monitoring.likeness import learn_likeness
from helpers.monitoring.martingale import break_ties
from helpers.monitoring.scores import NAMES
from helpers.training.model import make_config, weight_shapes

CLASSES = 100
LABELS = Labels(
    tuple(f"class_{i:02d}" for i in range(CLASSES)),
    tuple(f"superclass_{i:02d}" for i in range(20)),
    tuple(i // 5 for i in range(CLASSES)),
)
QUANTISATION = Quantisation(  # fits the bundles below
    ranges={f"block{block}_conv{index}": 8.0 for block in (3, 4, 5) for index in (1, 2, 3)},
    calibration_images=300,
    validation_images=500,
    float_top1=0.5,
    int8_top1=0.498,
    difference=-0.002,
    interval=(-0.004, 0.0),
)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="full counts where a test has a quick slice and a full one")


def pytest_configure():
    """Tests never touch the store and the runs of the person who runs them."""
    folder = Path(tempfile.mkdtemp(prefix="suite-tests-"))
    os.environ.setdefault("SUITE_BUCKET", (folder / "store").as_uri())
    os.environ.setdefault("SUITE_RUNS", str(folder / "runs"))


def make_bundle(directory: Path, seed: int = 0, **changes):
    """A valid bundle of a narrow network with random weights; another `seed` gives other answers."""
    random = np.random.default_rng(seed)
    config = make_config((129.0, 124.0, 112.0), (68.0, 65.0, 70.0), num_classes=CLASSES, width=0.0625, dropout=0.0)
    weights = {name: random_weights(random, name, shape) for name, shape in weight_shapes(config).items()}
    images = random.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    arguments = {
        "name": "tiny",
        "weights": weights,
        "config": config,
        "temperature": 1.0,
        "labels": LABELS,
        "golden": (images, reference_probabilities(weights, config, images)),
        "reference": draw_reference(random, units=weights["logits/kernel"].shape[0]).as_arrays(),
        "evaluation": {"test": {"top1": 0.5, "top1_interval": [0.4, 0.6]}},
        "model_card": "# tiny\n\nRandom weights, for tests.\n",
        "data": DataSource(source="synthetic", fingerprint="0" * 64, synthetic=True),
    }
    return write_bundle(directory, **arguments | changes)


def draw_rows(random, count):
    """Drift scores of `count` images of one kind, float32 (count, scores): a class, then standard normals."""
    rows = random.standard_normal((count, len(NAMES)))
    rows[:, 0] = random.integers(0, CLASSES, count)
    return rows.astype(np.float32)


def draw_reference(random, count=1000, units=32):
    """The drift reference of such scores; the first corruption moves brightness, the second sharpness."""
    rows, learned = draw_rows(random, count), draw_rows(random, 300)
    changed = np.repeat(learned[None], len(CORRUPTIONS), axis=0)
    changed[0, :, NAMES.index("brightness")] += 1
    changed[1, :, NAMES.index("sharpness")] += 1
    likeness = learn_likeness(learned, changed)
    tests = np.concatenate([rows, likeness.score(rows)], axis=1)
    ranked = np.sort(break_ties(tests, random), axis=0)
    moves = np.full((len(CORRUPTIONS), 5, len(NAMES)), 0.5, np.float32)
    moves[0, :, NAMES.index("brightness")] += np.arange(1, 6) / 11
    moves[1, :, NAMES.index("sharpness")] += np.arange(1, 6) / 11
    return Reference(
        labels=LABELS,
        temperature=1.0,
        count=count,
        edges=np.stack([ranked[ranks - 1, row] for row, ranks in enumerate(cut_ranks(count))]),
        cuts=likeness.cuts,
        weights=likeness.weights,
        class_means=random.random((CLASSES, units), np.float32),
        class_counts=np.bincount(rows[:, 0].astype(int), minlength=CLASSES),
        accuracy=0.7,
        calibration=np.stack([np.full(15, count / 15), *[(np.arange(15) + 0.5) / 15] * 2], axis=1),
        moves=moves,
        losses=np.zeros(moves.shape[:2], np.float32),
    )


def random_weights(random, name, shape):
    """Arrays at the scale of a trained network, so that answers differ from image to image."""
    if name.endswith("/kernel"):
        return random.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    return np.full(shape, 1 if name.endswith(("gamma", "variance")) else 0, np.float32)


def reference_probabilities(weights, config, images):
    """The network's answer, by ONNX's own reference implementation."""
    from onnx.reference import ReferenceEvaluator

    from helpers.delivery.graph import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(path, weights, config)
        return ReferenceEvaluator(str(path)).run(["probabilities"], {"images": images})[0]


@pytest.fixture(scope="session")
def count(request):
    """``count(quick, full)``: how many, by whether the long suite runs."""
    return lambda quick, full: full if request.config.getoption("--long") else quick


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A store of good and bad versions; see `served.open_shop`."""
    from served import open_shop

    return open_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture
def bundle_dir(tmp_path):
    """A folder that holds a valid tiny bundle."""
    return make_bundle(tmp_path / "bundle").path


@pytest.fixture
def gcs(monkeypatch):
    """A fake of Google Cloud Storage, which every gs:// store of the test talks to."""
    with FakeGCS() as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


@pytest.fixture
def own_wandb(monkeypatch, tmp_path):
    """No key, no netrc, no W&B setting of whoever runs the tests, nor the way to a service that a test has ended."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def cifar100():
    """The real CIFAR-100; what needs it is skipped where ``CIFAR100_DIR`` does not name a folder that holds it."""
    if not os.environ.get("CIFAR100_DIR"):
        pytest.skip("needs the real CIFAR-100: set CIFAR100_DIR to the folder that holds it")
    from helpers.data.dataset import load_dataset

    return load_dataset("cifar100")
