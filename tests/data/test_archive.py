"""data/archive.py: the real layout is read however it was pickled; nothing in a hostile one is run or written."""

import gzip
import io
import pickle
import struct
import tarfile

import numpy as np
import pytest

from helpers.data import archive
from helpers.data.archive import NAME, DatasetError, read_archive

TRAIN, TEST = 40, 20  # images, in place of 50,000 and 10,000
FINE = [f"class_{i}".encode() for i in range(100)]
COARSE = [f"superclass_{i}".encode() for i in range(20)]


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setitem(archive.MEMBERS, "train", TRAIN)
    monkeypatch.setitem(archive.MEMBERS, "test", TEST)


def batch(count, **changes):
    random = np.random.default_rng(count)
    value = {
        "data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
        "fine_labels": random.integers(0, 100, count).tolist(),
        "coarse_labels": random.integers(0, 20, count).tolist(),
    } | changes
    return {key.encode(): item for key, item in value.items() if item is not ...}


def meta(**changes):
    value = {"fine_label_names": FINE, "coarse_label_names": COARSE} | changes
    return {key.encode(): item for key, item in value.items() if item is not ...}


def members(protocol=2, **changes):
    """The bytes of the three files; a change is the value to pickle, or the bytes themselves."""
    values = {"train": batch(TRAIN), "test": batch(TEST), "meta": meta()} | changes
    return {k: v if isinstance(v, bytes) else pickle.dumps(v, protocol) for k, v in values.items() if v is not ...}


