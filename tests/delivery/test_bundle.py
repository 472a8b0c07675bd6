"""delivery/bundle.py: a bundle is read whole and unaltered, or it is refused by the name of what is wrong."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import pytest
from conftest import make_bundle

from helpers.data.labels import Labels
from helpers.delivery import bundle as module
from helpers.delivery.bundle import FILES, MANIFEST, BundleError, read_bundle, read_npz


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundles") / "made")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made.path, tmp_path / "copy")


def edit_manifest(folder, change):
    value = json.loads((folder / MANIFEST).read_text())
    change(value)
    (folder / MANIFEST).write_text(json.dumps(value))


def replace(folder, name, data):
    """Puts `data` into a file, with a manifest that agrees: what someone could publish who may write to the bucket."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    edit_manifest(folder, lambda value: value["files"].update({name: entry}))


def test_a_bundle_is_read_back_as_it_was_written(made):
    found = read_bundle(made.path)

    assert found == made
    assert found.manifest.name == "tiny"
    assert found.manifest.temperature == 1.0
    assert (found.manifest.data.source, found.manifest.data.synthetic) == ("synthetic", True)
    assert found.labels.fine[:2] == ("class_00", "class_01")
    assert found.evaluation() == {"test": {"top1": 0.5, "top1_interval": [0.4, 0.6]}}
    assert found.model_path.read_bytes()[:1]
    images, probabilities = found.golden()
    assert (images.shape, images.dtype) == ((4, 32, 32, 3), np.uint8)
    assert (probabilities.shape, probabilities.dtype) == ((4, 100), np.float32)
    assert set(read_npz(made.path / "reference.npz")) >= {"count", "edges", "class_means", "moves"}
    assert {path.name for path in made.path.iterdir()} == {*FILES, MANIFEST}


def test_the_manifest_names_every_file_with_its_size_and_digest(made):
    for name, entry in made.manifest.files.items():
        data = (made.path / name).read_bytes()
        assert (entry.size, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_version_is_a_time_and_a_digest_of_the_content(made, tmp_path):
    assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{12}", made.version)
    lines = "".join(f"{name}:{made.manifest.files[name].sha256}\n" for name in sorted(FILES))
    assert made.version.endswith(hashlib.sha256(lines.encode()).hexdigest()[:12])
    assert made.version[:15] == re.sub("[-:]", "", made.manifest.created)[:15]

    other = make_bundle(tmp_path / "other", seed=1).version
    assert other.split("-")[1] != made.version.split("-")[1]


def test_versions_sort_by_time(made, tmp_path, monkeypatch):
    class Later(module.datetime):
        @classmethod
        def now(cls, zone):
            return cls(2100, 1, 1, tzinfo=zone)

    monkeypatch.setattr(module, "datetime", Later)

    assert sorted([make_bundle(tmp_path / "later").version, made.version])[0] == made.version


# --- what is not whole


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["flipped", "truncated", "grown", "emptied", "missing", "symlink", "folder"])
def test_an_altered_file_is_refused_by_its_name(folder, made, name, how):
    path, data = folder / name, (folder / name).read_bytes()
    sentence = f"{name} has sha256"
    match how:
        case "flipped":
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated" | "grown" | "emptied":
            changed = {"truncated": data[:-1], "grown": data + b"\0", "emptied": b""}[how]
            path.write_bytes(changed)
            sentence = f"{name} has {len(changed)} bytes, its manifest says {len(data)}; download or train it again"
        case "missing":
            path.unlink()
            sentence = rf"must hold .*; missing: \['{name}'\], unknown: none"
        case "symlink":
            path.unlink()
            path.symlink_to(made.path / name)
            sentence = f"{name} is not a plain file"
        case "folder":
            path.unlink()
            path.mkdir()
            sentence = f"{name} is not a plain file"

    with pytest.raises(BundleError, match=sentence):
        read_bundle(folder)


def test_a_flip_of_any_bit_is_refused(folder):
    random = np.random.default_rng(0)
    for name in FILES:
        data = (folder / name).read_bytes()
        for place in random.integers(0, len(data), 25):
            flipped = bytearray(data)
            flipped[place] ^= 1 << random.integers(8)
            (folder / name).write_bytes(flipped)
            with pytest.raises(BundleError, match=f"{name} has sha256"):
                read_bundle(folder)
        (folder / name).write_bytes(data)
    read_bundle(folder)


@pytest.mark.parametrize("extra", ["weights.pkl", ".hidden", "a folder"])
def test_a_file_too_many_is_refused_by_its_name(folder, extra):
    (folder / extra).mkdir() if extra == "a folder" else (folder / extra).touch()

    with pytest.raises(BundleError, match=rf"missing: none, unknown: \['{extra}'\]"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["../outside", "weights.pkl"])
