"""Versions of models and the aliases that point to them, kept in an object store.

::

    models/<name>/versions/<version>/<file>     a bundle; its manifest.json is written last
    models/<name>/aliases/<alias>.json          {version, previous, reason, who, ...}, moved only by compare-and-swap
    models/<name>/removing/<version>.json       the claim of a removal under way (`delivery.garbage`)
    models/<name>/servers/<id>.json             what a server serves (`delivery.lease`)

A version without a manifest does not exist. The order of versions is that in which the store took their manifests.
"""

import re
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from helpers.delivery import events
from helpers.delivery.aliases import Alias, Aliases
from helpers.delivery.bundle import MANIFEST, SIGNATURE, BundleError, read_bundle
from helpers.delivery.layout import VERSION, BeingRemoved, Layout, UnknownModel, VersionConflict
from helpers.delivery.manifest import UnsignedBundle, read_signature
from helpers.delivery.model_cache import fetch_bundle, keep_copy
from helpers.delivery.objects import ObjectNotFound, PreconditionFailed, Store
from helpers.delivery.signature import SignatureError, sign, verify

PRODUCTION = "production"


@dataclass(frozen=True)
class Version:
    """A published version and the generation of its manifest, by which versions are ordered."""

    version: str
    generation: int


class Registry:
    """The versions and aliases of the model `name` in `store`.

    All methods raise the errors of `delivery.storage` where the store fails, and ValueError for a malformed argument.
    """

    def __init__(self, store: Store, name: str):
        self.store, self.name, self.layout = store, name, Layout(name)
        self._aliases = Aliases(store, self.layout, self._require)

    def publish(self, bundle_dir: Path) -> str:
        """Verifies the bundle in `bundle_dir`, uploads it, the manifest last, and returns its version.

        Safe to repeat: what is there already is compared and left, so an interrupted upload is completed. Where a
        signing key is configured (`delivery.signature`), a bundle without a signature gets one in the store.

        Raises:
            BundleError: if the folder is not a whole bundle of this model, or not signed as servers would ask for.
            VersionConflict: if the version is there with other content.
            BeingRemoved: if it is being removed at this moment.
        """
        bundle = read_bundle(bundle_dir, signed=False)
        if bundle.manifest.name != self.name:
            raise BundleError(f"{bundle_dir} is a bundle of model {bundle.manifest.name!r}, not of {self.name!r}")
        manifest, published = (bundle.path / MANIFEST).read_bytes(), self._manifest(bundle.version)
        signature = _signature(bundle, manifest)
        if published is None:
            self._require_unclaimed(bundle.version)
            if signature:
                self._put(bundle.version, SIGNATURE, signature)
            for file, entry in bundle.manifest.files.items():
                data = (bundle.path / file).read_bytes()
                if sha256(data).hexdigest() != entry.sha256:
                    raise BundleError(f"{bundle.path / file} changed while it was published; write the bundle anew")
                self._put(bundle.version, file, data)
            self._put(bundle.version, MANIFEST, manifest)
        elif published != manifest:
            raise self._other_content(bundle.version, MANIFEST)
        elif signature:  # of a version that was published without
            self._put(bundle.version, SIGNATURE, signature)
        self._require_unclaimed(bundle.version)
        self._require_files(bundle.version, {MANIFEST, *bundle.manifest.files})
        if published is None:
            events.announce(events.PUBLISHED, self.name, bundle.version, store=self.store.url)
        return bundle.version

    def versions(self) -> list[Version]:
        """The published versions, oldest first."""
        manifest = re.compile(f"{re.escape(self.layout.key('versions/'))}({VERSION})/{re.escape(MANIFEST)}")
        found = [(manifest.fullmatch(info.key), info) for info in self.store.list(self.layout.key("versions/"))]
        versions = [Version(match[1], info.generation) for match, info in found if match]
        return sorted(versions, key=lambda version: version.generation)

    def alias(self, alias: str = PRODUCTION) -> Alias | None:
        """Where `alias` points, or None where there is no such alias."""
        return self._aliases.read(alias)[0]

    def aliases(self) -> dict[str, Alias]:
        """Where each alias points, by name."""
        found = {name: self.alias(name) for name in self._aliases.names()}
        return {name: alias for name, alias in found.items() if alias}

    def promote(
        self, version: str, *, alias: str = PRODUCTION, reason: str, who: str = "", expected: int | None = None
    ) -> Alias:
        """Points `alias` to `version`, if nobody else moves it meanwhile; where it does already, nothing is written.

        Args:
            reason: why, for whoever reads the alias later.
            who: for the same; empty takes the name of this process's user.
            expected: the generation of the alias on which the decision was based (0: there was none).
                None takes the alias as it is now.

        Raises:
            UnknownModel: if the version is not published.
            BeingRemoved: if it is being removed at this moment.
            PromotionConflict: if the alias is not at `expected`, or another one was faster.
        """
        current, generation = self._aliases.read_at(alias, expected)
        if current and current.version == version:
            return current
        if not generation:
            self._require(version)  # before an alias is made in vain
            generation = self._aliases.make(alias)
        history = (*current.history, current.version) if current else ()
        return self._tell(events.PROMOTED, alias, self._aliases.move(alias, version, history, reason, who, generation))

    def rollback(self, alias: str = PRODUCTION, *, reason: str, who: str = "", expected: int | None = None) -> Alias:
        """Points `alias` to the version before; once more goes one further back. Arguments and errors as `promote`."""
        current, generation = self._aliases.read_at(alias, expected)
        if current is None or current.previous is None:
            raise UnknownModel(f"alias {alias!r} of model {self.name!r} has no version before; promote one instead")
        back, history = current.previous, current.history[:-1]
        moved = self._aliases.move(alias, back, history, reason, who, generation)
        return self._tell(events.ROLLED_BACK, alias, moved, left=current.version)

    def release(self, versions: set[str], keep: int) -> set[str]:
        """Takes `versions` out of all aliases' histories but for the last `keep`; returns those still named.

        See `delivery.aliases.Aliases.let_go`.
        """
        return set().union(*(self._aliases.let_go(alias, versions, keep) for alias in self._aliases.names()))

    def download(self, version: str, cache: Path) -> Path:
        """A verified copy of the bundle in ``<cache>/<name>/<version>``, fetched if it is not there or damaged.

        Raises:
            UnknownModel: if the version is not published.
            BundleError: if what the store holds is damaged; it was fetched twice and is not kept.
        """
        prefix = self.layout.version(version)

        def fetch(folder):
            if self._manifest(version) is None:
                raise self._unknown(version)
            manifest = fetch_bundle(self.store, prefix, folder).manifest
            if (manifest.name, manifest.version) != (self.name, version):
                found = f"{prefix} holds {manifest.name} {manifest.version}"
                raise BundleError(f"{found}; remove it and publish that bundle in its own place")

        return keep_copy(Path(cache) / self.name / version, fetch)

    def pull(self, version: str, folder: Path) -> Path:
        """The new `folder` with a verified copy of the bundle in it; errors as `download`, and FileExistsError."""
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=_new(Path(folder)).parent) as scratch:
            return self.download(version, Path(scratch)).rename(folder)

    def find(self, name: str) -> str:
        """The version called `name`: itself, or what the alias of that name points to.

        Raises:
            UnknownModel: if there is no such alias. Whether the version is published is not asked.
        """
        if re.fullmatch(VERSION, name):
            return name
        if found := self.alias(name):
            return found.version
        raise UnknownModel(f"model {self.name!r} has no alias {name!r} in {self.store.url}; promote a version to it")

    def read(self, version: str, file: str) -> bytes:
        """A file of a published version, as it is in the store; UnknownModel if it is not there."""
        try:
            return self.store.read(self.layout.version(version, file)).data
        except ObjectNotFound:
            raise self._unknown(version) from None

    def _tell(self, kind, alias, moved, **more):
        about = {"alias": alias, "previous": moved.previous, "reason": moved.reason, "who": moved.who, **more}
        events.announce(kind, self.name, moved.version, store=self.store.url, **about)
        return moved

    def _put(self, version, file, data):
        key = self.layout.version(version, file)
        try:
            self.store.write(key, data, if_generation=0)
        except PreconditionFailed:
            if self.store.read(key).data != data:
                raise self._other_content(version, file) from None

    def _manifest(self, version):
        try:
            return self.store.read(self.layout.version(version, MANIFEST)).data
        except ObjectNotFound:
            return None

    def _require(self, version):
        self._require_unclaimed(version)  # first: a claim that has gone by now took the manifest with it
        if self._manifest(version) is None:
            raise self._unknown(version)

    def _require_unclaimed(self, version):
        try:
            self.store.read(self.layout.claim(version))
        except ObjectNotFound:
            return
        what = f"version {version!r} of model {self.name!r} is being removed"
        raise BeingRemoved(f"{what}; let gc finish (or run it again, if it was stopped), and publish it anew")

    def _require_files(self, version, files):
        """The last step of publishing: a removal that began meanwhile must not leave half of the version."""
        prefix = f"{self.layout.version(version)}/"
        found = {info.key.removeprefix(prefix) for info in self.store.list(prefix)}
        if absent := files - found:
            raise BeingRemoved(f"{prefix}{min(absent)} was removed while it was published; publish it again")

    def _other_content(self, version, file):
        rule = "versions never change; write the bundle anew, under a version of its own"
        return VersionConflict(f"{self.store.url}/{self.layout.version(version, file)} has other content: {rule}")

    def _unknown(self, version):
        return UnknownModel(f"model {self.name!r} has no version {version!r} in {self.store.url}; publish it first")


def _new(folder):
    if folder.exists():
        raise FileExistsError(f"folder must be new, but {folder} exists; choose another")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _signature(bundle, manifest):
    signature = read_signature(bundle.path) or sign(manifest)
    try:
        verify(manifest, signature)
    except SignatureError as error:
        raise UnsignedBundle(f"{bundle.path / MANIFEST} is refused: {error}") from error
    return signature
