"""What differs between two published versions, from their manifests and evaluations alone."""

import json
from dataclasses import dataclass
from hashlib import sha256

from helpers.delivery.bundle import MANIFEST, BundleError, Manifest
from helpers.delivery.versions import Registry

ABOUT = ("config", "temperature", "data", "parent", "gate", "git_commit", "packages")
TOO_LONG = ("per_class", "confusions")  # of evaluations: a hundred rows each


@dataclass(frozen=True)
class Difference:
    """A field, such as ``evaluation.test.top1``, and what each version has there; None where it has no such field."""

    field: str
    old: object
    new: object


def diff(registry: Registry, old: str, new: str) -> list[Difference]:
    """What the version `new` has that `old` has not, and the other way round: metrics, config, data, gate, sizes.

    Raises:
        UnknownModel: if one of them is not published.
        BundleError: if what the store holds is damaged.
    """
    sides = [describe(registry, version) for version in (old, new)]
    fields = dict.fromkeys([*sides[0], *sides[1]])
    found = [Difference(field, *(side.get(field) for side in sides)) for field in fields]
    return [difference for difference in found if difference.old != difference.new]


def describe(registry: Registry, version: str) -> dict[str, object]:
    """Of `version`, by field: evaluation, config, temperature, data, parent, gate, commit, packages, sizes in bytes.

    Errors as `diff`.
    """
    data = registry.read(version, MANIFEST)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValueError as error:
        raise BundleError(f"{registry.layout.version(version, MANIFEST)} is no manifest: {error}") from error
    evaluation = registry.read(version, "evaluation.json")
    if sha256(evaluation).hexdigest() != manifest.files["evaluation.json"].sha256:
        raise BundleError(f"{registry.layout.version(version, 'evaluation.json')} is not what its manifest says")
    sizes = {file: entry.size for file, entry in manifest.files.items()}
    about = manifest.model_dump(include=set(ABOUT))
    return dict(_flatten("", {"evaluation": json.loads(evaluation), **about, "bytes": sizes}))


def _flatten(field, value):
    if isinstance(value, dict):
        for name, part in value.items():
            if name not in TOO_LONG:
                yield from _flatten(f"{field}.{name}" if field else name, part)
    else:
        yield field, value