@pytest.mark.parametrize("there", [True, False])
def test_a_manifest_that_names_other_files_is_refused(folder, name, there):
    if there:
        (folder / name).touch()
    edit_manifest(folder, lambda value: value["files"].update({name: {"sha256": "0" * 64, "size": 0}}))

    with pytest.raises(BundleError, match=rf"missing: none, unknown: \['{re.escape(name)}'\]"):
        read_bundle(folder)


def test_a_manifest_that_leaves_a_file_out_is_refused(folder):
    edit_manifest(folder, lambda value: value["files"].pop("golden.npz"))

    with pytest.raises(BundleError, match=r"missing: \['golden.npz'\], unknown: none"):
        read_bundle(folder)


@pytest.mark.parametrize("how", ["missing", "symlink", "folder", "no bundle folder"])
def test_without_a_manifest_there_is_no_bundle(folder, made, how):
    (folder / MANIFEST).unlink()
    if how == "symlink":
        (folder / MANIFEST).symlink_to(made.path / MANIFEST)
    if how == "folder":
        (folder / MANIFEST).mkdir()

    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json that is a plain file"):
        read_bundle(folder / "nowhere" if how == "no bundle folder" else folder)


BAD_MANIFESTS = {
    "empty": (b"", "it: Invalid JSON"),
    "garbage": (b"\x00\xff\xfe{", "it: Invalid JSON"),
    "cut short": (b'{"schema_version": 1,', "it: Invalid JSON"),
    "a list": (b"[]", "it: "),
    "deep": (b"[" * 100_000, "it: Invalid JSON"),
}


