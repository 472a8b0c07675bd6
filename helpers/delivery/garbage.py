"""Removes versions that nobody needs any more.

A version that an alias names, or the last of its history, or a server (`delivery.lease`), or that is one of the newest,
stays. The rest is removed in an order in which nothing can come to name it halfway:

1. It is claimed, by an object of its own. From here on no alias can be moved to it and nobody can publish it.
2. Every alias is written anew. A move that was decided before the claim loses its compare-and-swap by this; one that
   is decided later sees the claim. What an alias or a server names by now is let go again.
3. Its manifest is deleted, so that it is no version any more; then its files; then the claim.

Whoever is stopped halfway leaves claims. The next one takes them over, by compare-and-swap, and ends what was begun. A
claim that was taken over is never given up, for the one who made it may be removing still.
"""

import re
from contextlib import suppress
from dataclasses import dataclass

from helpers.delivery.bundle import MANIFEST
from helpers.delivery.layout import VERSION
from helpers.delivery.lease import leased_versions
from helpers.delivery.objects import ObjectNotFound, PreconditionFailed
from helpers.delivery.versions import Registry

KEEP_NEWEST = 10
KEEP_HISTORY = 5  # ways back, of each alias


@dataclass(frozen=True)
class Garbage:
    """The versions that were removed, or would be, and those that stay; each oldest first."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]


def gc(registry: Registry, *, keep: int = KEEP_NEWEST, history: int = KEEP_HISTORY, dry_run: bool = False) -> Garbage:
    """Removes the versions of `registry` that nobody needs.

    Args:
        keep: how many of the newest versions stay in any case; at least 1, for one that is about to be promoted.
        history: how many versions before its own each alias keeps as ways back.
        dry_run: only says what would be removed.
    """
    if keep < 1 or history < 0:
        raise ValueError(f"keep must be at least 1 and history at least 0, got {keep} and {history}")
    versions = [version.version for version in registry.versions()]
    left = _claims_left(registry)
    doomed = (set(versions[:-keep]) | left.keys()) - _named(registry, history)
    if not dry_run:
        claims = _claim(registry, dict.fromkeys(doomed - left.keys(), 0) | {v: left[v] for v in doomed & left.keys()})
        for version in _still_needed(registry, claims.keys(), history):
            claim = claims.pop(version)
            if version not in left:  # what another one claimed, it may be removing still
                _drop_claim(registry, version, claim)
        doomed = {version for version, claim in claims.items() if _remove(registry, version, claim)}
    order = sorted(left.keys() - set(versions)) + versions
    return Garbage(tuple(v for v in order if v in doomed), tuple(v for v in versions if v not in doomed))


def _named(registry, history):
    aliases = registry.aliases().values()
    recent = {version for alias in aliases for version in alias.history[max(len(alias.history) - history, 0) :]}
    return recent | {alias.version for alias in aliases} | leased_versions(registry.store, registry.name)


def _still_needed(registry, versions, history):
    if not versions:
        return set()
    return registry.release(set(versions), history) | leased_versions(registry.store, registry.name) & set(versions)


def _claims_left(registry):
    """The claims of those that were stopped, or are under way: their generations by version."""
    claim = re.compile(f"{re.escape(registry.layout.key('removing/'))}({VERSION})[.]json")
    infos = registry.store.list(registry.layout.key("removing/"))
    return {match[1]: info.generation for info in infos if (match := claim.fullmatch(info.key))}


def _claim(registry, claims):
    mine = {}
    for version, generation in claims.items():
        with suppress(PreconditionFailed):  # another one removes it
            mine[version] = registry.store.write(registry.layout.claim(version), b"{}", if_generation=generation)
    return mine


def _drop_claim(registry, version, generation):
    with suppress(PreconditionFailed, ObjectNotFound):  # another one has taken it over
        registry.store.delete(registry.layout.claim(version), if_generation=generation)


def _remove(registry, version, claim):
    store, prefix = registry.store, f"{registry.layout.version(version)}/"
    infos = store.list(prefix)
    try:
        if store.read(registry.layout.claim(version)).generation != claim:
            return False
    except ObjectNotFound:  # taken over and done; what was listed may be of a new upload
        return False
    for info in sorted(infos, key=lambda info: info.key != prefix + MANIFEST):
        with suppress(PreconditionFailed, ObjectNotFound):
            store.delete(info.key, if_generation=info.generation)
    _drop_claim(registry, version, claim)
    return True
