"""delivery/quantisation.py: what a bundle says about 8 bits, and how a bundle that says something else is refused."""

import json

import pytest
from conftest import QUANTISATION, make_bundle

from helpers.delivery.bundle import MANIFEST, BundleError, read_bundle
from helpers.delivery.model_cache import fetch_bundle
from helpers.delivery.storage import open_store
from helpers.receipts import file_sha256
from helpers.registry import Registry

FILE = "quantisation.json"


@pytest.fixture
def folder(tmp_path):
    return make_bundle(tmp_path / "bundle", quantisation=QUANTISATION).path


def rewrite(folder, change):
    """Replaces the file by what `change` makes of it, with a manifest that agrees."""
    content = change(json.loads((folder / FILE).read_text()))
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][FILE] = {"sha256": file_sha256(folder / FILE), "size": (folder / FILE).stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_it_travels_in_a_bundle(folder):
    assert read_bundle(folder).quantisation == QUANTISATION
    assert FILE in read_bundle(folder).manifest.files


def test_a_bundle_without_is_one_for_floats(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")

    assert bundle.quantisation is None
    assert not (bundle.path / FILE).exists()


def test_it_is_published_and_fetched(folder, tmp_path):
    store = open_store((tmp_path / "store").as_uri())
    registry = Registry(store, "tiny")
    version = registry.publish(folder)

    assert read_bundle(registry.pull(version, tmp_path / "copy")).quantisation == QUANTISATION
    assert fetch_bundle(store, f"models/tiny/versions/{version}", tmp_path / "other").quantisation == QUANTISATION


def test_it_is_part_of_the_digest_in_the_version(tmp_path, folder):
    plain = make_bundle(tmp_path / "plain")

    assert plain.version.split("-")[1] != read_bundle(folder).version.split("-")[1]


def test_an_altered_file_is_refused_by_its_digest(folder):
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data.replace(b"8", b"9", 1))

    with pytest.raises(BundleError, match=rf"{FILE} has sha256"):
        read_bundle(folder)


def test_a_missing_file_is_refused_by_its_name(folder):
    (folder / FILE).unlink()

    with pytest.raises(BundleError, match=rf"missing: \['{FILE}'\], unknown: none"):
        read_bundle(folder)


def test_a_file_that_the_manifest_does_not_name_is_refused(folder, tmp_path):
    other = make_bundle(tmp_path / "plain").path
    (other / FILE).write_bytes((folder / FILE).read_bytes())

    with pytest.raises(BundleError, match=rf"missing: none, unknown: \['{FILE}'\]"):
        read_bundle(other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: "", "Invalid JSON"),
        (lambda content: "[1]", "Input should be an object"),
        (lambda content: content | {"ranges": {}}, "ranges: Dictionary should have at least 1 item"),
        (lambda content: content | {"ranges": {"block3_conv2": 0}}, "ranges.block3_conv2: Input should be greater"),
        (lambda content: content | {"ranges": {"block3_conv2": 1e300}}, "ranges.block3_conv2: Input should be less"),
        (lambda content: content | {"ranges": {"block3_conv2": "wide"}}, "ranges.block3_conv2: Input should be a val"),
        (lambda content: json.dumps(content).replace("0.5", "NaN"), "Input should be a finite number"),
        (lambda content: content | {"schema_version": 2}, "schema_version: Input should be 1"),
        (lambda content: content | {"zero_point": 3}, "zero_point: Extra inputs are not permitted"),
        (lambda content: {"ranges": content["ranges"]}, "calibration_images: Field required"),
    ],
)
def test_what_this_suite_does_not_write_is_refused_by_the_field(folder, change, sentence):
    rewrite(folder, change)

    with pytest.raises(BundleError, match=f"{FILE} does not hold the ranges of an 8-bit network: .*{sentence}"):
        read_bundle(folder)
