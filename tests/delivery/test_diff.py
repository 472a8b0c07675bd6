"""What differs between two versions, from the manifest and the evaluation in the store."""

import pytest
from conftest import make_bundle
from interleaving import MemoryStore

from helpers.delivery.bundle import BundleError
from helpers.delivery.diff import Difference, describe, diff
from helpers.delivery.layout import UnknownModel
from helpers.delivery.versions import Registry


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diff")
    first = make_bundle(folder / "1", 0, evaluation={"test": {"top1": 0.5, "per_class": {"apple": 0.1}}})
    changes = {"test": {"top1": 0.625, "per_class": {"apple": 0.9}}, "note": "new"}
    gate = {"passed": True, "difference": 0.125}
    return first, make_bundle(folder / "2", 1, evaluation=changes, gate=gate, parent=first.version)


@pytest.fixture
def registry(bundles):
    registry = Registry(MemoryStore(), "tiny")
    for bundle in bundles:
        registry.publish(bundle.path)
    return registry


def test_metrics_gate_parent_and_sizes_that_differ_are_listed_and_nothing_else(registry, bundles):
    first, second = bundles
    found = {each.field: each for each in diff(registry, first.version, second.version)}
    assert found["evaluation.test.top1"] == Difference("evaluation.test.top1", 0.5, 0.625)
    assert found["evaluation.note"] == Difference("evaluation.note", None, "new")
    assert found["gate.difference"] == Difference("gate.difference", None, 0.125)
    assert found["parent"] == Difference("parent", None, first.version)
    sizes = {name for name in found if name.startswith("bytes.")}
    assert "bytes.evaluation.json" in sizes
    assert set(found) - sizes == {"evaluation.test.top1", "evaluation.note", "gate.passed", "gate.difference", "parent"}


def test_a_version_does_not_differ_from_itself(registry, bundles):
    assert diff(registry, bundles[0].version, bundles[0].version) == []


def test_a_version_is_described_by_field(registry, bundles):
    described = describe(registry, bundles[0].version)
    assert described["config.width"] == 0.0625
    assert described["data.source"] == "synthetic"
    assert described["bytes.model.onnx"] == bundles[0].model_path.stat().st_size
    assert "evaluation.test.per_class.apple" not in described


def test_a_version_that_is_absent_or_damaged_is_refused(registry, bundles):
    first, second = (bundle.version for bundle in bundles)
    with pytest.raises(UnknownModel, match="has no version"):
        diff(registry, first, f"{second[:-12]}{'0' * 12}")
    registry.store.write(f"models/tiny/versions/{second}/evaluation.json", b"{}", if_generation=None)
    with pytest.raises(BundleError, match=r"evaluation\.json is not what its manifest says"):
        diff(registry, first, second)
    registry.store.write(f"models/tiny/versions/{second}/manifest.json", b"{}", if_generation=None)
    with pytest.raises(BundleError, match=r"manifest\.json is no manifest"):
        diff(registry, first, second)
