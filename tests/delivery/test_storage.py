"""One contract for both stores, and what each adds. ``SUITE_TEST_BUCKET`` names a bucket of your own to test too."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.delivery.google_store import CHUNK_BYTES
from helpers.delivery.storage import ObjectInfo, ObjectNotFound, PreconditionFailed, StorageUnavailable, open_store
from helpers.workspace import ROOT

BIG = os.urandom(9 * 2**20)  # over 8 MiB the Google library turns to resumable uploads


@pytest.fixture
def bucket(gcs):
    """A gs:// store on the fake, that gives up soon."""
    store = open_store("gs://bucket/some/where", patience_s=1.0)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path):
    """A file:// store."""
    return open_store((tmp_path / "store").as_uri())


@pytest.fixture(params=["folder", "bucket"] + ["endpoint"] * ("SUITE_TEST_BUCKET" in os.environ))
def store(request):
    """Each kind of store in turn, empty."""
    if request.param != "endpoint":
        yield request.getfixturevalue(request.param)
        return
    store = open_store(f"{os.environ['SUITE_TEST_BUCKET'].rstrip('/')}/{uuid.uuid4().hex}")
    yield store
    for info in store.list():
        store.delete(info.key, if_generation=None)
    store.close()


# The contract


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n--boundary--", BIG], ids=["empty", "binary", "9 MiB"])
def test_what_was_written_is_read_with_its_generation(store, data):
    generation = store.write("a/b.bin", data, if_generation=0)
    found = store.read("a/b.bin")
    assert found.data == data
    assert found.generation == generation > 0


def test_put_if_absent_refuses_a_second_write(store):
    first = store.write("a", b"1", if_generation=0)
    with pytest.raises(PreconditionFailed) as error:
        store.write("a", b"2", if_generation=0)
    assert str(error.value) == (f"{store.url}/a exists already: another writer came first; read it and decide again")
    assert store.read("a").data == b"1"
    assert store.read("a").generation == first


@pytest.mark.parametrize("data", [b"2", BIG], ids=["small", "9 MiB"])
def test_a_write_needs_the_generation_it_replaces(store, data):
    first = store.write("a", b"1", if_generation=0)
    second = store.write("a", data, if_generation=first)
    assert second > first
    with pytest.raises(PreconditionFailed, match=f"a is no longer at generation {first}: another writer came first"):
        store.write("a", b"3", if_generation=first)
    assert store.read("a").data == data


def test_a_generation_cannot_be_expected_of_what_is_absent(store):
    with pytest.raises(PreconditionFailed):
        store.write("a", b"1", if_generation=5)
    assert store.list() == []


def test_an_unconditional_write_replaces_whatever_is_there(store):
    first = store.write("a", b"1", if_generation=None)
    assert store.write("a", b"2", if_generation=None) > first
    assert store.read("a").data == b"2"


def test_reading_what_is_absent_says_so(store):
    with pytest.raises(ObjectNotFound) as error:
        store.read("no/such")
    assert str(error.value) == f"{store.url} holds no object 'no/such'"


def test_a_folder_is_not_an_object(store):
    store.write("a/b", b"1", if_generation=0)
    for call in (store.read, lambda key: store.delete(key, if_generation=None)):
        with pytest.raises(ObjectNotFound):
            call("a")


def test_listing_is_by_prefix_and_sorted(store):
    keys = ["b", "a/2", "a/10", "a-1", "a/c/d", "ab/é ü%?#&+"]  # more than one page of the fake
    written = {key: store.write(key, key.encode(), if_generation=0) for key in keys}
    assert store.list() == [ObjectInfo(key, len(key.encode()), written[key]) for key in sorted(keys)]
    for prefix in ("a", "a/", "a/1", "a/c", "ab/é", "zz", "zz/y"):
        assert [info.key for info in store.list(prefix)] == sorted(key for key in keys if key.startswith(prefix)), (
            prefix
        )


def test_an_empty_store_lists_nothing(store):
    assert store.list() == []


def test_what_is_deleted_is_gone(store):
    generation = store.write("a", b"1", if_generation=0)
    store.delete("a", if_generation=generation)
    with pytest.raises(ObjectNotFound):
        store.delete("a", if_generation=generation)
    with pytest.raises(ObjectNotFound):
        store.read("a")


