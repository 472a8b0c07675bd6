"""Publishing, promoting and pulling models, on a folder and on the fake Google Cloud Storage."""

import getpass
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import make_bundle

from helpers.delivery.bundle import FILES, MANIFEST, BundleError, read_bundle
from helpers.delivery.model_dir import ModelDirError, resolve
from helpers.delivery.storage import Object, ObjectNotFound, StorageUnavailable, open_store
from helpers.registry import PromotionConflict, Registry, UnknownModel, VersionConflict, main
from helpers.workspace import ROOT

V1, V2, V3 = (f"2026010{day}T000000Z-{day * 12}" for day in "123")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One bundle; the tests change copies of it."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").path


@pytest.fixture
def bundle(made, tmp_path):
    """``bundle(version)`` makes a valid bundle of that version."""

    def copy(version):
        directory = tmp_path / "bundles" / version
        shutil.copytree(made, directory)
        rewrite_manifest(directory, version=version)
        return directory

    return copy


def rewrite_manifest(directory, **changes):
    manifest = json.loads((directory / MANIFEST).read_bytes())
    (directory / MANIFEST).write_text(json.dumps(manifest | changes))


@pytest.fixture(params=["file", "gs"])
def store(request, tmp_path):
    if request.param == "gs":
        request.getfixturevalue("gcs")
    store = open_store({"file": str(tmp_path / "store"), "gs": "gs://bucket/suite"}[request.param], patience_s=2.0)
    yield store
    store.close()


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def registry(store):
    return Registry(store, "tiny")


@pytest.fixture
def three(registry, bundle):
    """A registry that holds versions V1, V2 and V3."""
    for version in (V1, V2, V3):
        registry.publish(bundle(version))
    return registry


# Publishing


def test_the_manifest_is_published_last(registry, bundle):
    assert registry.publish(bundle(V1)) == V1
    found = sorted(registry.store.list(), key=lambda info: info.generation)
    assert {info.key for info in found} == {f"models/tiny/versions/{V1}/{file}" for file in (*FILES, MANIFEST)}
    assert found[-1].key == f"models/tiny/versions/{V1}/manifest.json"
    assert [version.version for version in registry.versions()] == [V1]


PUBLISHER = """
import os, signal, sys
from helpers.registry import Registry
from helpers.delivery.storage import FileStore, open_store
write, left = FileStore.write, int(sys.argv[3])
def killed(self, *arguments, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, *arguments, **options)
FileStore.write = killed
Registry(open_store(sys.argv[1]), "tiny").publish(sys.argv[2])
"""


