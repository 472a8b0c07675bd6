"""data/dataset.py: the real data wherever it lies, proven by its content; or the stand-in, which says so."""

import gzip
import http.server
import io
import pickle
import socket
import tarfile
import threading

import numpy as np
import pytest

from helpers.data import dataset as module
from helpers.data.archive import NAME, DatasetError, RawSplit
from helpers.data.dataset import (
    FINGERPRINT,
    Split,
    choose_per_class,
    download_cifar100,
    draw_dataset,
    load_dataset,
    read_cifar100,
    split_validation,
)

SMALL = 3  # stand-in images of each class


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path, request):
    """No data in the environment, an empty cache, and an address that refuses; tests put data where they want it."""
    if "cifar100" in request.fixturenames:
        request.getfixturevalue("cifar100")
    for name in ("CIFAR100_DIR", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}.tar.gz")


@pytest.fixture
def read_folders(monkeypatch):
    """The folders that data is read from, in place of reading them."""
    read = []

    def note(folder, source):
        read.append((folder, source))
        return draw_dataset(0, 1, 1)

    monkeypatch.setattr(module, "read_cifar100", note)
    return read


# --- the real data


def test_cifar_100_has_500_and_100_images_of_each_of_100_classes_in_20_superclasses(cifar100):
    assert cifar100.train.images.shape == (50_000, 32, 32, 3)
    assert cifar100.test.images.shape == (10_000, 32, 32, 3)
    assert cifar100.train.images.dtype == np.uint8
    assert np.bincount(cifar100.train.labels).tolist() == [500] * 100
    assert np.bincount(cifar100.test.labels).tolist() == [100] * 100
    assert cifar100.train.labels.dtype == np.int64
    assert np.bincount(cifar100.labels.superclass_of).tolist() == [5] * 20
    assert (cifar100.labels.fine[0], cifar100.labels.fine[99]) == ("apple", "worm")
    superclass = dict(zip(cifar100.labels.fine, cifar100.labels.superclass_of, strict=True))
    assert cifar100.labels.superclasses[superclass["wolf"]] == "large_carnivores"
    assert (cifar100.title, cifar100.synthetic, cifar100.fingerprint) == ("CIFAR-100", False, FINGERPRINT)


def test_the_colours_of_cifar_100_are_in_their_places(cifar100):
    fine = cifar100.labels.fine
    orange, sea = (cifar100.train.images[cifar100.train.labels == fine.index(name)] for name in ("orange", "sea"))

    assert orange[:, 12:20, 12:20].mean(axis=(0, 1, 2)).argsort().tolist() == [2, 1, 0]  # red, green, blue
    assert sea.mean(axis=(0, 1, 2)).argmax() == 2


@pytest.fixture(scope="session")
def repacked(cifar100, tmp_path_factory):
    """The same images in another order, extracted, pickled by another protocol."""
    folder = tmp_path_factory.mktemp("repacked") / NAME
    folder.mkdir()
    superclass_of, random = np.array(cifar100.labels.superclass_of), np.random.default_rng(0)
    for name, split in (("train", cifar100.train), ("test", cifar100.test)):
        order = random.permutation(len(split))
        labels = split.labels[order]
        pixels = np.ascontiguousarray(split.images[order].transpose(0, 3, 1, 2)).reshape(-1, 3072)
        value = {b"data": pixels, b"fine_labels": labels.tolist(), b"coarse_labels": superclass_of[labels].tolist()}
        with open(folder / name, "wb") as file:
            pickle.dump(value, file, 5)
    names = {
        b"fine_label_names": [name.encode() for name in cifar100.labels.fine],
        b"coarse_label_names": [name.encode() for name in cifar100.labels.superclasses],
    }
    (folder / "meta").write_bytes(pickle.dumps(names, 2))
    return folder


