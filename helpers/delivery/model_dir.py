"""What `model_dir` means: the name of a model, an alias or a version under the configured bucket, and nothing else."""

import re
from pathlib import Path

from helpers.delivery.bundle import BundleError
from helpers.delivery.storage import Store
from helpers.registry import NAME, PRODUCTION, VERSION, Registry, RegistryError, UnknownModel

_MODEL_DIR = re.compile(rf"models/({NAME})(?:/aliases/({NAME})|/versions/({VERSION}))?/?")


class ModelDirError(RegistryError):
    """A model_dir that can name no model of this bucket."""


def resolve(store: Store, model_dir: str, cache: Path) -> Path:
    """A verified local copy of the bundle that `model_dir` names.

    Args:
        model_dir: ``models/<name>`` (its alias "production"), ``models/<name>/aliases/<alias>`` or
            ``models/<name>/versions/<version>``, alone or after the url of `store`.
        cache: see `Registry.download`.

    Raises:
        ModelDirError: for anything else; no file and no connection was opened.
        UnknownModel: if there is no such model.
        BundleError: if it is damaged.
    """
    name, alias, version = parse(store, model_dir)
    registry = Registry(store, name)
    try:
        found = None if version else registry.alias(alias)
        if not version and not found:
            raise UnknownModel(f"model {name!r} has no alias {alias!r} in {store.url}; promote a version to it")
        return registry.download(version or found.version, cache)
    except BundleError:
        raise
    except ValueError as error:  # the store follows no symbolic links
        raise _refusal(store, model_dir) from error


def parse(store: Store, model_dir: str) -> tuple[str, str, str | None]:
    """The names of model, alias and version (None: the one that the alias points to) in `model_dir`.

    Raises:
        ModelDirError: as `resolve`.
    """
    match = _MODEL_DIR.fullmatch(model_dir.removeprefix(f"{store.url}/"))
    if not match:
        raise _refusal(store, model_dir)
    return match[1], match[2] or PRODUCTION, match[3]


def _refusal(store, model_dir):
    return ModelDirError(
        "model_dir must be models/<name>, models/<name>/aliases/<alias> or models/<name>/versions/<version>, alone or "
        f"after {store.url}/, got {model_dir[:200]!r}"
    )
