"""Removing versions: never one that is needed, and never by halves, whoever comes between and whoever is killed."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_bundle
from interleaving import Actor, Killed, MemoryStore, play

from helpers.delivery.bundle import FILES, MANIFEST
from helpers.delivery.garbage import gc
from helpers.delivery.layout import BeingRemoved, PromotionConflict, RegistryError, UnknownModel
from helpers.delivery.lease import Lease
from helpers.delivery.storage import open_store
from helpers.delivery.versions import Registry

V = [f"2026010{day}T000000Z-{str(day) * 12}" for day in range(1, 9)]


def put_version(store, version):
    """The files of a version, their content aside."""
    for file in (*FILES, MANIFEST):
        store.write(f"models/tiny/versions/{version}/{file}", b"{}", if_generation=0)


def found_versions(store):
    return [version.version for version in Registry(store, "tiny").versions()]


def require_whole(store):
    """Every version that exists is whole, and every alias points to one that exists."""
    keys = {info.key for info in store.list()}
    whole = {version for version in V if {f"models/tiny/versions/{version}/{file}" for file in FILES} <= keys}
    exist = set(found_versions(store))
    assert exist <= whole
    aliases = Registry(store, "tiny").aliases()
    assert {alias.version for alias in aliases.values()} <= exist


@pytest.fixture(params=["file", "gs", "memory"])
def registry(request, tmp_path):
    """Eight versions."""
    if request.param == "gs":
        request.getfixturevalue("gcs")
    url = {"file": str(tmp_path / "store"), "gs": "gs://bucket/suite"}.get(request.param)
    store = open_store(url, patience_s=2.0) if url else MemoryStore()
    for version in V:
        put_version(store, version)
    yield Registry(store, "tiny")
    store.close()


def test_what_nobody_needs_is_removed_and_nothing_else(registry):
    for version in (V[0], V[1], V[2]):
        registry.promote(version, reason="test")
    registry.promote(V[3], alias="candidate", reason="test")
    Lease(registry.store, "tiny", "a").name({V[4]})

    garbage = gc(registry, keep=2, history=1)

    assert garbage.removed == (V[0], V[5])
    assert garbage.kept == (V[1], V[2], V[3], V[4], V[6], V[7])
    assert found_versions(registry.store) == list(garbage.kept)
    assert not registry.store.list(f"models/tiny/versions/{V[0]}")
    assert not registry.store.list("models/tiny/removing/")
    assert registry.alias().history == (V[1],)
    assert registry.rollback(reason="back").version == V[1]


def test_a_dry_run_writes_nothing(registry):
    before = registry.store.list()
    assert gc(registry, keep=3, dry_run=True).removed == tuple(V[:5])
    assert registry.store.list() == before


def test_with_nothing_to_remove_nothing_is_written(registry):
    registry.promote(V[0], reason="test")
    before = registry.store.list()
    assert gc(registry, keep=8).removed == ()
    assert registry.store.list() == before


def test_the_newest_version_always_stays(registry):
    with pytest.raises(ValueError, match="keep must be at least 1 and history at least 0, got 0 and 5"):
        gc(registry, keep=0)
    assert gc(registry, keep=1).kept == (V[7],)


def test_an_upload_that_is_not_finished_is_left_alone(registry):
    key = f"models/tiny/versions/{V[0][:-1]}9/labels.json"
    registry.store.write(key, b"{}", if_generation=0)
    gc(registry, keep=1)
    assert registry.store.read(key).data == b"{}"


def test_a_claimed_version_can_neither_be_promoted_nor_published(registry):
    registry.store.write(registry.layout.claim(V[0]), b"{}", if_generation=0)
    with pytest.raises(BeingRemoved) as error:
        registry.promote(V[0], reason="test")
    assert str(error.value) == (
        f"version '{V[0]}' of model 'tiny' is being removed; let gc finish (or run it again, if it was stopped), "
        "and publish it anew"
    )
    assert registry.alias() is None


def test_a_claim_that_was_left_is_ended_even_of_a_version_that_would_stay(registry):
    registry.store.write(registry.layout.claim(V[7]), b"{}", if_generation=0)
    assert gc(registry, keep=8).removed == (V[7],)
    assert found_versions(registry.store) == V[:7]


def test_a_claim_that_was_left_on_a_version_that_is_named_removes_nothing(registry):
    registry.promote(V[0], reason="test")
    registry.store.write(registry.layout.claim(V[0]), b"{}", if_generation=0)
    assert gc(registry, keep=1).removed == tuple(V[1:7])
    require_whole(registry.store)


def promoting(version, alias="production"):
    return lambda store: Registry(store, "tiny").promote(version, alias=alias, reason="race")


def rolling_back(store):
    return Registry(store, "tiny").rollback(reason="race")


def sweeping(store):
    return gc(Registry(store, "tiny"), keep=2, history=1)


def finish(actor):
    while not actor.done:
        actor.step()


def test_a_mover_that_stands_while_a_removal_ends_names_nothing_that_is_gone():
    """All ways to let a removal begin, a mover begin, the removal end, and the mover end."""
    outcomes, before = set(), 0
    while "removal ended" not in outcomes:
        for steps in range(6):  # of a mover: reads, and its write
            store = MemoryStore()
            for version in V[:3]:
                put_version(store, version)
            Registry(store, "tiny").promote(V[2], reason="before")
            removal = Actor(store, lambda store: gc(Registry(store, "tiny"), keep=1))
            for _ in range(before):
                removal.step()
            outcomes |= {"removal ended"} if removal.done else set()
            mover = Actor(store, promoting(V[0]))
            for _ in range(steps):
                if not mover.done:
                    mover.step()
            finish(removal)
            finish(mover)
            require_whole(store)
            outcomes.add(type(mover.error).__name__ if mover.error else "moved")
        before += 1
    assert outcomes == {"removal ended", "moved", "BeingRemoved", "PromotionConflict", "UnknownModel"}


def race(seed, kill):
    """Four movers and two removals on eight versions, in the random order of `seed`; their outcomes by kind."""
    random, store = np.random.default_rng(seed), MemoryStore()
    for version in V:
        put_version(store, version)
    for version in random.permutation(V[:4])[:3]:
        Registry(store, "tiny").promote(str(version), reason="before")
    versions = [str(version) for version in random.permutation(V[:5])]
    movers = [promoting(versions[0]), promoting(versions[1]), promoting(versions[2], "candidate"), rolling_back]
    actors = play(store, [*movers, sweeping, sweeping], random, lambda: require_whole(store), kill)
    sweeping(store)
    require_whole(store)
    outcomes = [type(actor.error).__name__ if actor.error else "done" for actor in actors]
    expected = (BeingRemoved, PromotionConflict, UnknownModel, Killed)
    assert all(isinstance(actor.error, (*expected, type(None))) for actor in actors), outcomes
    if not kill:  # one that was taken over is left on a version that an alias has come to name, and nowhere else
        aliases = Registry(store, "tiny").aliases().values()
        named = {version for alias in aliases for version in (alias.version, *alias.history)}
        assert {info.key.rpartition("/")[2][: -len(".json")] for info in store.list("models/tiny/removing/")} <= named
    return outcomes


def test_no_alias_ever_points_to_a_version_that_is_removed(count):
    outcomes = {outcome for seed in range(count(100, 5000)) for outcome in race(seed, kill=0.0)}
    assert outcomes >= {"done", "BeingRemoved", "PromotionConflict"}


def test_no_alias_ever_points_to_a_version_that_is_removed_though_any_may_be_killed(count):
    outcomes = {outcome for seed in range(count(100, 5000)) for outcome in race(seed, kill=0.03)}
    assert outcomes >= {"done", "Killed"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of the first version."""
    made = make_bundle(tmp_path_factory.mktemp("made") / "bundle").path
    directory = tmp_path_factory.mktemp("bundles") / V[0]
    shutil.copytree(made, directory)
    manifest = json.loads((made / MANIFEST).read_bytes())
    (directory / MANIFEST).write_text(json.dumps(manifest | {"version": V[0]}))
    return directory