def test_the_same_images_in_another_order_and_extracted_are_the_same_dataset(cifar100, repacked):
    found = read_cifar100(repacked.parent, "a test")

    assert found.fingerprint == cifar100.fingerprint
    assert found.source == "CIFAR-100 from a test"
    assert found.labels == cifar100.labels
    for again, first in ((found.train, cifar100.train), (found.test, cifar100.test)):
        assert np.array_equal(again.images, first.images)
        assert np.array_equal(again.labels, first.labels)


def test_one_pixel_off_cifar_100_is_not_cifar_100(cifar100, repacked, tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    for name in ("train", "meta"):
        (folder / name).symlink_to(repacked / name)
    altered = bytearray((repacked / "test").read_bytes())
    altered[1_000_000] ^= 1  # inside the pixels
    (folder / "test").write_bytes(altered)

    with pytest.raises(
        DatasetError, match=f"is not CIFAR-100: its content has fingerprint [0-9a-f]{{64}}, not {FINGERPRINT}"
    ):
        read_cifar100(tmp_path, "a test")


# --- the fingerprint


@pytest.fixture
def raw(monkeypatch):
    """Stands for what an archive holds; returns the fingerprint that `read_cifar100` finds, and the dataset if told."""
    random = np.random.default_rng(0)
    test = RawSplit(random.integers(0, 256, (20, 3072), np.uint8), np.arange(20), np.arange(20) % 5)
    train = RawSplit(random.integers(0, 256, (50, 3072), np.uint8), np.arange(50), np.arange(50) % 5)
    names = tuple(f"c{i}" for i in range(50)), tuple(f"s{i}" for i in range(5))

    def fingerprint(train=train, test=test):
        monkeypatch.setattr(module, "read_archive", lambda _: (train, test, *names))
        with pytest.raises(DatasetError) as refused:
            read_cifar100("here", "a test")
        return str(refused.value).split()[8].rstrip(",")

    fingerprint.train, fingerprint.test = train, test
    return fingerprint


def take(split, order, **changes):
    values = {name: getattr(split, name)[order].copy() for name in ("pixels", "fine", "coarse")}
    return RawSplit(**values | changes)


def test_the_fingerprint_does_not_depend_on_order(raw):
    order = np.random.default_rng(1).permutation(50)

    assert raw(take(raw.train, order)) == raw()


@pytest.mark.parametrize("what", ["pixel", "fine", "coarse", "one image less", "an image twice", "splits exchanged"])
def test_the_fingerprint_depends_on_every_pixel_and_label_and_on_the_split(raw, what):
    train, test, every = raw.train, raw.test, np.arange(50)
    changed = take(train, every)
    match what:
        case "pixel":
            changed.pixels[49, 3071] ^= 1
        case "fine":
            changed.fine[3] += 1
        case "coarse":
            changed.coarse[3] = 4
        case "one image less":
            changed = take(train, every[:-1])
        case "an image twice":
            changed = take(train, [*every, 7])
        case "splits exchanged":
            changed, test = test, train

    assert raw(changed, test) != raw(train, raw.test)


# --- where it is looked for


def test_data_must_be_a_known_source():
    with pytest.raises(DatasetError, match="data must be one of auto, cifar100, synthetic, got 'cifar10'"):
        load_dataset("cifar10")


def extracted(folder):
    folder.mkdir(parents=True)
    (folder / "meta").touch()
    return folder


@pytest.mark.parametrize("data", ["auto", "cifar100"])
def test_cifar100_dir_comes_before_the_cache(read_folders, monkeypatch, tmp_path, data):
    extracted(tmp_path / "keras" / "datasets" / NAME)
    monkeypatch.setenv("CIFAR100_DIR", str(tmp_path / "mine"))

    load_dataset(data)

    assert read_folders == [(tmp_path / "mine", "CIFAR100_DIR")]


@pytest.mark.parametrize("data", ["auto", "cifar100"])
def test_a_cifar100_dir_without_the_data_is_an_error_even_where_a_stand_in_would_do(monkeypatch, tmp_path, data):
    monkeypatch.setenv("CIFAR100_DIR", str(tmp_path))

    with pytest.raises(DatasetError, match=r"holds neither .* point CIFAR100_DIR to the folder that holds it"):
        load_dataset(data)


@pytest.mark.parametrize("place", [NAME, f"{NAME}-target/{NAME}", f"a/b/{NAME}", None], ids=str)
def test_keras_cache_is_found_at_any_depth_and_packed(read_folders, tmp_path, place):
    cache = tmp_path / "keras" / "datasets"
    if place:
        expected = extracted(cache / place)
    else:
        expected = cache
        cache.mkdir(parents=True)
        (cache / f"{NAME}.tar.gz").touch()

    load_dataset("auto")

    assert read_folders == [(expected, "the Keras cache")]


def test_synthetic_reads_nothing(read_folders, monkeypatch, tmp_path):
    monkeypatch.setenv("CIFAR100_DIR", str(tmp_path))
    monkeypatch.setattr(module, "draw_dataset", lambda seed: f"drawn with seed {seed}")

    assert load_dataset("synthetic", seed=5) == "drawn with seed 5"
    assert read_folders == []


def test_where_nothing_answers_auto_draws_the_stand_in_which_says_so(monkeypatch):
    small = draw_dataset
    monkeypatch.setattr(module, "draw_dataset", lambda seed: small(seed, SMALL, 1))

    found = load_dataset("auto", seed=4)

    assert found.synthetic
    assert found.title == "synthetic stand-in, not CIFAR-100"
    assert found.source.startswith("synthetic, seed 4, since CIFAR-100 could not be had from http")
    assert "Connection refused" in found.source
    assert found.provenance() == {"source": found.source, "fingerprint": found.fingerprint, "synthetic": True}


def test_where_nothing_answers_cifar100_says_what_to_do(tmp_path):
    with pytest.raises(
        DatasetError,
        match=r"could not be had from http://127.0.0.1:\d+/.* Put cifar-100-python.tar.gz into a folder and set "
        "CIFAR100_DIR to that folder, or run with data=synthetic for the drawn stand-in",
    ):
        load_dataset("cifar100")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- the download


def archive_bytes():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member in ("train", "test", "meta"):
            entry = tarfile.TarInfo(f"{NAME}/{member}")
            entry.size = 1_000_000
            tar.addfile(entry, io.BytesIO(np.random.default_rng(0).bytes(entry.size)))
    return gzip.compress(buffer.getvalue(), 1)


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that answers as it is told: status line, headers, body."""
    servers = []

    def start(reply):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.wfile.write(reply)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        servers.append((server, thread))
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{server.server_port}/{NAME}.tar.gz")

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


def http_reply(body, *headers, status="200 OK"):
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body


def test_a_download_is_kept_and_read(serve, read_folders, tmp_path):
    body = archive_bytes()
    serve(http_reply(body, f"Content-Length: {len(body)}"))

    load_dataset("cifar100")

    cache = tmp_path / "keras" / "datasets"
    assert read_folders == [(cache, module.URL)]
    assert (cache / f"{NAME}.tar.gz").read_bytes() == body
    assert [path.name for path in cache.iterdir()] == [f"{NAME}.tar.gz"]


def test_a_download_takes_the_place_of_one_that_another_process_made_meanwhile(serve, tmp_path):
    body = archive_bytes()
    serve(http_reply(body, f"Content-Length: {len(body)}"))
    (tmp_path / f"{NAME}.tar.gz").write_bytes(b"old")

    download_cifar100(tmp_path)

    assert (tmp_path / f"{NAME}.tar.gz").read_bytes() == body


BAD_REPLIES = {
    "cut short": http_reply(b"x" * 3_000_000, "Content-Length: 4000000"),
    "cut short in a chunk": http_reply(b"ff\r\nonly this", "Transfer-Encoding: chunked"),
    "empty": b"",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "not found": http_reply(b"", status="404 Not Found"),
    "server error": http_reply(b"", status="503 Service Unavailable"),
    "a login page": http_reply(b"<html>Welcome to our WiFi</html>", "Content-Type: text/html"),
    "moved nowhere": http_reply(b"", "Location: http://127.0.0.1:1/", status="302 Found"),
}


@pytest.mark.parametrize("reply", BAD_REPLIES.values(), ids=BAD_REPLIES)
def test_a_download_that_fails_leaves_nothing_and_is_one_error(serve, tmp_path, reply):
    serve(reply)

    with pytest.raises(DatasetError, match=r"CIFAR-100 could not be had from .* set CIFAR100_DIR"):
        load_dataset("cifar100")

    assert [path for path in (tmp_path / "keras").rglob("*") if path.name != "datasets"] == []


def test_a_server_that_says_nothing_is_given_up(serve, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with pytest.raises(OSError, match="timed out"):
            download_cifar100(tmp_path)


# --- the stand-in, and splits


def test_the_stand_in_is_the_same_for_the_same_seed_and_another_for_another():
    first, again, other = (draw_dataset(seed, SMALL, 2) for seed in (1, 1, 2))

    assert first.fingerprint == again.fingerprint != other.fingerprint
    np.testing.assert_array_equal(first.train.images, again.train.images)
    assert (first.train.images[0] != other.train.images[0]).any()
    assert np.bincount(first.train.labels).tolist() == [SMALL] * 100
    assert np.bincount(first.test.labels).tolist() == [2] * 100


def test_no_image_of_the_stand_in_is_in_two_splits():
    splits = [split for seed in range(3) for found in [draw_dataset(seed, 2, 2)] for split in (found.train, found.test)]
    images = [image.tobytes() for split in splits for image in split.images]

    assert len(set(images)) == len(images)


def numbered(per_class, classes=5):
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(classes), per_class))
    return Split(np.arange(len(labels), dtype=np.uint16), labels)


def test_validation_holds_out_images_of_each_class_and_loses_none():
    split = numbered(20)

    training, validation = split_validation(split, per_class=4, seed=1)

    assert np.bincount(validation.labels).tolist() == [4] * 5
    assert np.bincount(training.labels).tolist() == [16] * 5
    assert sorted([*training.images, *validation.images]) == split.images.tolist()
    np.testing.assert_array_equal(validation.labels, split.labels[validation.images])  # images still have their labels


@pytest.mark.parametrize(("images", "held_out"), [(500, 50), (250, 50), (249, 49), (20, 4)])
def test_validation_holds_out_fifty_of_a_class_or_a_fifth(images, held_out):
    validation = split_validation(numbered(images))[1]

    assert np.bincount(validation.labels).tolist() == [held_out] * 5


def test_validation_is_the_same_for_the_same_seed_and_another_for_another():
    held_out = [split_validation(numbered(20), per_class=4, seed=seed)[1].images.tolist() for seed in (1, 1, 2)]

    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize("per_class", [0, 20, -1])
def test_validation_must_leave_images_to_train_on(per_class):
    with pytest.raises(ValueError, match=f"per_class must be from 1 to 19, got {per_class}"):
        split_validation(numbered(20), per_class)


def test_choosing_takes_all_there_are_of_a_small_class_and_any_with_equal_chance():
    labels = np.array([0] * 10 + [1] * 2 + [3] * 5)

    chosen = choose_per_class(labels, 4)
    counts = np.bincount(np.concatenate([choose_per_class(labels, 4, seed) for seed in range(500)]), minlength=17)

    assert np.bincount(labels[chosen]).tolist() == [4, 2, 0, 4]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert (abs(counts[:10] / 500 - 0.4) < 0.1).all()
    assert (abs(counts[12:] / 500 - 0.8) < 0.1).all()
