"""inference/collection.py: what there is to score in a folder, a bucket and an array."""

import io
import os

import numpy as np
import pytest
from served import PIXELS, PNG

from helpers.data.images import ImageTooLarge
from helpers.delivery.storage import open_store
from helpers.inference import collection
from helpers.inference.collection import CollectionError, Item, open_collection


def test_all_files_of_a_folder_are_there_but_hidden_ones_and_links(tmp_path):
    for name in ("b.png", "a/c.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("b.png")
    found = open_collection(str(tmp_path))
    assert [item.key for item in found.items()] == ["a/c.JPG", "b.png", "notes.txt"]
    np.testing.assert_array_equal(found.read(found.items()[1]), PIXELS)


def test_a_prefix_of_a_bucket_is_a_collection_too(gcs):
    store = open_store("gs://bucket/pictures")
    store.write("one.png", PNG, if_generation=0)
    open_store("gs://bucket/other").write("two.png", PNG, if_generation=0)
    found = open_collection("gs://bucket/pictures/")
    assert [item.key for item in found.items()] == ["one.png"]
    np.testing.assert_array_equal(found.read(found.items()[0]), PIXELS)
    store.close()
    found.store.close()


def test_a_file_is_not_read_that_is_larger_than_any_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "MAX_BYTES", len(PNG) - 1)
    (tmp_path / "a.png").write_bytes(PNG)
    found = open_collection(str(tmp_path))
    with pytest.raises(ImageTooLarge, match=rf"^the file has {len(PNG):,} bytes, at most {len(PNG) - 1:,} are read$"):
        found.read(found.items()[0])


def test_a_name_that_is_no_unicode_has_a_path_that_any_file_can_hold(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.png", "wb") as file:
        file.write(PNG)
    (item,) = open_collection(str(tmp_path)).items()
    assert item.path == r"\udcff.png"


def test_the_images_of_an_array_are_mapped_and_not_loaded(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    found = open_collection(str(tmp_path / "images.npy"))
    assert isinstance(found.images, np.memmap)
    assert found.items()[3] == Item("3", 3072)
    np.testing.assert_array_equal(found.read(Item("3", 3072)), images[3])


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "No such file or directory"),
        (b"", "write it with numpy.save"),
        (pickled(), "write it with numpy.save"),
        (np.zeros((2, 32, 32), np.uint8), r"must hold uint8 \(n, 32, 32, 3\) images, got uint8 \(2, 32, 32\)"),
        (np.zeros((0, 32, 32, 3), np.uint8), r"got uint8 \(0, 32, 32, 3\)"),
        (np.zeros((1, 32, 32, 3), np.float32), "got float32"),
    ],
    ids=["absent", "empty", "pickle", "grey", "none", "floats"],
)
def test_another_array_is_refused(tmp_path, data, sentence):
    path = tmp_path / "images.npy"
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif data is not None:
        np.save(path, data)
    with pytest.raises(CollectionError, match=sentence):
        open_collection(str(path))


def test_nothing_to_score_is_said(tmp_path):
    with pytest.raises(CollectionError) as error:
        open_collection(str(tmp_path)).items()
    assert str(error.value) == f"there is no file in {tmp_path.as_uri()}; name a folder or a prefix that has some"
