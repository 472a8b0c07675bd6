"""Where the objects of a model lie in a store, what names there may be, and what can go wrong with them."""

import re

NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
VERSION = r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}"


class RegistryError(Exception):
    """What the registry refused, and what to do."""


class UnknownModel(RegistryError):
    """No such model, version or alias."""


class VersionConflict(RegistryError):
    """The version exists with other content."""


class BeingRemoved(RegistryError):
    """The version is being removed by `delivery.garbage`."""


class PromotionConflict(RegistryError):
    """Another one moved the alias first."""


class Layout:
    """The keys of the model `name`; ValueError for a name, version or alias that none can have."""

    def __init__(self, name: str):
        self.name = check("name", NAME, name)

    def key(self, *parts: str) -> str:
        """The key of what lies at `parts` under this model."""
        return "/".join(("models", self.name, *parts))

    def version(self, version: str, *parts: str) -> str:
        """The key of `version`, or of a file of it."""
        return self.key("versions", check("version", VERSION, version), *parts)

    def alias(self, alias: str) -> str:
        """The key of `alias`."""
        return self.key("aliases", f"{check('alias', NAME, alias)}.json")

    def claim(self, version: str) -> str:
        """The key of the claim of whoever removes `version`."""
        return self.key("removing", f"{check('version', VERSION, version)}.json")


def check(argument: str, pattern: str, value: str) -> str:
    """`value` itself; ValueError where it does not match `pattern`."""
    if not re.fullmatch(pattern, value):
        raise ValueError(f"{argument} must match {pattern}, got {value!r}")
    return value