def test_deletion_needs_the_generation(store):
    first = store.write("a", b"1", if_generation=0)
    second = store.write("a", b"2", if_generation=first)
    with pytest.raises(PreconditionFailed, match=f"a is no longer at generation {first}: another writer came first"):
        store.delete("a", if_generation=first)
    assert (store.read("a").data, store.read("a").generation) == (b"2", second)


def test_a_generation_never_returns_after_deletion(store):
    first = store.write("a", b"1", if_generation=0)
    store.delete("a", if_generation=None)
    assert store.write("a", b"1", if_generation=0) > first


def test_a_closed_store_opens_again(store):
    store.write("a", b"1", if_generation=0)
    store.close()
    assert store.read("a").data == b"1"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "../a",
        "a/.",
        ".lock",
        "a/.hidden",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x7f",
        "\ud800",
        "k" * 1025,
        "é" * 513,
    ],
)
@pytest.mark.parametrize("kind", ["file", "gs"])
def test_a_bad_key_is_refused_by_every_method(tmp_path, kind, key):
    store = open_store({"file": str(tmp_path / "store"), "gs": "gs://bucket"}[kind])  # refused before any contact
    calls = (
        store.read,
        lambda key: store.write(key, b"", if_generation=0),
        lambda key: store.delete(key, if_generation=None),
    )
    for call in calls:
        with pytest.raises(ValueError, match="key must be parts joined by '/', none empty, none starting with a dot"):
            call(key)


@pytest.mark.parametrize("prefix", ["../", "/", "a//b", "a\0", "a\\", "a/../b"])
def test_a_bad_prefix_is_refused(store, prefix):
    with pytest.raises(ValueError, match=r"^(key|prefix) must "):
        store.list(prefix)


def test_of_eight_rival_threads_one_wins_each_round(store):
    generation, barrier = store.write("a", b"start", if_generation=0), threading.Barrier(8)

    def attempt(name, expected):
        barrier.wait()
        try:
            return name, store.write("a", name, if_generation=expected)
        except PreconditionFailed:
            return None

    with ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            names = [b"writer %d" % number for number in range(8)]
            results = list(pool.map(attempt, names, [generation] * 8))
            (winner,) = [result for result in results if result]
            assert (store.read("a").data, store.read("a").generation) == winner
            generation = winner[1]


@pytest.mark.parametrize(
    "url",
    ["", "s3://bucket", "gs://", "gs://UPPER", "gs:/bucket", "file://host/path", "file:relative", "hf://a/b", "a\0b"],
)
def test_an_unknown_url_is_refused(url):
    with pytest.raises(ValueError, match="must") as error:
        open_store(url)
    assert str(error.value) == f"bucket must be gs://bucket[/prefix], file:///absolute/path or a path, got {url!r}"


def test_urls_are_told_in_one_form(tmp_path):
    assert open_store("gs://bucket").url == open_store("gs://bucket/").url == "gs://bucket"
    assert open_store("gs://bucket/a/b/").url == "gs://bucket/a/b"
    assert (
        open_store(str(tmp_path / "a b")).url
        == open_store((tmp_path / "a b").as_uri()).url
        == (tmp_path / "a b").as_uri()
    )


