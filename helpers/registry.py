"""Versions of models and the aliases that point to them, kept in an object store.

::

    models/<name>/versions/<version>/<file>     a bundle; its manifest.json is written last
    models/<name>/aliases/<alias>.json          {version, previous, reason, ...}, moved only by compare-and-swap

A version without a manifest does not exist. The order of versions is that in which the store took their manifests.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.bundle import MANIFEST, BundleError, read_bundle
from helpers.model_cache import fetch_bundle, keep_copy
from helpers.storage import ObjectNotFound, PreconditionFailed, Store

PRODUCTION = "production"
MAX_HISTORY = 50
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
VERSION = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}"
_VersionId = Annotated[str, Field(pattern=f"^{VERSION}$")]


class RegistryError(Exception):
    """What the registry refused, and what to do."""


class UnknownModel(RegistryError):
    """No such model, version or alias."""


class VersionConflict(RegistryError):
    """The version exists with other content."""


class PromotionConflict(RegistryError):
    """Another one moved the alias first."""


@dataclass(frozen=True)
class Version:
    """A published version and the generation of its manifest, by which versions are ordered."""

    version: str
    generation: int


class Alias(BaseModel):
    """Where an alias points, why and since when, and the versions before it, latest last; `previous` is that latest."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    version: _VersionId
    previous: _VersionId | None
    reason: str
    moved: str
    history: tuple[_VersionId, ...]
    generation: int = Field(0, exclude=True)  # of the object, so not in it


class Registry:
    """The versions and aliases of the model `name` in `store`.

    All methods raise the errors of `helpers.storage` where the store fails, and ValueError for a malformed argument.
    """

    def __init__(self, store: Store, name: str):
        self.store, self.name = store, _check("name", NAME, name)

    def publish(self, bundle_dir: Path) -> str:
        """Verifies the bundle in `bundle_dir`, uploads it, the manifest last, and returns its version.

        Safe to repeat: what is there already is compared and left, so an interrupted upload is completed.

        Raises:
            BundleError: if the folder is not a whole bundle of this model.
            VersionConflict: if the version is there with other content.
        """
        bundle = read_bundle(bundle_dir)
        if bundle.manifest.name != self.name:
            raise BundleError(f"{bundle_dir} is a bundle of model {bundle.manifest.name!r}, not of {self.name!r}")
        manifest = (bundle.path / MANIFEST).read_bytes()
        if self._manifest(bundle.version) is None:
            for file, entry in bundle.manifest.files.items():
                data = (bundle.path / file).read_bytes()
                if sha256(data).hexdigest() != entry.sha256:
                    raise BundleError(f"{bundle.path / file} changed while it was published; write the bundle anew")
                self._put(bundle.version, file, data)
        self._put(bundle.version, MANIFEST, manifest)
        return bundle.version

    def versions(self) -> list[Version]:
        """The published versions, oldest first."""
        manifest = re.compile(f"{re.escape(self._key('versions/'))}({VERSION})/{re.escape(MANIFEST)}")
        found = [(manifest.fullmatch(info.key), info) for info in self.store.list(self._key("versions/"))]
        versions = [Version(match[1], info.generation) for match, info in found if match]
        return sorted(versions, key=lambda version: version.generation)

    def alias(self, alias: str = PRODUCTION) -> Alias | None:
        """Where `alias` points, or None where there is no such alias."""
        key = self._alias_key(alias)
        try:
            found = self.store.read(key)
            return Alias.model_validate_json(found.data).model_copy(update={"generation": found.generation})
        except ObjectNotFound:
            return None
        except ValidationError as error:
            raise UnknownModel(f"{self.store.url}/{key} is no alias file; remove it and promote a version") from error

    def promote(self, version: str, *, alias: str = PRODUCTION, reason: str, expected: int | None = None) -> Alias:
        """Points `alias` to `version`, if nobody else moves it meanwhile; where it does already, nothing is written.

        Args:
            reason: why, for whoever reads the alias later.
            expected: the generation of the alias on which the decision was based (0: there was none).
                None takes the alias as it is now.

        Raises:
            UnknownModel: if the version is not published.
            PromotionConflict: if the alias is not at `expected`, or another one was faster.
        """
        current = self._at(alias, expected)
        if current and current.version == version:
            return current
        return self._move(alias, version, (*current.history, current.version) if current else (), reason, current)

    def rollback(self, alias: str = PRODUCTION, *, reason: str, expected: int | None = None) -> Alias:
        """Points `alias` to the version before; once more goes one further back. Arguments and errors as `promote`."""
        current = self._at(alias, expected)
        if current is None or current.previous is None:
            raise UnknownModel(f"alias {alias!r} of model {self.name!r} has no version before; promote one instead")
        return self._move(alias, current.previous, current.history[:-1], reason, current)

    def download(self, version: str, cache: Path) -> Path:
        """A verified copy of the bundle in ``<cache>/<name>/<version>``, fetched if it is not there or damaged.

        Raises:
            UnknownModel: if the version is not published.
            BundleError: if what the store holds is damaged; it was fetched twice and is not kept.
        """
        target = Path(cache) / self.name / _check("version", VERSION, version)
        return keep_copy(target, lambda folder: self._fetch(version, folder))

    def _fetch(self, version, folder):
        if self._manifest(version) is None:
            raise self._unknown(version)
        manifest = fetch_bundle(self.store, self._key("versions", version), folder).manifest
        if (manifest.name, manifest.version) != (self.name, version):
            found = f"{self._key('versions', version)} holds {manifest.name} {manifest.version}"
            raise BundleError(f"{found}; remove it and publish that bundle in its own place")

    def _put(self, version, file, data):
        key = self._key("versions", version, file)
        try:
            self.store.write(key, data, if_generation=0)
        except PreconditionFailed:
            if self.store.read(key).data != data:
                rule = "versions never change; write the bundle anew, under a version of its own"
                raise VersionConflict(f"{self.store.url}/{key} has other content: {rule}") from None

    def _manifest(self, version):
        try:
            return self.store.read(self._key("versions", version, MANIFEST)).data
        except ObjectNotFound:
            return None

    def _at(self, alias, expected):
        current = self.alias(alias)
        if expected is not None and expected != (current.generation if current else 0):
            raise self._lost(alias, current)
        return current

    def _move(self, alias, version, history, reason, current):
        if self._manifest(_check("version", VERSION, version)) is None:
            raise self._unknown(version)
        history, moved = history[-MAX_HISTORY:], datetime.now(UTC).isoformat(timespec="seconds")
        previous = history[-1] if history else None
        new = Alias(version=version, previous=previous, reason=reason, moved=moved, history=history)
        data, expected = new.model_dump_json(indent=2).encode(), current.generation if current else 0
        try:
            generation = self.store.write(self._alias_key(alias), data, if_generation=expected)
        except PreconditionFailed:
            raise self._lost(alias, self.alias(alias)) from None
        return new.model_copy(update={"generation": generation})

    def _key(self, *parts):
        return "/".join(("models", self.name, *parts))

    def _alias_key(self, alias):
        return self._key("aliases", f"{_check('alias', NAME, alias)}.json")

    def _unknown(self, version):
        return UnknownModel(f"model {self.name!r} has no version {version!r} in {self.store.url}; publish it first")

    def _lost(self, alias, winner):
        state = f"points to {winner.version} ({winner.reason})" if winner else "does not exist"
        now = f"it {state}, at generation {winner.generation if winner else 0}"
        return PromotionConflict(f"alias {alias!r} of {self.name!r} was moved by another: {now}; look and decide again")


def _check(argument, pattern, value):
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{argument} must match {pattern}, got {value!r}")
    return value