@pytest.mark.parametrize(("data", "sentence"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_manifest_that_is_no_json_object_is_refused(folder, data, sentence):
    (folder / MANIFEST).write_bytes(data)

    with pytest.raises(BundleError, match=f"manifest.json is not a manifest of schema 1: {sentence}"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("schema_version", 2, "schema_version: Input should be 1"),
        ("schema_version", ..., "schema_version: Field required"),
        ("unheard_of", 1, "unheard_of: Extra inputs are not permitted"),
        ("version", "latest", "version: String should match pattern"),
        ("version", "../20260101T000000Z-0123456789ab", "version: String should match pattern"),
        ("version", "20260101T000000Z-0123456789ab\n", "version: String should match pattern"),
        ("name", "../tiny", "name: String should match pattern"),
        ("name", "Tiny", "name: String should match pattern"),
        ("temperature", 0, "temperature: Input should be greater than 0"),
        ("temperature", float("nan"), "temperature: Input should be"),
        ("files", [], "files: Input should be an object"),
        ("config", None, "config: Input should be an object"),
        ("files", {"model.onnx": {"sha256": "0" * 63, "size": 1}}, "files.model.onnx.sha256: String should match"),
        ("files", {"model.onnx": {"sha256": "0" * 64, "size": -1}}, "files.model.onnx.size: Input should be greater"),
        ("files", {"model.onnx": {"sha256": "0" * 64, "size": 2**40}}, "files.model.onnx.size: Input should be less"),
        ("data", {"source": "x", "fingerprint": "y"}, "data.synthetic: Field required"),
    ],
)
def test_a_manifest_of_another_schema_is_refused_by_the_field(folder, field, value, sentence):
    edit_manifest(folder, lambda found: found.pop(field) if value is ... else found.update({field: value}))

    with pytest.raises(BundleError, match=f"manifest.json is not a manifest of schema 1: {sentence}"):
        read_bundle(folder)


def test_a_huge_manifest_is_refused_before_it_is_read(folder):
    with open(folder / MANIFEST, "ab") as file:
        file.truncate(2**31)

    with pytest.raises(BundleError, match=r"manifest.json has 2147483648 bytes; a manifest has at most 1048576"):
        read_bundle(folder)


# --- what is whole and still wrong inside

LABELS = {"fine": ["a", "b"], "superclasses": ["s"], "superclass_of": [0, 0]}
BAD_LABELS = {
    "no json": b"\x80\x04]",
    "a list": b"[]",
    "one key": {"fine": ["a", "b"]},
    "superclasses too few": LABELS | {"superclass_of": [0]},
    "superclass out of range": LABELS | {"superclass_of": [0, 1]},
    "names are numbers": LABELS | {"fine": [1, 2]},
    "names are one text": LABELS | {"fine": "ab"},
    "indices are text": LABELS | {"superclass_of": ["0", "0"]},
    "nested": LABELS | {"superclass_of": [[0], [0]]},
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("labels", BAD_LABELS.values(), ids=BAD_LABELS)
def test_labels_that_are_none_are_refused(folder, labels):
    replace(folder, "labels.json", labels if isinstance(labels, bytes) else json.dumps(labels).encode())

    with pytest.raises(BundleError, match=r"labels.json does not hold fine, superclasses and superclass_of: "):
        read_bundle(folder)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def stored(name, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


HUGE_SHAPE = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999999,)}\n"
HUGE_SHAPE = b"\x93NUMPY\x01\x00" + len(HUGE_SHAPE).to_bytes(2, "little") + HUGE_SHAPE
BAD_ARRAYS = {
    "garbage": lambda _: b"garbage",
    "empty": lambda _: b"",
    "a pickle": lambda canary: pickle.dumps(Canary(canary)),
    "an array of objects": lambda canary: npz(images=np.array([Canary(canary)], object)),
    "a pickle in a zip": lambda canary: stored("images.npy", pickle.dumps(Canary(canary))),
    "a pickle before a zip": lambda canary: pickle.dumps(Canary(canary)) + npz(images=np.zeros(3)),
    "cut short": lambda _: npz(images=np.zeros((4, 32, 32, 3), np.uint8))[:-30],
    "a header cut short": lambda _: stored("images.npy", HUGE_SHAPE[:-9]),
    "a header of nonsense": lambda _: stored("images.npy", HUGE_SHAPE.replace(b"}", b"(")),
    "a shape larger than memory": lambda _: stored("images.npy", HUGE_SHAPE),
    "no arrays": lambda _: npz(),
    "another name": lambda _: npz(pictures=np.zeros(3), probabilities=np.zeros(3)),
}


@pytest.mark.parametrize("make", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_golden_arrays_that_are_none_are_refused_and_run_no_code(folder, tmp_path, make):
    canary = tmp_path / "canary"
    replace(folder, "golden.npz", make(canary))

    with pytest.raises(
        BundleError,
        match=r"golden.npz (is not a readable .npz file of plain arrays|does not hold|holds .* which is no array)",
    ):
        read_bundle(folder).golden()

    assert not canary.exists()


def bomb(claimed=None):
    """70 MB of zeros in 70 kB; `claimed` is what the zip says instead."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        np.lib.format.write_array(file, np.zeros(70 * 2**20, np.uint8))
    data, size = buffer.getvalue(), (70 * 2**20 + 128).to_bytes(4, "little")
    assert data.count(size) == 2  # before the file and in the directory
    return data.replace(size, (claimed or 70 * 2**20 + 128).to_bytes(4, "little"))


def test_an_npz_bomb_is_refused_before_it_is_unpacked(folder):
    replace(folder, "reference.npz", bomb())

    with pytest.raises(BundleError, match=r"reference.npz unpacks to 73400448 bytes; at most 67108864 are read"):
        read_npz(folder / "reference.npz")


def test_an_npz_bomb_that_lies_about_its_size_is_refused(folder):
    replace(folder, "reference.npz", bomb(claimed=1000))

    with pytest.raises(BundleError, match=r"reference.npz is not a readable"):
        read_npz(folder / "reference.npz")


# --- writing


@pytest.mark.parametrize("name", ["Tiny", "", "a/b", "../a", "-a", "a" * 65])
def test_a_name_that_no_manifest_may_have_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        make_bundle(tmp_path / "bundle", name=name)

    with pytest.raises(BundleError, match="is not a bundle"):
        read_bundle(tmp_path / "bundle")


def test_a_folder_with_files_is_not_written_to(folder, tmp_path):
    before = (folder / MANIFEST).read_bytes()

    with pytest.raises(
        BundleError, match=r"directory must be empty to write a bundle, but .* holds files; choose a new one"
    ):
        make_bundle(folder, seed=1)

    assert (folder / MANIFEST).read_bytes() == before


def test_labels_keep_their_letters(tmp_path):
    names = tuple(f"grün {index}" for index in range(100))
    labels = Labels(names, ("s",), (0,) * 100)

    assert read_bundle(make_bundle(tmp_path / "bundle", labels=labels).path).labels == labels


@pytest.mark.parametrize("last", FILES)
def test_a_writer_stopped_at_any_file_leaves_no_bundle(tmp_path, last):
    """A trace function stops the writer at the line after a file is there."""
    target = tmp_path / "bundle"

    class Stopped(BaseException):
        pass

    def look(frame, event, argument):
        if event == "line" and frame.f_code is module.write_bundle.__code__ and (target / last).exists():
            raise Stopped
        return look

    previous = sys.gettrace()
    sys.settrace(look)
    try:
        with pytest.raises(Stopped):
            make_bundle(target)
    finally:
        sys.settrace(previous)

    assert (target / last).exists()
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json"):
        read_bundle(target)


def test_a_writer_killed_for_real_leaves_no_bundle_or_a_whole_one(tmp_path):
    script = tmp_path / "write.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, itertools
            from pathlib import Path
            from conftest import make_bundle
            make_bundle(Path(sys.argv[1], "warm"))
            print("warm", flush=True)
            for number in itertools.count():
                make_bundle(Path(sys.argv[1], str(number)))
            """
        )
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "bundles")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "warm\n"
    time.sleep(0.9)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    whole = 0
    for folder in (tmp_path / "bundles").iterdir():
        if (folder / MANIFEST).exists():
            read_bundle(folder)
            whole += 1
    assert whole >= 1