def test_importing_and_opening_touch_neither_google_nor_the_disk(tmp_path):
    code = (
        "import sys; from helpers.delivery.storage import open_store;"
        "open_store('gs://bucket'); open_store(sys.argv[1]);"
        "sys.exit(sum(name.startswith(('google', 'requests')) for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "store"], cwd=ROOT, check=True)
    assert not (tmp_path / "store").exists()


# gs:// alone


@pytest.mark.parametrize(
    ("data", "after", "uploads"),
    [(b"new", 0, 2), (BIG, 0, 3), (BIG, 1, 3)],
    ids=["multipart", "first part", "last part"],
)
def test_a_write_whose_reply_was_lost_succeeds_once(gcs, bucket, data, after, uploads):
    first = bucket.write("a", b"old", if_generation=0)
    gcs.inject("drop", "upload", after=after)
    generation = bucket.write("a", data, if_generation=first)
    assert gcs.calls.count("upload") == 1 + uploads
    assert (bucket.read("a").data, bucket.read("a").generation) == (data, generation)


def test_a_rival_that_came_between_two_tries_is_not_taken_for_our_own_write(gcs, bucket):
    first = bucket.write("a", b"old", if_generation=0)
    gcs.inject("unavailable", "upload", times=1000)
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(bucket.write, "a", b"ours", if_generation=first)
        while gcs.calls.count("upload") < 2:
            time.sleep(0.01)
        gcs.put("bucket", "some/where/a", b"rival", {}, {})
        gcs.faults.clear()
        with pytest.raises(PreconditionFailed):
            ours.result()
    assert bucket.read("a").data == b"rival"


def test_a_large_write_goes_on_with_the_part_that_a_lost_connection_cut(gcs, bucket):
    data = os.urandom(2 * CHUNK_BYTES + 1000)
    gcs.inject("break", "upload", after=1)
    generation = bucket.write("a", data, if_generation=0)
    assert gcs.parts == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES // 2),
        (CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, 1000),
    ]
    assert gcs.calls.count("start") == 1
    assert (bucket.read("a").data, bucket.read("a").generation) == (data, generation)


def test_a_rival_that_came_between_two_parts_wins(gcs, bucket):
    first = bucket.write("a", b"old", if_generation=0)
    gcs.inject("unavailable", "upload", times=3, after=1)
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(bucket.write, "a", BIG, if_generation=first)
        while len(gcs.parts) < 1 and not ours.done():
            time.sleep(0.01)
        gcs.put("bucket", "some/where/a", b"rival", {}, {})
        with pytest.raises(PreconditionFailed):
            ours.result()
    assert [start for start, _ in gcs.parts] == [0, CHUNK_BYTES]
    assert bucket.read("a").data == b"rival"


def test_a_deletion_whose_reply_was_lost_succeeds(gcs, bucket):
    generation = bucket.write("a", b"1", if_generation=0)
    gcs.inject("drop", "delete")
    bucket.delete("a", if_generation=generation)
    assert bucket.list() == []


@pytest.mark.parametrize("call", ["upload", "download", "list", "delete"])
def test_a_busy_bucket_is_asked_again(gcs, bucket, call):
    bucket.write("other", b"1", if_generation=0)
    gcs.inject("unavailable", call, times=2)
    generation = bucket.write("a", b"1", if_generation=0)
    assert bucket.read("a").data == b"1"
    assert len(bucket.list("a")) == 1
    bucket.delete("a", if_generation=generation)
    assert all(fault.times == 0 for fault in gcs.faults)


def test_a_bucket_that_stays_busy_is_unavailable_within_the_patience(gcs):
    store = open_store("gs://bucket", patience_s=0.3)
    gcs.inject("unavailable", "upload", times=1000)
    start = time.monotonic()
    with pytest.raises(StorageUnavailable, match=r"^cannot write gs://bucket/a: .*check the network and try again$"):
        store.write("a", b"1", if_generation=0)
    assert time.monotonic() - start < 2
    assert gcs.calls.count("upload") > 1
    store.close()


