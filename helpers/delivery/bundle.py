"""A model and all that must travel with it: one folder, written once, verified at every read.

The manifest is written last and names every file with its size and sha256, so a folder without a manifest is not a
bundle, and nothing in a bundle is parsed before its digest was compared.
"""

import json
import platform
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from helpers.data.labels import Labels
from helpers.delivery.manifest import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    BundleError,
    DataSource,
    FileEntry,
    Manifest,
    UnsignedBundle,
    first_problem,
    read_manifest,
)
from helpers.delivery.quantisation import Quantisation, read_quantisation
from helpers.delivery.signature import sign
from helpers.receipts import file_sha256, write_json
from helpers.workspace import ROOT

__all__ = [
    "FILES",
    "MANIFEST",
    "MAX_FILE_BYTES",
    "MAX_MANIFEST_BYTES",
    "OPTIONAL",
    "SIGNATURE",
    "Bundle",
    "BundleError",
    "DataSource",
    "Manifest",
    "UnsignedBundle",
    "read_bundle",
    "read_npz",
    "write_bundle",
]

FILES = ("model.onnx", "labels.json", "golden.npz", "reference.npz", "evaluation.json", "model_card.md")
OPTIONAL = ("quantisation.json",)
MAX_ARRAYS_BYTES = 64 * 2**20  # of an .npz, unpacked


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder, its manifest, its labels, and how its network becomes 8-bit, if it may."""

    path: Path
    manifest: Manifest
    labels: Labels
    quantisation: Quantisation | None = None

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def model_path(self) -> Path:
        return self.path / "model.onnx"

    def golden(self) -> tuple[np.ndarray, np.ndarray]:
        """Images, uint8 (n, 32, 32, 3), and the probabilities expected for them, float32 (n, classes)."""
        arrays = read_npz(self.path / "golden.npz")
        if absent := {"images", "probabilities"} - arrays.keys():
            raise BundleError(f"{self.path / 'golden.npz'} does not hold {sorted(absent)[0]}")
        return arrays["images"], arrays["probabilities"]

    def evaluation(self) -> dict:
        """The metrics that were measured before publishing."""
        return json.loads((self.path / "evaluation.json").read_text(encoding="utf-8"))


def check_empty(directory: Path) -> None:
    """Raises BundleError where `directory` holds files, or is one."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise BundleError(f"directory must be empty to write a bundle, but {directory} holds files; choose a new one")


def write_bundle(
    directory: Path,
    *,
    name: str,
    weights: dict[str, np.ndarray],
    config: dict,
    temperature: float,
    labels: Labels,
    golden: tuple[np.ndarray, np.ndarray],
    reference: dict[str, np.ndarray],
    evaluation: dict,
    model_card: str,
    data: DataSource,
    gate: dict | None = None,
    parent: str | None = None,
    quantisation: Quantisation | None = None,
) -> Bundle:
    """Writes a bundle into `directory` (new or empty), the manifest last, and reads it back.

    It is signed where a key is configured (`delivery.signature`).

    Args:
        name: of the model; lower case letters, digits, ``._-``.
        weights, config, temperature: see `delivery.graph.write_onnx`.
        golden: images, uint8 (n, 32, 32, 3), and their expected probabilities, float32 (n, classes).
        reference: arrays of the drift reference.
        gate: the decision that let this model pass, with its numbers.
        parent: version that training started from.
        quantisation: how servers make the network 8-bit; None where they must not.
    """
    from helpers.delivery.graph import write_onnx

    directory = Path(directory)
    check_empty(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_onnx(directory / "model.onnx", weights, config, temperature)
    write_json(
        directory / "labels.json",
        {"fine": labels.fine, "superclasses": labels.superclasses, "superclass_of": labels.superclass_of},
    )
    np.savez(directory / "golden.npz", images=golden[0], probabilities=golden[1].astype(np.float32))
    np.savez_compressed(directory / "reference.npz", **reference)
    write_json(directory / "evaluation.json", evaluation)
    (directory / "model_card.md").write_text(model_card, encoding="utf-8")
    if quantisation:
        write_json(directory / OPTIONAL[0], quantisation.model_dump())

    files = {
        file: FileEntry(sha256=file_sha256(directory / file), size=(directory / file).stat().st_size)
        for file in (*FILES, *OPTIONAL)
        if (directory / file).exists()
    }
    digest = sha256("".join(f"{file}:{entry.sha256}\n" for file, entry in sorted(files.items())).encode()).hexdigest()
    now = datetime.now(UTC)
    manifest = Manifest(
        schema_version=1,
        name=name,
        version=f"{now:%Y%m%dT%H%M%SZ}-{digest[:12]}",
        created=now.isoformat(timespec="seconds"),
        config=config,
        temperature=temperature,
        data=data,
        files=files,
        parent=parent,
        gate=gate or {},
        git_commit=_git_commit(),
        packages=_packages(),
    )
    write_json(directory / MANIFEST, manifest.model_dump())
    if signature := sign((directory / MANIFEST).read_bytes()):
        (directory / SIGNATURE).write_bytes(signature)
    return read_bundle(directory, signed=False)


def read_bundle(directory: Path, *, signed: bool = True) -> Bundle:
    """The bundle in `directory`, verified: signature, manifest, set of files, sizes and digests, then labels.

    Args:
        signed: see `delivery.manifest.read_manifest`.

    Raises:
        BundleError: at the first thing that does not hold.
    """
    directory = Path(directory)
    manifest = read_manifest(directory, signed=signed)
    expected, found = set(manifest.files), {path.name for path in directory.iterdir()} - {MANIFEST, SIGNATURE}
    wanted = {*FILES, *(expected & set(OPTIONAL))}
    if not expected == found == wanted:
        raise BundleError(
            f"{directory} must hold {', '.join(FILES)} and {MANIFEST}; "
            f"missing: {sorted(wanted - (expected & found)) or 'none'}, "
            f"unknown: {sorted((expected | found) - wanted) or 'none'}"
        )
    for name, entry in manifest.files.items():
        path = directory / name
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path} is not a plain file")
        if (size := path.stat().st_size) != entry.size:
            raise BundleError(f"{path} has {size} bytes, its manifest says {entry.size}; download or train it again")
        if (digest := file_sha256(path)) != entry.sha256:
            raise BundleError(
                f"{path} has sha256 {digest}, its manifest says {entry.sha256}; download or train it again"
            )
    quantised = directory / OPTIONAL[0]
    return Bundle(
        directory,
        manifest,
        _read_labels(directory / "labels.json"),
        read_quantisation(quantised) if quantised.name in expected else None,
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; never a pickle, and never more than `MAX_ARRAYS_BYTES` unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_ARRAYS_BYTES:
            raise BundleError(f"{path} unpacks to {unpacked} bytes; at most {MAX_ARRAYS_BYTES} are read")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if foreign := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise BundleError(f"{path} holds {foreign[0]!r}, which is no array")
        return arrays
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{path} is not a readable .npz file of plain arrays: {error}") from error


def _read_labels(path):
    try:
        return TypeAdapter(Labels).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        raise BundleError(
            f"{path} does not hold fine, superclasses and superclass_of: {first_problem(error)}"
        ) from error


def _git_commit():
    if not shutil.which("git"):
        return None
    result = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else None


def _packages():
    names = ("keras", "tensorflow", "numpy", "onnx", "openvino")
    return {"python": platform.python_version(), **{name: package_version(name) for name in names}}