@pytest.mark.parametrize("writes", [0, 3, len(FILES)])
def test_a_publisher_killed_between_writes_leaves_no_version_and_can_be_repeated(folder, bundle, tmp_path, writes):
    directory, registry = bundle(V1), Registry(folder, "tiny")
    command = [sys.executable, "-c", PUBLISHER, folder.url, directory, str(writes)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    assert len(folder.list()) == writes
    assert registry.versions() == []
    with pytest.raises(UnknownModel):
        registry.promote(V1, reason="never")
    with pytest.raises(UnknownModel):
        registry.download(V1, tmp_path / "cache")
    registry.publish(directory)
    assert [version.version for version in registry.versions()] == [V1]
    read_bundle(registry.download(V1, tmp_path / "cache"))


def test_publishing_again_changes_nothing(registry, bundle):
    directory = bundle(V1)
    registry.publish(directory)
    before = registry.store.list()
    assert registry.publish(directory) == V1
    assert registry.store.list() == before


def test_a_version_never_gets_another_manifest(registry, bundle):
    directory = bundle(V1)
    registry.publish(directory)
    rewrite_manifest(directory, parent=V2)
    with pytest.raises(VersionConflict) as error:
        registry.publish(directory)
    assert str(error.value) == (
        f"{registry.store.url}/models/tiny/versions/{V1}/manifest.json has other content: versions never change; "
        "write the bundle anew, under a version of its own"
    )


def test_an_unfinished_version_never_gets_another_file(registry, bundle):
    registry.store.write(f"models/tiny/versions/{V1}/labels.json", b"{}", if_generation=0)
    with pytest.raises(VersionConflict, match=r"labels\.json has other content"):
        registry.publish(bundle(V1))
    assert registry.versions() == []


def test_a_damaged_bundle_is_not_published(registry, bundle):
    directory = bundle(V1)
    data = bytearray((directory / "model.onnx").read_bytes())
    data[100] ^= 1
    (directory / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        registry.publish(directory)
    assert registry.store.list() == []


def test_a_bundle_of_another_model_is_not_published(store, bundle):
    with pytest.raises(BundleError, match="is a bundle of model 'tiny', not of 'vgg16'"):
        Registry(store, "vgg16").publish(bundle(V1))
    assert store.list() == []


def test_versions_are_in_the_order_of_publishing_whatever_their_clock_said(registry, bundle):
    for version in (V3, V1, V2):
        registry.publish(bundle(version))
    assert [version.version for version in registry.versions()] == [V3, V1, V2]


@pytest.mark.parametrize("name", ["", "..", "a/b", "Tiny", "-a", "a\n", "x" * 65])
def test_a_bad_name_is_refused(folder, name):
    with pytest.raises(ValueError, match="name must match") as error:
        Registry(folder, name)
    assert str(error.value) == f"name must match [a-z0-9][a-z0-9._-]{{0,63}}, got {name!r}"


# Promoting


def test_a_promotion_moves_the_alias_and_keeps_the_way_back(three):
    assert three.alias() is None
    for number, version in enumerate((V1, V2, V3)):
        moved = three.promote(version, reason=f"reason {number}")
        assert moved == three.alias()
        assert (moved.version, moved.reason, moved.previous) == (version, f"reason {number}", [None, V1, V2][number])
    assert three.rollback(reason="worse").version == V2
    assert three.rollback(reason="worse still").version == V1
    assert (three.alias().version, three.alias().reason, three.alias().previous) == (V1, "worse still", None)
    with pytest.raises(UnknownModel) as error:
        three.rollback(reason="to what?")
    assert str(error.value) == "alias 'production' of model 'tiny' has no version before; promote one instead"


def test_aliases_are_apart(three):
    three.promote(V1, reason="good")
    three.promote(V2, alias="candidate", reason="new")
    assert (three.alias().version, three.alias("candidate").version) == (V1, V2)


def test_promoting_the_same_version_again_keeps_the_way_back(three):
    three.promote(V1, reason="first")
    second = three.promote(V2, reason="second")
    assert three.promote(V2, reason="again") == second
    assert three.rollback(reason="back").version == V1


def test_the_alias_file_says_version_previous_and_reason(three):
    three.promote(V1, reason="first")
    three.promote(V2, reason="better by 2 points")
    file = json.loads(three.store.read("models/tiny/aliases/production.json").data)
    assert set(file) == {"schema_version", "version", "previous", "reason", "who", "moved", "history"}
    assert (file["version"], file["previous"], file["reason"]) == (V2, V1, "better by 2 points")
    assert file["who"] == getpass.getuser()
    assert three.rollback(reason="worse", who="nightly").who == "nightly"


def test_only_published_versions_are_promoted(registry):
    with pytest.raises(UnknownModel) as error:
        registry.promote(V1, reason="why not")
    assert str(error.value) == f"model 'tiny' has no version '{V1}' in {registry.store.url}; publish it first"
    assert registry.alias() is None


def test_a_promotion_based_on_an_old_state_is_refused_and_names_the_winner(three):
    first = three.promote(V1, reason="first", expected=0)
    second = three.promote(V2, reason="second", expected=first.generation)
    moves = {
        "promote": lambda: three.promote(V3, reason="late", expected=first.generation),
        "promote the same": lambda: three.promote(V2, reason="late", expected=0),
        "roll back": lambda: three.rollback(reason="late", expected=first.generation),
    }
    for name, move in moves.items():
        with pytest.raises(PromotionConflict) as error:
            move()
        assert str(error.value) == (
            f"alias 'production' of 'tiny' was moved by another: it points to {V2} (second), "
            f"at generation {second.generation}; look and decide again"
        ), name
    assert three.alias() == second


def test_of_sixteen_promoters_one_wins_each_round(three, count):
    generation, barrier = 0, threading.Barrier(16)

    def attempt(number, version, expected):
        barrier.wait()
        try:
            return three.promote(version, reason=f"promoter {number}", expected=expected)
        except PromotionConflict as error:
            return str(error)

    with ThreadPoolExecutor(16) as pool:
        for round_ in range(count(3, 500)):  # never the version that is in production: that is no move
            versions = ((V1, V2), (V3, V3))[round_ % 2]
            results = list(pool.map(attempt, range(16), versions * 8, [generation] * 16))
            (winner,) = [result for result in results if not isinstance(result, str)]
            assert three.alias() == winner
            losers = [result for result in results if isinstance(result, str)]
            assert all(winner.reason in loser and winner.version in loser for loser in losers)
            generation = winner.generation


def test_a_promotion_that_is_overtaken_between_reading_and_writing_is_refused(three, monkeypatch):
    three.promote(V1, reason="first")
    write = three.store.write

    def overtaken(key, data, *, if_generation):
        monkeypatch.setattr(three.store, "write", write)
        three.promote(V2, reason="faster")
        return write(key, data, if_generation=if_generation)

    monkeypatch.setattr(three.store, "write", overtaken)
    with pytest.raises(PromotionConflict, match=rf"it points to {V2} \(faster\)"):
        three.promote(V3, reason="slower")


def test_a_promotion_whose_reply_was_lost_is_done_once(gcs, bundle):
    registry = Registry(open_store("gs://bucket", patience_s=2.0), "tiny")
    registry.publish(bundle(V1))
    gcs.inject("drop", "upload")
    assert registry.promote(V1, reason="first") == registry.alias()
    registry.store.close()


def test_an_alias_file_that_is_none_is_refused(registry, tmp_path):
    for data in (b"", b"[]", b'{"version": "../../etc"}', b"\xff"):
        registry.store.write("models/tiny/aliases/production.json", data, if_generation=None)
        with pytest.raises(UnknownModel, match="is no alias file; remove it and promote a version"):
            resolve(registry.store, "models/tiny", tmp_path / "cache")


# Pulling


def test_a_download_is_a_verified_bundle_and_is_reused(registry, bundle, tmp_path, monkeypatch):
    registry.publish(bundle(V1))
    path = registry.download(V1, tmp_path / "cache")
    assert path == tmp_path / "cache" / "tiny" / V1
    assert read_bundle(path).version == V1
    monkeypatch.delattr(type(registry.store), "read")
    assert registry.download(V1, tmp_path / "cache") == path


def flip(path):
    data = bytearray((path / "golden.npz").read_bytes())
    data[-30] ^= 1
    (path / "golden.npz").write_bytes(data)


DAMAGES = {
    "bit flip": flip,
    "truncated": lambda path: os.truncate(path / "model.onnx", 1000),
    "file missing": lambda path: (path / "labels.json").unlink(),
    "file added": lambda path: (path / "extra.py").write_text(""),
    "manifest missing": lambda path: (path / MANIFEST).unlink(),
    "another version": lambda path: rewrite_manifest(path, version=V2),
    "no folder": lambda path: shutil.rmtree(path) or path.write_text("?"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_fetched_again(folder, bundle, tmp_path, damage):
    registry = Registry(folder, "tiny")
    registry.publish(bundle(V1))
    path = registry.download(V1, tmp_path / "cache")
    damage(path)
    assert registry.download(V1, tmp_path / "cache") == path
    assert read_bundle(path).version == V1
    assert {entry.name for entry in path.parent.iterdir()} == {".lock", V1}


def test_a_truncated_download_is_fetched_once_more(registry, bundle, tmp_path, monkeypatch):
    registry.publish(bundle(V1))
    read, cut = registry.store.read, []

    def cut_once(key):
        found = read(key)
        if key.endswith("model.onnx") and not cut:
            cut.append(key)
            return Object(found.data[:100], found.generation)
        return found

    monkeypatch.setattr(registry.store, "read", cut_once)
    assert read_bundle(registry.download(V1, tmp_path / "cache")).version == V1
    assert cut


def test_what_is_truncated_in_the_store_is_refused_and_not_kept(registry, bundle, tmp_path):
    registry.publish(bundle(V1))
    key = f"models/tiny/versions/{V1}/model.onnx"
    registry.store.write(key, registry.store.read(key).data[:1000], if_generation=None)
    with pytest.raises(BundleError) as error:
        registry.download(V1, tmp_path / "cache")
    assert str(error.value).startswith(f"{registry.store.url}/{key} has 1000 bytes, its manifest says ")
    assert [path.name for path in (tmp_path / "cache" / "tiny").iterdir()] == [".lock"]


def test_a_bundle_in_the_place_of_another_version_is_refused(folder, bundle, tmp_path):
    registry = Registry(folder, "tiny")
    directory = bundle(V1)
    for file in (*FILES, MANIFEST):
        folder.write(f"models/tiny/versions/{V2}/{file}", (directory / file).read_bytes(), if_generation=0)
    with pytest.raises(BundleError, match=f"models/tiny/versions/{V2} holds tiny {V1}"):
        registry.download(V2, tmp_path / "cache")


def test_a_file_missing_in_the_store_is_named(folder, bundle, tmp_path):
    registry = Registry(folder, "tiny")
    registry.publish(bundle(V1))
    folder.delete(f"models/tiny/versions/{V1}/reference.npz", if_generation=None)
    with pytest.raises(BundleError, match=r"missing: \['reference.npz'\]"):
        registry.download(V1, tmp_path / "cache")


def test_a_download_cut_on_the_way_arrives_whole(gcs, bundle, tmp_path):
    registry = Registry(open_store("gs://bucket", patience_s=2.0), "tiny")
    registry.publish(bundle(V1))
    for kind in ("cut", "shorten", "unavailable"):
        gcs.inject(kind, "download")
    assert read_bundle(registry.download(V1, tmp_path / "cache")).version == V1
    registry.store.close()


def test_simultaneous_downloads_fetch_once(registry, bundle, tmp_path, monkeypatch):
    registry.publish(bundle(V1))
    read, keys = registry.store.read, []
    monkeypatch.setattr(registry.store, "read", lambda key: keys.append(key) or read(key))
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(registry.download, [V1] * 4, [tmp_path / "cache"] * 4))
    assert paths == {tmp_path / "cache" / "tiny" / V1}
    assert keys.count(f"models/tiny/versions/{V1}/model.onnx") == 1


def test_what_a_killed_download_left_is_cleared(folder, bundle, tmp_path):
    registry = Registry(folder, "tiny")
    registry.publish(bundle(V1))
    leftover = tmp_path / "cache" / "tiny" / ".download-killed"
    leftover.mkdir(parents=True)
    (leftover / "model.onnx").write_bytes(b"half")
    registry.download(V1, tmp_path / "cache")
    assert not leftover.exists()


def test_a_cache_that_cannot_be_written_says_so(folder, bundle, tmp_path):
    registry = Registry(folder, "tiny")
    registry.publish(bundle(V1))
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageUnavailable) as error:
        registry.download(V1, tmp_path / "cache")
    assert str(error.value) == (
        f"cannot keep {V1} in {tmp_path / 'cache'}: Not a directory; make room or choose another folder"
    )


def test_a_pulled_version_is_a_verified_bundle_in_a_new_folder(registry, bundle, tmp_path):
    registry.publish(bundle(V1))
    assert registry.pull(V1, tmp_path / "new" / "here") == tmp_path / "new" / "here"
    assert read_bundle(tmp_path / "new" / "here").version == V1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["here"]
    with pytest.raises(FileExistsError, match=r"folder must be new, but .*here exists; choose another"):
        registry.pull(V1, tmp_path / "new" / "here")


# The command


def run(store, capsys, *arguments):
    """Exit code, lines printed, and the error of ``python -m helpers.registry``."""
    code = main(["--bucket", store.url, "--name", "tiny", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def test_the_command_promotes_shows_compares_and_rolls_back(folder, bundle, capsys):
    for version in (V1, V2):
        Registry(folder, "tiny").publish(bundle(version))
    for version, before in ((V1, "nothing"), (V2, V1)):
        moved = run(folder, capsys, "promote", version, "--reason", "better", "--who", "ci")
        assert moved == (0, [f"production points to {version} (before: {before})"], "")
    assert run(folder, capsys, "list") == (0, [V1, f"{V2} production"], "")
    _, shown, _ = run(folder, capsys, "show", "production")
    assert re.fullmatch(r"production since \S+ by ci: better", shown[0])
    assert shown[1] == f"  before: {V1}"
    assert ["evaluation.test.top1", "0.5"] in [line.split() for line in shown]
    assert run(folder, capsys, "diff", V1, "production")[1] == [f"  {V1}  ->  {V2}"]
    assert run(folder, capsys, "rollback", "--reason", "worse")[1] == [
        f"production points to {V1} again (before: nothing)"
    ]


def test_the_command_pulls_and_removes(folder, bundle, capsys, tmp_path):
    for version in (V1, V2, V3):
        Registry(folder, "tiny").publish(bundle(version))
    assert run(folder, capsys, "gc", "--keep", 1, "--dry-run")[1] == [
        f"{V1} would be removed",
        f"{V2} would be removed",
        "2 would be removed, 1 kept",
    ]
    assert run(folder, capsys, "gc", "--keep", 2)[1] == [f"{V1} removed", "1 removed, 2 kept"]
    assert run(folder, capsys, "pull", V2, tmp_path / "copy") == (0, [f"{tmp_path / 'copy'} holds a verified copy"], "")
    assert read_bundle(tmp_path / "copy").version == V2


def test_the_command_says_in_one_sentence_what_it_cannot_do(folder, capsys):
    cases = {
        ("promote", V1, "--reason", "x"): f"model 'tiny' has no version '{V1}' in {folder.url}; publish it first",
        ("show", "candidate"): f"model 'tiny' has no alias 'candidate' in {folder.url}; promote a version to it",
        ("gc", "--keep", 0): "keep must be at least 1 and history at least 0, got 0 and 5",
    }
    for arguments, sentence in cases.items():
        assert run(folder, capsys, *arguments) == (1, [], f"error: {sentence}\n")


def test_the_command_has_the_name_that_the_readme_gives_it(folder):
    command = [sys.executable, "-m", "helpers.registry", "--bucket", folder.url, "list"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


# resolve


@pytest.fixture
def served(three):
    """V1 in production, V2 as candidate."""
    three.promote(V1, reason="good")
    three.promote(V2, alias="candidate", reason="new")
    return three.store


def test_a_model_dir_is_resolved(served, tmp_path):
    cases = {
        "models/tiny": V1,
        "models/tiny/": V1,
        "models/tiny/aliases/production": V1,
        "models/tiny/aliases/candidate": V2,
        f"models/tiny/versions/{V3}": V3,
        f"{served.url}/models/tiny": V1,
        f"{served.url}/models/tiny/aliases/candidate": V2,
        f"{served.url}/models/tiny/versions/{V3}": V3,
    }
    for model_dir, version in cases.items():
        assert read_bundle(resolve(served, model_dir, tmp_path / "cache")).version == version, model_dir


def test_a_model_that_is_absent_is_unknown(served, tmp_path):
    absent = f"{V2[:-1]}0"
    cases = {
        "models/other": f"model 'other' has no alias 'production' in {served.url}; promote a version to it",
        "models/tiny/aliases/none": f"model 'tiny' has no alias 'none' in {served.url}; promote a version to it",
        f"models/tiny/versions/{absent}": f"model 'tiny' has no version '{absent}' in {served.url}; publish it first",
    }
    for model_dir, message in cases.items():
        with pytest.raises(UnknownModel) as error:
            resolve(served, model_dir, tmp_path / "cache")
        assert str(error.value) == message


EVENTS, WATCH = [], threading.local()
WATCHED = ("open", "os.listdir", "os.scandir", "os.mkdir", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
sys.addaudithook(
    lambda event, arguments: EVENTS.append((event, arguments)) if event in WATCHED and getattr(WATCH, "on", 0) else None
)


@pytest.mark.parametrize(
    "model_dir",
    [
        "",
        "/",
        "models",
        "models/",
        "models/tiny/versions",
        "models/tiny/versions/latest",
        "models/tiny/aliases",
        "models/tiny/aliases/production/x",
        "models/tiny//",
        "models//tiny",
        "models/../models/tiny",
        "models/..",
        "models/tiny/../tiny",
        "models/tiny/aliases/../../../../etc/passwd",
        "models/tiny/aliases/..%2f..",
        "../models/tiny",
        "/models/tiny",
        "/etc/passwd",
        "~/models/tiny",
        "./models/tiny",
        "models\\tiny",
        "models/tiny\0",
        "models/tiny\0.onnx",
        "models/tiny\n",
        " models/tiny",
        "models/Tiny",
        "models/tïny",
        "MODELS/tiny",
        "gs://other/models/tiny",
        "gs://bucket/models/tiny",
        "gs://bucket/suite2/models/tiny",
        "gs://bucket/suite/../models/tiny",
        "file:///models/tiny",
        "file:///etc",
        "hf://owner/model",
        "hf://models/tiny",
        "http://127.0.0.1:9/models/tiny",
        "https://example.org/models/tiny",
        "s3://bucket/suite/models/tiny",
        "models/" + "x" * 100_000,
    ],
    ids=lambda model_dir: repr(model_dir)[:40],
)
@pytest.mark.parametrize("kind", ["file", "gs"])
def test_anything_else_is_refused_and_nothing_is_opened(tmp_path, kind, model_dir):
    store = open_store({"file": str(tmp_path / "store"), "gs": "gs://bucket/suite"}[kind])
    EVENTS.clear()
    WATCH.on = True
    try:
        with pytest.raises(ModelDirError) as error:
            resolve(store, model_dir, tmp_path / "cache")
    finally:
        WATCH.on = False
    assert EVENTS == []
    assert str(error.value) == (
        "model_dir must be models/<name>, models/<name>/aliases/<alias> or models/<name>/versions/<version>, alone or "
        f"after {store.url}/, got {model_dir[:200]!r}"
    )


@pytest.mark.parametrize("linked", ["models/tiny", "models/tiny/aliases/production", f"models/tiny/versions/{V1}"])
def test_a_symbolic_link_out_of_the_bucket_is_refused(folder, bundle, tmp_path, linked):
    outside = Registry(open_store(str(tmp_path / "outside")), "tiny")
    outside.publish(bundle(V1))
    outside.promote(V1, reason="planted")
    name = linked + (".json" if "aliases" in linked else "")
    (tmp_path / "store" / name).parent.mkdir(parents=True)
    (tmp_path / "store" / name).symlink_to(tmp_path / "outside" / name)
    with pytest.raises(ModelDirError, match="model_dir must be models/<name>"):
        resolve(folder, linked, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/2*"))


def test_a_bucket_out_of_reach_still_serves_a_cached_version(gcs, bundle, tmp_path):
    store = open_store("gs://bucket", patience_s=0.2)
    Registry(store, "tiny").publish(bundle(V1))
    path = resolve(store, f"models/tiny/versions/{V1}", tmp_path / "cache")
    gcs.inject("unavailable", "download", times=1000)
    assert resolve(store, f"models/tiny/versions/{V1}", tmp_path / "cache") == path
    with pytest.raises(StorageUnavailable):
        resolve(store, "models/tiny", tmp_path / "cache")
    store.close()


def test_reading_what_was_never_published_leaves_the_store_untouched(folder, tmp_path):
    with pytest.raises(ObjectNotFound):
        folder.read("models/tiny/aliases/production.json")
    with pytest.raises(UnknownModel):
        resolve(folder, "models/tiny", tmp_path / "cache")
    assert not (tmp_path / "store").exists()
    assert not (tmp_path / "cache").exists()
