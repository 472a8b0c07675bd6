"""Training state on disk: one file an epoch, written whole or not at all; the last two are kept."""

import json
import os
from pathlib import Path

import numpy as np

KEPT = 2


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where the state after `epoch` epochs is kept."""
    return folder / f"epoch-{epoch:04d}.npz"


def save_checkpoint(folder: Path, model, recipe: dict, results: list[dict]) -> Path:
    """Writes weights, optimizer state and random state of `model` after ``len(results)`` epochs.

    Args:
        folder: made if need be.
        recipe: what training was asked for; a checkpoint is only good for the same.
        results: one entry for each epoch so far.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = [checkpoint_path(folder, epoch) for epoch in range(len(results) - KEPT + 1, len(results) + 1)]
    path = kept[-1]
    arrays = {f"v{index:03d}": np.asarray(variable) for index, variable in enumerate(_variables(model))}
    header = json.dumps({"recipe": recipe, "results": results})
    with open(folder / f".{path.name}.part", "wb") as file:
        np.savez(file, header=np.array(header), **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    for old in set(folder.glob("epoch-*.npz")) - set(kept):  # those of another recipe may have higher numbers
        old.unlink()
    return path


def latest_checkpoint(folder: Path, model, recipe: dict) -> list[dict] | None:
    """Sets `model` to the newest whole checkpoint of `recipe` in `folder`; the results so far, None if there is none.

    A damaged file (zip keeps a checksum of each array) is passed over for the one before it, with a warning.
    """
    import warnings

    variables = None
    for path in sorted(folder.glob("epoch-*.npz"), reverse=True):
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                header = json.loads(str(arrays["header"]))
                values = [arrays[name] for name in sorted(arrays.files) if name != "header"]
        except Exception as error:  # noqa: BLE001 - a damaged file may raise anything
            warnings.warn(
                f"checkpoint {path} is damaged ({error}); trying the one before", RuntimeWarning, stacklevel=2
            )
            continue
        variables = variables or _variables(model)
        if header["recipe"] != recipe or [value.shape for value in values] != [tuple(v.shape) for v in variables]:
            continue
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return header["results"]
    return None


def _variables(model):
    """Everything that the next step depends on, the optimizer's slots and dropout's random state included."""
    model.optimizer.build(model.trainable_variables)
    return [*model.variables, *model.optimizer.variables]