def test_a_dead_endpoint_is_unavailable(gcs, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    store = open_store("gs://bucket", patience_s=0.2)
    for call in (lambda: store.read("a"), store.list, lambda: store.write("a", b"", if_generation=0)):
        with pytest.raises(StorageUnavailable, match=r"check the network and try again$"):
            call()
    store.close()


@pytest.mark.parametrize("fault", ["cut", "shorten"])
def test_a_cut_download_is_resumed(gcs, bucket, fault):
    bucket.write("a", BIG, if_generation=0)
    gcs.inject(fault, "download")
    assert bucket.read("a").data == BIG
    assert gcs.calls.count("download") == 2


def test_a_download_that_stays_cut_is_refused(gcs, bucket):
    bucket.write("a", b"x" * 1000, if_generation=0)
    gcs.inject("shorten", "download", times=1000)
    with pytest.raises(StorageUnavailable, match=r"^cannot read gs://bucket/some/where/a: "):
        bucket.read("a")


def test_a_bit_flip_in_the_bucket_is_refused(gcs, bucket):
    bucket.write("a", b"abc", if_generation=0)
    stored = gcs.buckets["bucket"]["some/where/a"]
    object.__setattr__(stored, "data", b"abd")
    with pytest.raises(StorageUnavailable, match="cannot read"):
        bucket.read("a")


def test_a_missing_bucket_is_named(gcs):
    store = open_store("gs://nowhere", patience_s=0.2)
    for call in (lambda: store.read("a"), store.list, lambda: store.write("a", b"", if_generation=0)):
        with pytest.raises(StorageUnavailable, match="there is no bucket 'nowhere'; check its name"):
            call()
    store.close()


def test_missing_credentials_say_how_to_get_them(monkeypatch, tmp_path):
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(StorageUnavailable, match="no Google credentials; run `gcloud auth application-default login`"):
        open_store("gs://bucket").read("a")


def test_the_fake_enforces_preconditions_on_every_call(gcs):
    from google.api_core.exceptions import BadRequest
    from google.api_core.exceptions import PreconditionFailed as Refused
    from google.cloud import storage

    with storage.Client(project=None) as client:
        bucket = client.bucket("bucket")
        blob = bucket.blob("a")
        blob.upload_from_string(b"1")
        wrong = {"if_generation_match": blob.generation + 1, "retry": None}
        calls = {
            "multipart": lambda: bucket.blob("a").upload_from_string(b"2", **wrong),
            "resumable": lambda: bucket.blob("a").upload_from_string(BIG, **wrong),
            "download": lambda: bucket.blob("a").download_as_bytes(**wrong),
            "get": lambda: bucket.blob("a").reload(**wrong),
            "patch": lambda: blob.patch(**wrong),
            "delete": lambda: bucket.blob("a").delete(**wrong),
            "copy": lambda: bucket.copy_blob(blob, bucket, "a", **wrong),
            "copy source": lambda: bucket.copy_blob(blob, bucket, "b", if_source_generation_match=1),
            "rewrite": lambda: bucket.blob("a").rewrite(blob, **wrong),
        }
        for name, call in calls.items():
            with pytest.raises(Refused):
                call()
            assert list(gcs.buckets["bucket"]) == ["a"], name
        blob.metadata = {"x": "y"}
        blob.patch(if_generation_match=blob.generation)
        assert bucket.copy_blob(blob, bucket, "b", if_generation_match=0).metadata == {"x": "y"}
        damaged = bucket.blob("c")
        damaged.crc32c = "AAAAAA=="
        with pytest.raises(BadRequest):
            damaged.upload_from_string(b"1", checksum=None)
        assert list(gcs.buckets["bucket"]) == ["a", "b"]


# file:// alone


RIVAL = """
import sys
from helpers.delivery.storage import PreconditionFailed, open_store
store, won = open_store(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[2])):
    current = store.read("counter")
    try:
        store.write("counter", b"%d" % (int(current.data) + 1), if_generation=current.generation)
        won += 1
    except PreconditionFailed:
        pass
print(won)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_of_two_rival_processes_no_win_is_lost(folder):
    folder.write("counter", b"0", if_generation=0)
    with start(RIVAL, folder.url, "60") as one, start(RIVAL, folder.url, "60") as two:
        for process in (one, two):
            assert process.stdout.readline() == "ready\n"
        for process in (one, two):
            process.stdin.write("\n")
            process.stdin.flush()
        won = [int(process.stdout.readline()) for process in (one, two)]
    assert int(folder.read("counter").data) == sum(won)
    assert min(won) > 0


WRITER = """
import sys
from helpers.delivery.storage import open_store
store, number = open_store(sys.argv[1]), 0
while True:
    store.write("a", bytes([number % 256]) * 2_000_000, if_generation=None)
    print(number, flush=True)
    number += 1
"""


def test_kill_9_during_a_write_leaves_the_old_bytes_or_the_new(folder):
    for round_ in range(4):
        with start(WRITER, folder.url) as process:
            for _ in range(3):
                process.stdout.readline()
            time.sleep(0.004 * round_)
            process.send_signal(signal.SIGKILL)
            acknowledged = 2 + len(process.stdout.read().split())
        found = folder.read("a")
        assert found.data in [bytes([number]) * 2_000_000 for number in (acknowledged, acknowledged + 1)]
        assert [info.key for info in folder.list()] == ["a"]
        folder.write("a", b"the lock is free again", if_generation=found.generation)


def test_files_lie_at_their_keys_and_temporary_ones_are_invisible(folder, tmp_path):
    folder.write("a/b.json", b"{}", if_generation=0)
    assert (tmp_path / "store" / "a" / "b.json").read_bytes() == b"{}"
    (tmp_path / "store" / ".write-left-by-a-killed-one").write_bytes(b"half")
    (tmp_path / "store" / ".folder").mkdir()
    (tmp_path / "store" / ".folder" / "c").write_bytes(b"")
    assert [info.key for info in folder.list()] == ["a/b.json"]


def test_a_refused_write_leaves_no_temporary_file(folder, tmp_path):
    folder.write("a", b"1", if_generation=0)
    with pytest.raises(PreconditionFailed):
        folder.write("a", b"2", if_generation=0)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [".lock", "a"]


def test_generations_grow_when_the_clock_steps_back(folder, monkeypatch):
    first = folder.write("a", b"1", if_generation=0)
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    second = folder.write("a", b"2", if_generation=first)
    folder.delete("a", if_generation=second)
    assert folder.write("a", b"3", if_generation=0) > second > first


@pytest.mark.parametrize("key", ["out/secret", "link"])
def test_symbolic_links_are_not_followed(folder, tmp_path, key):
    folder.write("a", b"1", if_generation=0)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (tmp_path / "store" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "store" / "link").symlink_to(tmp_path / "outside" / "secret")
    for call in (folder.read, lambda key: folder.write(key, b"", if_generation=None)):
        with pytest.raises(ValueError, match=f"key must not lead through a symbolic link, got '{key}'"):
            call(key)
    assert [info.key for info in folder.list()] == ["a"]
    assert (tmp_path / "outside" / "secret").read_bytes() == b"secret"


@pytest.mark.parametrize("key", ["a/b", "a"])
def test_a_name_is_an_object_or_a_folder(folder, key):
    folder.write("a/b/c" if key == "a/b" else "a/b", b"1", if_generation=0)
    with pytest.raises(
        ValueError, match=f"key must not be an object and a folder at once in a file:// store, got '{key}'"
    ):
        folder.write(key, b"2", if_generation=None)


def test_a_store_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        StorageUnavailable, match=r"^cannot write file:///.*: File name too long; check the folder and its disk$"
    ):
        open_store(str(tmp_path)).write("k" * 300, b"1", if_generation=0)


def test_a_file_is_not_taken_for_an_empty_store(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    store = open_store(str(tmp_path / "file"))
    calls = (
        lambda: store.read("a"),
        lambda: store.write("a", b"2", if_generation=None),
        lambda: store.delete("a", if_generation=None),
        store.list,
        lambda: store.list("a/b"),
    )
    for call in calls:
        with pytest.raises(StorageUnavailable) as error:
            call()
        assert str(error.value) == f"{store.url} is a file, not a folder; name a folder"
    assert (tmp_path / "file").read_bytes() == b"1"


@pytest.fixture
def unread(monkeypatch, tmp_path):
    """Makes the reading of one folder of the store fail with an error."""
    scandir = os.scandir

    def fail(name, error):
        def read(path):
            if os.fspath(path) == str(tmp_path / "store" / name):
                raise OSError(error, os.strerror(error), path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", read)

    return fail


def test_a_folder_that_cannot_be_read_is_not_taken_for_an_empty_one(folder, unread, tmp_path):
    for key in ("a/1", "closed/2", "c/3"):
        folder.write(key, b"1", if_generation=0)
    unread("closed", errno.EACCES)
    for prefix in ("", "c", "closed/"):
        with pytest.raises(StorageUnavailable) as error:
            folder.list(prefix)
        assert (
            str(error.value) == f"cannot list {tmp_path}/store/closed: Permission denied; check the folder and its disk"
        )
    assert [info.key for info in folder.list("a")] == ["a/1"]


def test_a_folder_that_goes_while_it_is_listed_holds_nothing(folder, unread):
    for key in ("a/1", "gone/2"):
        folder.write(key, b"1", if_generation=0)
    unread("gone", errno.ENOENT)
    assert [info.key for info in folder.list()] == ["a/1"]


def test_below_an_object_there_is_nothing(folder):
    folder.write("a", b"1", if_generation=0)
    assert folder.list("a/") == []
