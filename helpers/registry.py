"""The registry of models: all of it by name, and as a command, ``python -m helpers.registry``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.delivery.aliases import Alias
from helpers.delivery.bundle import BundleError
from helpers.delivery.diff import describe, diff
from helpers.delivery.garbage import KEEP_HISTORY, KEEP_NEWEST, gc
from helpers.delivery.layout import (
    NAME,
    VERSION,
    BeingRemoved,
    PromotionConflict,
    RegistryError,
    UnknownModel,
    VersionConflict,
)
from helpers.delivery.storage import StorageError, open_store
from helpers.delivery.versions import PRODUCTION, Registry, Version
from helpers.workspace import add_bucket_option, bucket_url, show

__all__ = [
    "NAME",
    "PRODUCTION",
    "VERSION",
    "Alias",
    "BeingRemoved",
    "PromotionConflict",
    "Registry",
    "RegistryError",
    "UnknownModel",
    "Version",
    "VersionConflict",
    "add_store_options",
    "describe",
    "diff",
    "gc",
]

MODEL = "cifar100-vgg16"


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says and prints it; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        registry = Registry(open_store(bucket_url(arguments.bucket)), arguments.name)
        show(arguments.run(registry, arguments))
    except (RegistryError, StorageError, BundleError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a registry: ``--bucket`` and ``--name``."""
    add_bucket_option(parser)
    parser.add_argument("--name", default=MODEL, help=f"of the model (default: {MODEL})")


def _list(registry, _):
    aliases = registry.aliases()
    for version in registry.versions():
        named = [name for name, alias in aliases.items() if alias.version == version.version]
        yield " ".join([version.version, *named])


def _show(registry, arguments):
    for name, alias in registry.aliases().items():
        if arguments.version in (name, alias.version):
            yield f"{name} since {alias.moved} by {alias.who or 'unknown'}: {alias.reason}"
            yield f"  before: {', '.join(reversed(alias.history)) or 'nothing'}"
    yield from _table(registry, [arguments.version])


def _diff(registry, arguments):
    yield from _table(registry, [arguments.old, arguments.new])


def _table(registry, names):
    versions = [registry.find(name) for name in names]
    rows = [("", *versions)]
    if len(versions) == 2:
        rows += [(each.field, each.old, each.new) for each in diff(registry, *versions)]
    else:
        rows += describe(registry, versions[0]).items()
    width = max(len(row[0]) for row in rows)
    for field, *values in rows:
        yield f"{field:<{width}}  {'  ->  '.join(map(str, values))}"


def _promote(registry, arguments):
    version = registry.find(arguments.version)
    moved = registry.promote(version, alias=arguments.alias, reason=arguments.reason, who=arguments.who)
    yield f"{arguments.alias} points to {moved.version} (before: {moved.previous or 'nothing'})"


def _rollback(registry, arguments):
    moved = registry.rollback(arguments.alias, reason=arguments.reason, who=arguments.who)
    yield f"{arguments.alias} points to {moved.version} again (before: {moved.previous or 'nothing'})"


def _pull(registry, arguments):
    yield f"{registry.pull(registry.find(arguments.version), arguments.folder)} holds a verified copy"


def _gc(registry, arguments):
    garbage = gc(registry, keep=arguments.keep, history=arguments.history, dry_run=arguments.dry_run)
    word = "would be removed" if arguments.dry_run else "removed"
    yield from (f"{version} {word}" for version in garbage.removed)
    yield f"{len(garbage.removed)} {word}, {len(garbage.kept)} kept"


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.registry", description="Versions and aliases of a model.")
    add_store_options(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run, name, text, *positional):
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        for argument, what in positional:
            added.add_argument(argument, help=what)
        return added

    version = ("version", "of the model, or an alias that points to it")
    command(_list, "list", "the versions, oldest first, and the aliases that point to them")
    command(_show, "show", "metrics, config, data and sizes of a version", version)
    command(_diff, "diff", "what differs between two versions", ("old", version[1]), ("new", version[1]))
    moves = [
        command(_promote, "promote", "points an alias to a version", version),
        command(_rollback, "rollback", "points an alias to the version before"),
    ]
    for added in moves:
        added.add_argument("--alias", default=PRODUCTION, help=f"default: {PRODUCTION}")
        added.add_argument("--reason", required=True, help="why, for whoever reads the alias later")
        added.add_argument("--who", default="", help="for the same (default: the user's name)")
    pull = command(_pull, "pull", "a verified copy of a version", version)
    pull.add_argument("folder", type=Path, help="new")
    sweep = command(_gc, "gc", "removes versions that no alias and no server needs")
    sweep.add_argument("--keep", type=int, default=KEEP_NEWEST, help=f"of the newest (default: {KEEP_NEWEST})")
    sweep.add_argument("--history", type=int, default=KEEP_HISTORY, help=f"of each alias (default: {KEEP_HISTORY})")
    sweep.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
