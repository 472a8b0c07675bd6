"""The manifest of a bundle: what is in it, how it was made, and a digest of every file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers.delivery.signature import SIGNATURE_BYTES, SignatureError, verify

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
MAX_FILE_BYTES = 512 * 2**20
MAX_MANIFEST_BYTES = 2**20


class BundleError(ValueError):
    """A folder that is not a whole, unaltered bundle; the message says which file and why."""


class UnsignedBundle(BundleError):
    """A bundle that is not signed by the key that this process asks for."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataSource(_Strict):
    """What the model was trained on: where it came from, its content fingerprint, and whether it is the stand-in."""

    source: str
    fingerprint: str
    synthetic: bool


class FileEntry(_Strict):
    """Digest and size (bytes) of one file of a bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class Manifest(_Strict):
    """What `manifest.json` says; see design notes in the README, section "The model bundle"."""

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^\d{8}T\d{6}Z-[0-9a-f]{12}$")]
    created: str
    config: dict
    temperature: Annotated[float, Field(gt=0)]
    data: DataSource
    files: dict[str, FileEntry]
    parent: str | None
    gate: dict
    git_commit: str | None
    packages: dict[str, str]


def read_manifest(directory: Path, *, signed: bool = True) -> Manifest:
    """The manifest in `directory`; its signature is checked before it is parsed.

    Args:
        signed: whether it must be signed where a public key is configured; False for one that is about to be.

    Raises:
        UnsignedBundle, BundleError: if it has none that is valid.
    """
    path = directory / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST} that is a plain file")
    if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
    data = path.read_bytes()
    if signed:
        try:
            verify(data, read_signature(directory))
        except SignatureError as error:
            raise UnsignedBundle(f"{path} is refused: {error}") from error
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{path} is not a manifest of schema 1: {first_problem(error)}") from error


def read_signature(directory: Path) -> bytes | None:
    """The signature beside the manifest in `directory`; None if there is none of the right size."""
    path = directory / SIGNATURE
    if path.is_symlink() or not path.is_file() or path.stat().st_size != SIGNATURE_BYTES:
        return None
    return path.read_bytes()


def first_problem(error: ValidationError) -> str:
    """The first thing that does not hold, as ``field: what``."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
