"""Signed bundles: with a public key configured, nothing that its owner did not sign is read."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from conftest import make_bundle
from interleaving import MemoryStore

from helpers.delivery import signature
from helpers.delivery.bundle import FILES, MANIFEST, SIGNATURE, BundleError, UnsignedBundle, read_bundle
from helpers.delivery.signature import PUBLIC_KEY, SIGNING_KEY, SignatureError, sign, verify
from helpers.delivery.versions import Registry


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """``keys/NAME`` and ``keys/NAME.pub`` for two pairs, made as the documentation says."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("keys")
    lines = re.search(r"::\n\n(.*?)\n\"?\n?$", signature.__doc__, re.DOTALL)[1]
    for name in ("ours", "theirs"):
        commands = lines.replace("signing.pem", name).replace("public.pem", f"{name}.pub")
        subprocess.run(["sh", "-ec", commands], cwd=folder, check=True)
    return folder


@pytest.fixture
def signing(keys, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, str(keys / "ours"))


@pytest.fixture
def checking(keys, monkeypatch):
    monkeypatch.setenv(PUBLIC_KEY, str(keys / "ours.pub"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("plain") / "bundle").path


@pytest.fixture
def signed(plain, tmp_path, signing):
    """A folder with a signed bundle."""
    folder = shutil.copytree(plain, tmp_path / "signed")
    (folder / SIGNATURE).write_bytes(sign((folder / MANIFEST).read_bytes()))
    return folder


def test_without_keys_nothing_is_signed_or_asked_for(plain):
    assert sign(b"data") is None
    verify(b"data", None)
    verify(b"data", b"?" * 64)
    assert not (plain / SIGNATURE).exists()
    read_bundle(plain)


def test_a_bundle_is_signed_when_it_is_written(tmp_path, signing, checking):
    bundle = make_bundle(tmp_path / "bundle")
    assert len((bundle.path / SIGNATURE).read_bytes()) == 64
    assert read_bundle(bundle.path) == bundle


def test_a_signed_bundle_is_read_with_and_without_a_public_key(signed, monkeypatch, keys):
    read_bundle(signed)
    monkeypatch.setenv(PUBLIC_KEY, str(keys / "ours.pub"))
    read_bundle(signed)


def test_a_signature_by_another_key_is_refused_by_the_name_of_the_key(signed, monkeypatch, keys):
    monkeypatch.setenv(PUBLIC_KEY, str(keys / "theirs.pub"))
    with pytest.raises(UnsignedBundle) as error:
        read_bundle(signed)
    assert str(error.value) == (
        f"{signed / MANIFEST} is refused: its signature is not by the key in SUITE_PUBLIC_KEY "
        f"({keys / 'theirs.pub'}), or it was altered"
    )


@pytest.mark.parametrize("left", [None, b"", b"x" * 63, b"x" * 65])
def test_a_bundle_without_a_signature_is_refused(signed, checking, keys, left):
    (signed / SIGNATURE).unlink()
    if left is not None:
        (signed / SIGNATURE).write_bytes(left)
    with pytest.raises(UnsignedBundle) as error:
        read_bundle(signed)
    assert str(error.value) == (
        f"{signed / MANIFEST} is refused: it is not signed, and SUITE_PUBLIC_KEY ({keys / 'ours.pub'}) asks for it; "
        "publish it with SUITE_SIGNING_KEY"
    )


def test_an_altered_manifest_is_refused_before_it_is_parsed(signed, checking):
    (signed / MANIFEST).write_bytes(b"no JSON at all")
    with pytest.raises(UnsignedBundle, match="or it was altered"):
        read_bundle(signed)


@pytest.mark.parametrize(("change", "problem"), [("add", "unknown: ['extra']"), ("remove", "missing: ['golden.npz']")])
def test_a_signed_manifest_with_a_file_too_many_or_too_few_is_refused_by_its_name(signed, checking, change, problem):
    text = (signed / MANIFEST).read_text()
    entry = re.search(r'"golden\.npz": \{.*?\},?', text, re.DOTALL)[0]
    text = text.replace(entry, "" if change == "remove" else entry + entry.replace("golden.npz", "extra"))
    (signed / MANIFEST).write_text(text)
    (signed / SIGNATURE).write_bytes(sign(text.encode()))
    with pytest.raises(BundleError, match=re.escape(problem)):
        read_bundle(signed)


def test_no_flip_and_no_cut_of_any_byte_is_read(signed, checking, count):
    random = np.random.default_rng(0)
    for _ in range(count(600, 10_000)):
        path = signed / random.choice([*FILES, MANIFEST, SIGNATURE])
        good = path.read_bytes()
        at = int(random.integers(len(good)))
        bad = [good[:at], good[:at] + bytes([good[at] ^ 1 << random.integers(8)]) + good[at + 1 :], good[at + 1 :]]
        path.write_bytes(bad[random.integers(3)])
        with pytest.raises(BundleError):
            read_bundle(signed)
        path.write_bytes(good)
    read_bundle(signed)


def test_publishing_signs_and_the_signature_goes_before_the_manifest(plain, signing, checking, tmp_path):
    registry = Registry(MemoryStore(), "tiny")
    version = registry.publish(plain)
    order = sorted(registry.store.list(), key=lambda info: info.generation)
    assert order[0].key.endswith(SIGNATURE)
    assert order[-1].key.endswith(MANIFEST)
    assert registry.publish(plain) == version
    assert (registry.download(version, tmp_path / "cache") / SIGNATURE).is_file()


def test_a_version_published_without_a_signature_gets_one_when_it_is_published_again(
    plain, keys, monkeypatch, tmp_path
):
    registry = Registry(MemoryStore(), "tiny")
    version = registry.publish(plain)
    monkeypatch.setenv(PUBLIC_KEY, str(keys / "ours.pub"))
    with pytest.raises(UnsignedBundle) as error:
        registry.download(version, tmp_path / "cache")
    assert str(error.value).startswith(
        f"memory:/models/tiny/versions/{version}/{MANIFEST} is refused: it is not signed"
    )
    with pytest.raises(UnsignedBundle, match="it is not signed"):
        registry.publish(plain)
    monkeypatch.setenv(SIGNING_KEY, str(keys / "ours"))
    registry.publish(plain)
    read_bundle(registry.download(version, tmp_path / "cache"))


def test_a_key_that_others_may_read_is_refused(keys, monkeypatch, tmp_path):
    key = shutil.copy(keys / "ours", tmp_path / "key")
    key.chmod(0o644)
    monkeypatch.setenv(SIGNING_KEY, str(key))
    with pytest.raises(PermissionError, match=r"SUITE_SIGNING_KEY: .*key can be read by others \(mode 0644\)"):
        sign(b"data")


def test_a_file_that_is_no_key_is_named(keys, monkeypatch, tmp_path):
    (tmp_path / "key").write_text("secret words")
    (tmp_path / "key").chmod(0o600)
    monkeypatch.setenv(SIGNING_KEY, str(tmp_path / "key"))
    with pytest.raises(SignatureError, match="must hold a private Ed25519 key in PEM, without a password") as error:
        sign(b"data")
    assert "secret words" not in str(error.value)
    for file, problem in ((tmp_path / "key", "cannot be read as"), (tmp_path / "none", "cannot be read as")):
        monkeypatch.setenv(PUBLIC_KEY, str(file))
        with pytest.raises(SignatureError, match=rf"^SUITE_PUBLIC_KEY: {file} {problem}"):
            verify(b"data", None)