def regular(name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    return entry, data


def pack(folder, entries):
    with tarfile.open(folder / f"{NAME}.tar.gz", "w:gz", compresslevel=1) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return folder


def pack_members(folder, **changes):
    return pack(folder, [regular(f"{NAME}/{name}", data) for name, data in members(**changes).items()])


# --- what is read


def assert_is_the_batch(split, expected):
    np.testing.assert_array_equal(split.pixels, expected[b"data"])
    assert split.pixels.dtype == np.uint8
    assert split.fine.tolist() == expected[b"fine_labels"]
    assert split.coarse.tolist() == expected[b"coarse_labels"]
    assert split.fine.dtype == split.coarse.dtype == np.int64


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    train, test, fine, superclasses = read_archive(pack_members(tmp_path, protocol=protocol))

    assert_is_the_batch(train, batch(TRAIN))
    assert_is_the_batch(test, batch(TEST))
    assert fine == tuple(name.decode() for name in FINE)
    assert superclasses == tuple(name.decode() for name in COARSE)


def python2_string(value):
    return b"T" + struct.pack("<i", len(value)) + value


def python2_integers(values):
    return b"](" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"e"


def python2_batch(value):
    """Protocol 2 as Python 2 and NumPy 1 wrote it: byte strings, and modules where they were then."""
    dtype = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    pixels = value[b"data"]
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(J"
        + struct.pack("<i", len(pixels))
        + b"M\x00\x0ct"
        + dtype
        + b"I00\n"
        + python2_string(pixels.tobytes())
        + b"tb"
    )
    fine, coarse = (python2_integers(value[key]) for key in (b"fine_labels", b"coarse_labels"))
    items = python2_string(b"data") + array + python2_string(b"fine_labels") + fine
    return b"\x80\x02}(" + items + python2_string(b"coarse_labels") + coarse + b"u."


def test_what_python_2_wrote_is_read(tmp_path):
    train, test, *_ = read_archive(
        pack_members(tmp_path, train=python2_batch(batch(TRAIN)), test=python2_batch(batch(TEST)))
    )

    assert_is_the_batch(train, batch(TRAIN))
    assert_is_the_batch(test, batch(TEST))


@pytest.mark.parametrize("where", [NAME, ""], ids=["in the folder", "is the folder"])
def test_an_extracted_folder_is_read_as_the_archive(tmp_path, where):
    (tmp_path / NAME).mkdir()
    for name, data in members().items():
        (tmp_path / NAME / name).write_bytes(data)

    train, _, fine, _ = read_archive(tmp_path if where else tmp_path / NAME)

    assert_is_the_batch(train, batch(TRAIN))
    assert len(fine) == 100


def test_members_may_be_named_from_here_and_stand_among_others(tmp_path):
    entries = [regular(f"./{NAME}/{name}", data) for name, data in members().items()]

    train, *_ = read_archive(pack(tmp_path, [regular(f"{NAME}/file.txt~", b"x"), *entries]))

    assert_is_the_batch(train, batch(TRAIN))


# --- what is not CIFAR-100

OBJECTS = np.array([[None] * 3072] * TRAIN)
WRONG = {
    "not a dict": (
        {"train": [1, 2]},
        "train must be a dict with data, fine_labels, coarse_labels; it is none is missing",
    ),
    "no data": ({"train": batch(TRAIN, data=...)}, "train must be a dict with .*; data is missing"),
    "no coarse labels": (
        {"test": batch(TEST, coarse_labels=...)},
        "test must be a dict with .*; coarse_labels is missing",
    ),
    "no names": ({"meta": meta(fine_label_names=...)}, "meta must be a dict with .*; fine_label_names is missing"),
    "fewer images": ({"train": batch(TRAIN - 1)}, r"train: data must be uint8 \(40, 3072\), got uint8 \(39, 3072\)"),
    "CIFAR-10 layout": ({"train": {b"data": 1, b"labels": []}}, "fine_labels is missing"),
    "another shape": (
        {"test": batch(TEST, data=np.zeros((TEST, 32, 32, 3), np.uint8))},
        r"test: data must be uint8 \(20, 3072\), got uint8 \(20, 32, 32, 3\)",
    ),
    "another dtype": (
        {"train": batch(TRAIN, data=np.zeros((TRAIN, 3072), np.float32))},
        r"train: data must be uint8 \(40, 3072\), got float32 \(40, 3072\)",
    ),
    "objects": ({"train": batch(TRAIN, data=OBJECTS)}, r"train: data must be uint8 \(40, 3072\), got object"),
    "no array": ({"train": batch(TRAIN, data=b"pixels")}, r"train: data must be uint8 \(40, 3072\), got bytes"),
    "label too large": (
        {"train": batch(TRAIN, fine_labels=[100] * TRAIN)},
        "train: fine_labels must be from 0 to 99, got 100 to 100",
    ),
    "label negative": (
        {"test": batch(TEST, coarse_labels=[-1] + [0] * (TEST - 1))},
        "test: coarse_labels must be from 0 to 19, got -1 to 0",
    ),
    "label beyond 64 bits": ({"train": batch(TRAIN, fine_labels=[2**70] * TRAIN)}, "fine_labels must be from 0 to 99"),
    "labels too few": ({"train": batch(TRAIN, fine_labels=[1])}, "train: fine_labels must be a list of 40 integers"),
    "labels of text": (
        {"test": batch(TEST, fine_labels=["a"] * TEST)},
        "test: fine_labels must be a list of 20 integers",
    ),
    "labels of truth": ({"test": batch(TEST, fine_labels=[True] * TEST)}, "fine_labels must be a list of 20 integers"),
    "names too few": ({"meta": meta(fine_label_names=FINE[:10])}, "meta: fine_label_names must be a list of 100 names"),
    "names of numbers": ({"meta": meta(coarse_label_names=[1] * 20)}, "coarse_label_names must be a list of 20 names"),
    "no member": ({"test": ...}, rf"does not hold {NAME}/test; it is not the CIFAR-100 python version"),
    "an empty member": ({"meta": b""}, r"meta is not a readable CIFAR-100 pickle \(EOFError"),
    "a pickle cut short": ({"train": members()["train"][:-5000]}, "train is not a readable CIFAR-100 pickle"),
    "no pickle": ({"train": b"\x89PNG and so on"}, "train is not a readable CIFAR-100 pickle"),
}


@pytest.mark.parametrize(("changes", "sentence"), WRONG.values(), ids=WRONG)
def test_what_is_not_cifar_100_is_refused_with_what_is_wrong(tmp_path, changes, sentence):
    with pytest.raises(DatasetError, match=sentence):
        read_archive(pack_members(tmp_path, **changes))


def test_an_empty_folder_says_what_to_put_there(tmp_path):
    with pytest.raises(
        DatasetError, match=r"holds neither cifar-100-python.tar.gz nor .*; put the CIFAR-100 python version"
    ):
        read_archive(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_truncated_archive_is_damaged_or_incomplete(tmp_path, share):
    file = pack_members(tmp_path) / f"{NAME}.tar.gz"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    with pytest.raises(DatasetError, match=r"cifar-100-python.tar.gz (is damaged or incomplete|does not hold)"):
        read_archive(tmp_path)


@pytest.mark.parametrize("data", [b"<html>not found</html>", gzip.compress(b"no tar" * 1000), b"\0" * 2048])
def test_what_is_no_tar_is_damaged_or_incomplete(tmp_path, data):
    (tmp_path / f"{NAME}.tar.gz").write_bytes(data)

    with pytest.raises(DatasetError, match=r"is damaged or incomplete .*; delete it and get it again"):
        read_archive(tmp_path)


def test_a_flipped_byte_of_the_archive_never_gives_other_data(tmp_path):
    file = pack_members(tmp_path) / f"{NAME}.tar.gz"
    whole, random = file.read_bytes(), np.random.default_rng(0)

    for place in [*range(10), *random.integers(10, len(whole), 60)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        file.write_bytes(flipped)
        try:
            train, *_ = read_archive(tmp_path)
        except DatasetError:
            continue
        assert_is_the_batch(train, batch(TRAIN))  # a flip in the time stamp, say


def test_garbled_tar_headers_raise_nothing_but_dataset_error(tmp_path):
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("meta", "é" * 120):
            entry = tarfile.TarInfo(f"{NAME}/{name}")
            entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "size": "100", "comment": "x" * 50}
            tar.addfile(entry, io.BytesIO(b""))
    whole, random = plain.getvalue(), np.random.default_rng(1)

    for _ in range(400):
        garbled = bytearray(whole)
        for place in random.integers(0, 4096, random.integers(1, 8)):
            garbled[place] = random.choice([0, 48, 55, 57, 128, 255, random.integers(256)])
        (tmp_path / f"{NAME}.tar.gz").write_bytes(gzip.compress(garbled, 1))
        with pytest.raises(DatasetError):
            read_archive(tmp_path)


# --- what is hostile


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module, name, argument):
    """A protocol 4 pickle that calls a name, which may be dotted, with one string."""

    def text(value):
        return b"X" + struct.pack("<i", len(value)) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


def hostile_pickles(canary):
    import builtins
    import os
    import shutil
    import subprocess

    shell, code = f"touch {canary}", f"open({str(canary)!r}, 'w')"
    nested = np.empty(1, object)
    nested[0] = Call(os.system, shell)
    hidden = pickle.dumps(Call(os.system, shell))
    return {
        "os.system": Call(os.system, shell),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "open": Call(builtins.open, str(canary), "w"),
        "getattr": named("builtins", "getattr", shell),
        "subprocess": Call(subprocess.check_call, ["touch", str(canary)]),
        "shutil": Call(shutil.copyfile, __file__, str(canary)),
        "pickle in a pickle": Call(pickle.loads, hidden),
        "in the labels": batch(TRAIN, fine_labels=[Call(os.system, shell)] * TRAIN),
        "in an array of objects": batch(TRAIN, data=nested),
        "numpy's own file writer": named("numpy", "ndarray.tofile", str(canary)),
        "numpy's loader": named("numpy", "load", str(canary)),
        "numpy's memmap": named("numpy", "memmap", str(canary)),
        "through a module's attribute": named("numpy", "lib._datasource.os.mkdir", str(canary)),
        "through numpy.core": named("numpy.core.multiarray", "_reconstruct.__globals__", shell),
        "renamed on the way": named("numpy.core.os", "mkdir", str(canary)),
        "codecs": named("_codecs", "lookup", "zip"),
        "persistent id": b"\x80\x04\x8c\x01aQ.",
        "registered extension": b"\x80\x02\x82\x01.",
        "old class": f"(S'touch {canary}'\nios\nsystem\n.".encode(),
    }


@pytest.mark.parametrize("trick", hostile_pickles(""))
@pytest.mark.parametrize("member", ["train", "meta"])
def test_no_pickle_runs_code(tmp_path, trick, member):
    canary = tmp_path / "canary"
    payload = hostile_pickles(canary)[trick]

    with pytest.raises(
        DatasetError, match=f"which CIFAR-100 does not need|{member} is not a readable CIFAR-100 pickle"
    ):
        read_archive(pack_members(tmp_path, protocol=4, **{member: payload}))

    assert not canary.exists()


def test_the_hostile_pickles_do_run_code_where_nothing_stops_them(tmp_path):
    canary = tmp_path / "canary"

    pickle.loads(pickle.dumps(hostile_pickles(canary)["in the labels"]))

    assert canary.exists()


def linked(kind):
    def entry(target):
        made = tarfile.TarInfo(f"{NAME}/train")
        made.type, made.linkname = kind, target
        return made, b""

    return entry


NOT_OURS = {
    "above the folder": lambda data, _: regular(f"../{NAME}/train", data),
    "absolute": lambda data, _: regular(f"/{NAME}/train", data),
    "deeper": lambda data, _: regular(f"{NAME}/x/../train", data),
    "symlink": lambda _, target: linked(tarfile.SYMTYPE)(target),
    "hard link": lambda _, target: linked(tarfile.LNKTYPE)(target),
    "character device": lambda *_: linked(tarfile.CHRTYPE)(""),
    "block device": lambda *_: linked(tarfile.BLKTYPE)(""),
    "pipe": lambda *_: linked(tarfile.FIFOTYPE)(""),
    "folder": lambda *_: linked(tarfile.DIRTYPE)(""),
}


@pytest.mark.parametrize("make", NOT_OURS.values(), ids=NOT_OURS)
def test_a_member_that_is_no_plain_file_of_ours_is_not_taken_and_nothing_is_written(tmp_path, make):
    data = members()
    outside = tmp_path / "outside"
    outside.write_bytes(data["train"])
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    pack(folder, [make(data["train"], str(outside)), *(regular(f"{NAME}/{n}", data[n]) for n in ("test", "meta"))])
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(DatasetError, match=f"does not hold {NAME}/train"):
        read_archive(folder)

    assert sorted(tmp_path.rglob("*")) == before


def test_a_hard_link_to_another_member_is_not_taken(tmp_path):
    entries = [regular(f"{NAME}/{name}", data) for name, data in members().items() if name != "train"]

    with pytest.raises(DatasetError, match=f"does not hold {NAME}/train"):
        read_archive(pack(tmp_path, [*entries, linked(tarfile.LNKTYPE)(f"{NAME}/test")]))


def sparse_header(size):
    """A file of `size` zeros that takes no room in the archive."""
    entry = tarfile.TarInfo(f"{NAME}/train")
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_a_member_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path):
    (tmp_path / f"{NAME}.tar.gz").write_bytes(gzip.compress(sparse_header(2**34 - 1) + b"\0" * 1024))

    with pytest.raises(
        DatasetError, match=r"train has 17179869183 bytes or more; nothing in CIFAR-100 has more than 268435456"
    ):
        read_archive(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_an_archive_that_unpacks_without_end_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(archive, "MAX_BYTES", 2**20)
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = kind, 2**22
    (tmp_path / f"{NAME}.tar.gz").write_bytes(gzip.compress(entry.tobuf() + b"\0" * 2**22))

    with pytest.raises(
        DatasetError, match=r"unpacked, has 1048577 bytes or more; nothing in CIFAR-100 has more than 1048576"
    ):
        read_archive(tmp_path)


def test_a_huge_extracted_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    for name, data in members().items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(archive, "MAX_BYTES", 1000)

    with pytest.raises(DatasetError, match=r"train has .* bytes or more"):
        read_archive(tmp_path)
