"""`replay`: a request that was answered over HTTP is answered again from its log."""

from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from served import IMAGES, encode, npy, send, serve

from helpers.inference.source import ModelSource
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.prediction_log import PredictionLog, main
from helpers.monitoring.replay import replay


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def answered(shop, tmp_path_factory):
    """A log of one single request and one of three images by the first version, and one without images."""
    folder = tmp_path_factory.mktemp("replay")
    ids = {}
    for name in ("kept", "bare"):
        with (
            closing(PredictionLog(folder / f"{name}.db", keep_images=name == "kept")) as log,
            serve(shop, log=log) as service,
        ):
            one = send(service.client, encode(Image.fromarray(IMAGES[0])), route="/predict")
            headers = {"content-type": "application/x-npy"}
            many = service.client.post("/predict_batch", content=npy(IMAGES[:3]), headers=headers)
            ids[name] = [answer.headers["x-request-id"] for answer in (one, many)]
    return folder, ids


def test_the_version_that_answered_gives_the_same_answers_again(shop, answered, capsys):
    folder, ids = answered
    for request_id, count in zip(ids["kept"], (1, 3), strict=True):
        command = ["replay", str(folder / "kept.db"), request_id, "--bucket", str(shop.folder / "store")]
        assert main(command) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
        for position, line in enumerate(lines):
            assert line.startswith(f"image {position} by version {shop.good}: same answer: class_")


def test_an_image_that_is_answered_otherwise_now_is_said(shop, answered, tmp_path, capsys):
    folder, ids = answered
    changed = tmp_path / "changed.db"
    changed.write_bytes((folder / "kept.db").read_bytes())
    with closing(PredictionLog(changed)) as log:
        log._connection.execute("UPDATE predictions SET image = ?", (IMAGES[7].tobytes(),))
    command = ["replay", str(changed), ids["kept"][0], "--bucket", str(shop.folder / "store")]
    assert main(command) == 1
    assert "ANOTHER answer" in capsys.readouterr().out


def test_a_version_that_only_the_bundle_beside_the_code_has_is_taken_from_there(shop, answered, tmp_path):
    folder, ids = answered
    source = ModelSource(str(tmp_path / "empty"), cache=tmp_path / "cache")
    with LogReader(folder / "kept.db") as log:
        (found,) = replay(log, ids["kept"][0], source, shop.folder / "0")
    assert found.same
    assert np.isfinite(found.distance)


@pytest.mark.parametrize(
    ("log", "which", "sentence"),
    [
        ("bare", 0, "the images of request {} were not kept; serve with --log-images to keep them"),
        ("kept", None, "no request '{}'; it may be too old, or of another server"),
    ],
)
def test_what_cannot_be_replayed_is_one_sentence(answered, capsys, log, which, sentence):
    folder, ids = answered
    request_id = "nothing" if which is None else ids[log][which]
    assert main(["replay", str(folder / f"{log}.db"), request_id]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert sentence.format(request_id) in printed.err


def test_a_version_that_is_gone_is_one_sentence(answered, tmp_path, capsys):
    folder, ids = answered
    command = ["replay", str(folder / "kept.db"), ids["kept"][0], "--bucket", str(tmp_path / "empty")]
    assert main(command) == 2
    assert "has no version" in capsys.readouterr().err
