"""Tries 8 bits on a bundle that was published without: ``python -m helpers.quantise model NEW``.

NEW is another version with the same weights: its figures and its drift reference are those of the network that serves.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.data.archive import DatasetError
from helpers.data.dataset import SOURCES, Dataset, load_dataset, split_validation
from helpers.delivery.bundle import Bundle, BundleError, check_empty, read_bundle, write_bundle
from helpers.delivery.graph import read_weights
from helpers.inference.calibration import Choice, choose_engine
from helpers.inference.engine import run_batches
from helpers.monitoring.reference_maker import make_reference
from helpers.training.evaluation import evaluate


def quantise(bundle: Bundle, dataset: Dataset, directory: Path) -> tuple[Choice, Bundle | None]:
    """What was found about `bundle`, and the version with 8 bits in `directory`, new; None where it may not have them.

    Raises:
        ValueError: if `dataset` is not what the bundle was trained on.
        BundleError: if `directory` holds files.
    """
    manifest = bundle.manifest
    if dataset.fingerprint != manifest.data.fingerprint:
        raise ValueError(f"{bundle.path} was trained on {manifest.data.source}, not on {dataset.title}; choose --data")
    training, validation = split_validation(dataset.train)
    golden = bundle.golden()
    check_empty(directory)  # the rest takes minutes
    choice = choose_engine(bundle.model_path, training, validation, golden[0], temperature=manifest.temperature)
    if choice.quantisation is None:
        return choice, None
    figures = {
        name: evaluate(
            run_batches(choice.engine, split.images).logits, split.labels, bundle.labels, manifest.temperature
        )
        for name, split in (("test", dataset.test), ("validation", validation))
    }
    card = (bundle.path / "model_card.md").read_text(encoding="utf-8")
    low, high = figures["test"].top1_interval
    section = (
        f"\n## In 8 bits\n\n{choice.reason}. Test top-1 so: {figures['test'].top1:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}); the table above is of version {bundle.version}, in floats.\n"
    )
    reference = make_reference(choice.engine, validation, training, bundle.labels, manifest.temperature)
    return choice, write_bundle(
        directory,
        name=manifest.name,
        weights=read_weights(bundle.model_path),
        config=manifest.config,
        temperature=manifest.temperature,
        labels=bundle.labels,
        golden=golden,
        reference=reference.as_arrays(),
        evaluation={name: figure.as_dict() for name, figure in figures.items()},
        model_card=card + section,
        data=manifest.data,
        gate=manifest.gate,
        parent=bundle.version,
        quantisation=choice.quantisation,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; 0 if there is a new version, 1 if not, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m helpers.quantise", description="Tries 8 bits on a bundle.")
    parser.add_argument("model", type=Path, help="folder of the bundle")
    parser.add_argument("new", type=Path, help="folder for the version with 8 bits")
    parser.add_argument("--data", default="auto", choices=SOURCES, help="that it was trained on (default: auto)")
    arguments = parser.parse_args(argv)
    try:
        choice, made = quantise(read_bundle(arguments.model), load_dataset(arguments.data), arguments.new)
    except (BundleError, DatasetError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(choice.reason)
    print(f"{arguments.new} holds version {made.version}" if made else f"{arguments.new} was not written")
    return 0 if made else 1


if __name__ == "__main__":
    sys.exit(main())
