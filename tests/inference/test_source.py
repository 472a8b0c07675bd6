import pytest
from conftest import make_bundle

from helpers.delivery.model_dir import ModelDirError
from helpers.delivery.storage import StorageUnavailable, Store, open_store
from helpers.inference.source import MODEL_DIR, ModelSource
from helpers.registry import Registry, UnknownModel


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return [make_bundle(folder / str(seed), seed, name="cifar100-vgg16") for seed in (0, 1)]


@pytest.fixture
def source(tmp_path, bundles):
    """A source with an empty bucket and the second bundle to fall back on."""
    return ModelSource(str(tmp_path / "store"), fallback=bundles[1].path, cache=tmp_path / "cache", threads=1)


@pytest.fixture
def registry(tmp_path):
    return Registry(open_store(str(tmp_path / "store")), "cifar100-vgg16")


def promote(registry, bundle):
    return registry.promote(registry.publish(bundle.path), reason="test")


def test_the_bucket_comes_first(source, registry, bundles):
    promote(registry, bundles[0])
    assert source.load(MODEL_DIR).version == bundles[0].version
    assert source.served_from == f"{MODEL_DIR} in {source.bucket}"


def test_the_fallback_serves_until_the_bucket_has_a_model(source, registry, bundles):
    assert source.load(MODEL_DIR).version == bundles[1].version
    assert source.served_from == f"{bundles[1].path} ({source.bucket} has no {MODEL_DIR})"
    assert source.load(MODEL_DIR).version == bundles[1].version
    promote(registry, bundles[0])
    assert source.load(MODEL_DIR).version == bundles[0].version


def test_the_fallback_does_not_come_back(source, registry, bundles):
    alias = promote(registry, bundles[0])
    source.load(MODEL_DIR)
    registry.store.delete(f"{MODEL_DIR}/aliases/production.json", if_generation=alias.generation)
    with pytest.raises(UnknownModel):
        source.load(MODEL_DIR)


def test_the_fallback_stands_in_for_its_own_model_dir_only(source):
    with pytest.raises(UnknownModel):
        source.load("models/another")
    with pytest.raises(ModelDirError):
        source.load("../model")


@pytest.mark.parametrize("exists", [True, False])
def test_without_a_bundle_to_fall_back_on_the_model_is_unknown(tmp_path, exists):
    if exists:
        (tmp_path / "model").mkdir()
    source = ModelSource(str(tmp_path / "store"), fallback=tmp_path / "model", cache=tmp_path / "cache")
    with pytest.raises(UnknownModel):
        source.load(MODEL_DIR)


class Unreachable(Store):
    url = "gs://bucket"

    def read(self, key):
        raise StorageUnavailable("gs://bucket is out of reach; try later")


def test_a_bucket_out_of_reach_lets_the_fallback_start_but_fails_a_reload(source, bundles):
    source.store, source.bucket = Unreachable(), Unreachable.url
    assert source.load(MODEL_DIR).version == bundles[1].version
    assert (
        source.served_from == f"{bundles[1].path} (gs://bucket is out of reach: gs://bucket is out of reach; try later)"
    )
    with pytest.raises(StorageUnavailable):
        source.load(MODEL_DIR)