def test_a_version_that_is_published_while_it_is_removed_is_whole_or_refused(bundle, count):
    def publishing(store):
        return Registry(store, "tiny").publish(bundle)

    outcomes = set()
    for seed in range(count(50, 2000)):
        random, store = np.random.default_rng(seed), MemoryStore()
        publishing(store)
        for version in V[1:4]:
            put_version(store, version)
        actors = play(store, [publishing, sweeping, sweeping], random, lambda store=store: require_whole(store))
        assert isinstance(actors[0].error, BeingRemoved | None)
        outcomes.add(type(actors[0].error))
        publishing(store)  # what was refused goes through afterwards
        assert V[0] in found_versions(store)
        require_whole(store)
    assert outcomes == {BeingRemoved, type(None)}


def test_a_killed_removal_is_ended_by_the_next(count):
    for seed in range(count(50, 1000)):
        random, store = np.random.default_rng(seed), MemoryStore()
        for version in V:
            put_version(store, version)
        Registry(store, "tiny").promote(V[1], reason="before")
        play(store, [sweeping], random, lambda store=store: require_whole(store), kill=0.05)
        sweeping(store)
        assert found_versions(store) == [V[1], *V[6:]]
        keys = {info.key for info in store.list("models/tiny/") if "/versions/" in info.key}
        assert len(keys) == 3 * (len(FILES) + 1)
        assert not store.list("models/tiny/removing/")
        with pytest.raises(RegistryError):
            Registry(store, "tiny").promote(V[0], reason="gone")
