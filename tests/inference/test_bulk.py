"""inference/bulk.py: many images, some of which are none, in batches and in order."""

import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import make_bundle
from PIL import Image
from served import PNG, encode

from helpers.delivery.storage import StorageUnavailable
from helpers.inference import bulk
from helpers.inference.bulk import BATCH, READERS, SCHEMA, score
from helpers.inference.collection import Item, open_collection
from helpers.inference.loader import ModelRejected, load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(make_bundle(tmp_path_factory.mktemp("bulk") / "bundle").path)


def rows_of(collection, model, **options):
    batches = list(score(collection, collection.items(), model, **options))
    assert all(batch.schema == SCHEMA for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture
def folder(tmp_path):
    """150 pictures, and among them what is none."""
    random = np.random.default_rng(1)
    for index in range(150):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        (tmp_path / f"{index:03d}.png").write_bytes(encode(Image.fromarray(pixels)))
    (tmp_path / "010.png").write_bytes(PNG[:100])
    (tmp_path / "070.png").write_bytes(b"#!/bin/sh")
    (tmp_path / "071.png").write_bytes(b"")
    return tmp_path


def test_each_image_has_a_row_in_order_with_what_the_model_says(folder, model):
    collection = open_collection(str(folder))
    rows = rows_of(collection, model, top_k=3)
    assert [row["path"] for row in rows] == [f"{index:03d}.png" for index in range(150)]
    good = [(item, row) for item, row in zip(collection.items(), rows, strict=True) if row["error"] is None]
    expected = model.predict(np.stack([collection.read(item) for item, _ in good])).probabilities
    for (_, row), values in zip(good, expected, strict=True):
        assert row["probability"] == pytest.approx(values.max(), abs=0.02)
        assert (row["class"], row["probability"]) == row["top"][0]
        assert len(row["top"]) == 3
        assert row["top"] == sorted(row["top"], key=lambda pair: -pair[1])
        assert row["version"] == model.version
    agreed = [
        row["class"] == model.labels.fine[values.argmax()] for (_, row), values in zip(good, expected, strict=True)
    ]
    assert np.mean(agreed) > 0.98


def test_what_is_no_image_is_a_row_with_its_reason_and_stops_nothing(folder, model):
    wrong = {row["path"]: row for row in rows_of(open_collection(str(folder)), model) if row["error"]}
    assert list(wrong) == ["010.png", "070.png", "071.png"]
    assert wrong["010.png"]["error"] == "the PNG image is cut off after 100 bytes; send the whole file again"
    assert wrong["070.png"]["error"].startswith("the file must be a PNG or a JPEG image")
    assert {row["class"] for row in wrong.values()} == {None}


def test_a_batch_without_any_image_is_rows_too(tmp_path, model):
    (tmp_path / "a.png").write_bytes(b"")
    assert [row["class"] for row in rows_of(open_collection(str(tmp_path)), model)] == [None]


def test_a_file_that_went_or_that_no_store_can_name_is_a_row(folder, model):
    collection = open_collection(str(folder))
    items = [*collection.items()[:2], Item("gone.png", 1), Item("a\\b.png", 1)]
    (batch,) = score(collection, items, model)
    assert [bool(row["error"]) for row in batch.to_pylist()] == [False, False, True, True]


def test_a_bucket_that_is_away_is_no_property_of_the_images(model):
    class Away:
        def read(self, item):
            raise StorageUnavailable("away")

    with pytest.raises(StorageUnavailable):
        list(score(Away(), [Item(str(index), 1) for index in range(BATCH)], model))


def test_after_an_error_what_nobody_will_ask_for_is_not_read(monkeypatch):
    shut, read = threading.Event(), []

    class Slow:
        def read(self, item):
            read.append(item)
            if int(item.key) >= BATCH:
                shut.wait(10)
            return np.zeros((32, 32, 3), np.uint8)

    class Broken:
        version = "broken"

        def predict(self, images, *, shared=False):
            raise ModelRejected("broken")

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, **options):
            super().shutdown(wait=False, **options)
            shut.set()
            super().shutdown(wait)

    monkeypatch.setattr(bulk, "ThreadPoolExecutor", Pool)
    with pytest.raises(ModelRejected):
        list(score(Slow(), [Item(str(index), 1) for index in range(1000)], Broken()))
    assert BATCH <= len(read) <= BATCH + READERS


def test_memory_does_not_grow_with_the_number_of_images(model, monkeypatch):
    class Endless:
        def read(self, item):
            return np.zeros((32, 32, 3), np.uint8)

    class Still:
        version, labels = model.version, model.labels

        def predict(self, images, *, shared=False):
            return type("Scores", (), {"probabilities": np.full((len(images), 100), 0.01, np.float32)})

    monkeypatch.setattr(bulk, "READERS", 1)

    def peak(count):
        tracemalloc.start()
        for _ in score(Endless(), (Item(str(index), 1) for index in range(count)), Still()):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(640)
    assert peak(6400) < 1.5 * peak(1280)
