"""Aliases: names that point to versions and are moved only by compare-and-swap.

Whoever moves an alias reads it first, then looks whether the version is unclaimed, then whether it is whole, and then
writes. Whoever removes a version claims it first, writes all aliases anew (`Aliases.let_go`), and lets the claim go
last, when the version is gone. So of a move and a removal of the same version one is refused, whatever their order. For
this an alias is made, pointing nowhere, before its first move.
"""

import getpass
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.delivery.layout import NAME, VERSION, Layout, PromotionConflict, UnknownModel
from helpers.delivery.objects import ObjectNotFound, PreconditionFailed, Store

MAX_HISTORY = 50
NOWHERE = b"null"  # what an alias holds before its first version
_VersionId = Annotated[str, Field(pattern=f"^{VERSION}$")]


class Alias(BaseModel):
    """Where an alias points, why, by whom and since when; and the versions before it, latest last.

    `previous` is that latest. `who` is empty in files from before it was noted.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    version: _VersionId
    previous: _VersionId | None
    reason: str
    who: str = ""
    moved: str
    history: tuple[_VersionId, ...]
    generation: int = Field(0, exclude=True)  # of the object, so not in it


class Aliases:
    """The aliases of the model that `layout` is of.

    Args:
        require: raises if a version may not be pointed to; called between reading an alias and writing it.
    """

    def __init__(self, store: Store, layout: Layout, require: Callable[[str], None]):
        self.store, self.layout, self.require = store, layout, require

    def names(self) -> list[str]:
        """Of all aliases, those that point nowhere yet too."""
        name = re.compile(f"{re.escape(self.layout.key('aliases/'))}({NAME})[.]json")
        infos = self.store.list(self.layout.key("aliases/"))
        return [match[1] for info in infos if (match := name.fullmatch(info.key))]

    def read(self, alias: str) -> tuple[Alias | None, int]:
        """Where `alias` points, None for nowhere, and its generation, 0 where it is absent.

        Raises:
            UnknownModel: if it is no alias file.
        """
        key = self.layout.alias(alias)
        try:
            found = self.store.read(key)
            if found.data == NOWHERE:
                return None, found.generation
            current = Alias.model_validate_json(found.data).model_copy(update={"generation": found.generation})
            return current, found.generation
        except ObjectNotFound:
            return None, 0
        except ValidationError as error:
            raise UnknownModel(f"{self.store.url}/{key} is no alias file; remove it and promote a version") from error

    def read_at(self, alias: str, expected: int | None) -> tuple[Alias | None, int]:
        """As `read`; PromotionConflict where `expected` is neither None nor the generation (0: points nowhere)."""
        current, generation = self.read(alias)
        if expected is not None and expected != (generation if current else 0):
            raise self._lost(alias)
        return current, generation

    def make(self, alias: str) -> int:
        """The generation of `alias`, which points nowhere and is made if need be; else PromotionConflict."""
        try:
            return self.store.write(self.layout.alias(alias), NOWHERE, if_generation=0)
        except PreconditionFailed:
            current, generation = self.read(alias)
            if current:
                raise self._lost(alias) from None
            return generation

    def move(self, alias: str, version: str, history: tuple[str, ...], reason: str, who: str, generation: int) -> Alias:
        """Points `alias`, read before at `generation`, to `version`.

        Raises:
            PromotionConflict: if it is no longer at `generation`.
            What `require` raises.
        """
        self.require(version)
        history, moved = history[-MAX_HISTORY:], datetime.now(UTC).isoformat(timespec="seconds")
        previous, who = history[-1] if history else None, who or _current_user()
        new = Alias(version=version, previous=previous, reason=reason, who=who, moved=moved, history=history)
        try:
            generation = self.store.write(self.layout.alias(alias), _dump(new), if_generation=generation)
        except PreconditionFailed:
            raise self._lost(alias) from None
        return new.model_copy(update={"generation": generation})

    def let_go(self, alias: str, versions: set[str], keep: int) -> set[str]:
        """Writes `alias` anew, without `versions` in its history but for the last `keep` of it.

        Every move that was decided before this is refused by it. Returns those of `versions` that are still named.
        """
        while True:
            current, generation = self.read(alias)
            data, named = NOWHERE, set()
            if current:
                at = max(len(current.history) - keep, 0)
                old = (version for version in current.history[:at] if version not in versions)
                data = _dump(current.model_copy(update={"history": (*old, *current.history[at:])}))
                named = {current.version, *current.history[at:]}
            try:
                self.store.write(self.layout.alias(alias), data, if_generation=generation)
            except PreconditionFailed:
                continue  # it was moved: look again
            return versions & named

    def _lost(self, alias):
        winner, _ = self.read(alias)
        state = f"points to {winner.version} ({winner.reason})" if winner else "does not exist"
        now = f"it {state}, at generation {winner.generation if winner else 0}"
        name = self.layout.name
        return PromotionConflict(f"alias {alias!r} of {name!r} was moved by another: {now}; look and decide again")


def _dump(alias):
    return alias.model_dump_json(indent=2).encode()


def _current_user():
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
