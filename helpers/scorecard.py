"""A bundle's figures on the test images: ``python -m helpers.scorecard``, or ``make evaluate``.

Beside accuracy and calibration, each with a 95 % interval: accuracy without the near-duplicates of training images,
and accuracy by corruption and severity, on a sample of the test images that holds each class equally often.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.special import log_softmax, softmax
from tqdm import tqdm

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import SOURCES, Dataset, choose_per_class, load_dataset
from helpers.data.near_duplicates import find_near_duplicates
from helpers.inference.loader import LoadedModel, load_model
from helpers.receipts import write_json
from helpers.training.evaluation import (
    Evaluation,
    bootstrap_interval,
    evaluate,
    exact_calibration_error,
    expected_calibration_error,
)
from helpers.workspace import ROOT

SEVERITIES = (1, 2, 3, 4, 5)
RESAMPLES = 1000  # of calibration errors, for their standard error
PACKAGES = ("numpy", "scipy", "pillow", "openvino")


@dataclass(frozen=True)
class Scorecard:
    """One model on one test set. Accuracies and calibration errors are 0 to 1.

    Attributes:
        model: name, version, engine, precision and threads.
        data: title, source, fingerprint and whether synthetic.
        evaluation: on all test images.
        intervals: 95 % intervals of figures in `evaluation`, by their names.
        calibration_error_exact: what the calibration error would be if every confidence, with the temperature, were
            exactly the chance to be right, with 95 % of what it may be by chance; see `exact_calibration_error`.
        near_duplicates: number of test images that have a near-duplicate in training.
        top1_without_duplicates: top-1 on the other test images, with its 95 % interval.
        corruption_images: number of test images that were corrupted.
        clean: top-1 on these, uncorrupted.
        corruptions: top-1 on these at severities 1 to 5, by corruption.
        versions: of Python and the packages that compute.
    """

    model: dict[str, str | int]
    data: dict[str, str | bool]
    evaluation: Evaluation
    intervals: dict[str, tuple[float, float]]
    calibration_error_exact: tuple[float, float, float]
    near_duplicates: int
    top1_without_duplicates: tuple[float, float, float]
    corruption_images: int
    clean: float
    corruptions: dict[str, tuple[float, ...]]
    versions: dict[str, str]

    @property
    def mean_corruption_accuracy(self) -> float:
        """Mean over corruptions and severities."""
        return float(np.mean(list(self.corruptions.values())))

    def as_dict(self) -> dict:
        """As JSON values."""
        return asdict(self) | {"mean_corruption_accuracy": self.mean_corruption_accuracy}


def score_model(model: LoadedModel, dataset: Dataset, per_class: int = 10, seed: int = 0) -> Scorecard:
    """Everything above; corruptions on `per_class` random test images of each class. Shows a bar on standard error.

    Raises:
        ValueError: if `model` and `dataset` differ in their classes.
    """
    if model.labels != dataset.labels:
        ours, theirs = model.labels.fine, dataset.labels.fine
        raise ValueError(
            f"the model must know the classes of the data ({dataset.title}): {len(theirs)} from {theirs[0]!r} to "
            f"{theirs[-1]!r}; it knows {len(ours)} from {ours[0]!r} to {ours[-1]!r}. Choose other --data or --model"
        )
    test, temperature = dataset.test, model.bundle.manifest.temperature
    sample = choose_per_class(test.labels, per_class, seed)
    total = len(test) + len(CORRUPTIONS) * len(SEVERITIES) * len(sample)
    with tqdm(total=total, unit=" images", file=sys.stderr, leave=False) as bar:
        bar.set_description("test images")
        logits = _predict(model, test.images, bar)
        correct = logits.argmax(axis=1) == test.labels
        bar.set_description("near-duplicates")
        duplicate = find_near_duplicates(test.images, dataset.train.images)
        corruptions = {}
        for name in CORRUPTIONS:
            bar.set_description(name)
            answers = (
                _predict(model, corrupt(test.images[sample], name, severity, seed), bar).argmax(axis=1)
                for severity in SEVERITIES
            )
            corruptions[name] = tuple(float(np.mean(answer == test.labels[sample])) for answer in answers)
    manifest = model.bundle.manifest
    return Scorecard(
        model={"name": manifest.name, "version": manifest.version, "engine": model.engine_name}
        | {"precision": model.precision, "threads": model.threads},
        data={"title": dataset.title, **dataset.provenance()},
        evaluation=evaluate(logits, test.labels, dataset.labels, temperature),
        intervals=find_intervals(logits, test.labels, np.array(dataset.labels.superclass_of), temperature),
        calibration_error_exact=exact_calibration_error(softmax(logits / temperature, axis=1)),
        near_duplicates=int(duplicate.sum()),
        top1_without_duplicates=(float(correct[~duplicate].mean()), *bootstrap_interval(correct[~duplicate])),
        corruption_images=len(sample),
        clean=float(correct[sample].mean()),
        corruptions=corruptions,
        versions={"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    )


def find_intervals(logits, targets, superclass_of, temperature) -> dict[str, tuple[float, float]]:
    """Bootstrap 95 % intervals of the figures of an `Evaluation`, by their names.

    Args:
        logits: float (n, classes).
        targets: int (n,).
        superclass_of: int (classes,).
        temperature: divides the logits.
    """
    answers, rows = logits.argmax(axis=1), np.arange(len(targets))
    rank = (logits > logits[rows, targets][:, None]).sum(axis=1)
    return {
        "top1": bootstrap_interval(answers == targets),
        "top5": bootstrap_interval(rank < 5),
        "superclass_top1": bootstrap_interval(superclass_of[answers] == superclass_of[targets]),
        "nll": bootstrap_interval(-log_softmax(logits / temperature, axis=1)[rows, targets]),
        "calibration_error_raw": _calibration_interval(softmax(logits, axis=1), answers != targets),
        "calibration_error": _calibration_interval(softmax(logits / temperature, axis=1), answers != targets),
    }


def format_table(card: Scorecard) -> str:
    """The scorecard as aligned text; its title names the data."""
    found, model = card.evaluation, card.model
    lines = [
        f"{model['name']} {model['version']} on {card.data['title']}: {found.samples:,} test images",
        f"{model['engine']}, {model['precision']}, {model['threads']} threads",
        "",
        f"{'':<26}{'':>8}   95 % interval",
    ]
    for label, name in (
        ("top-1", "top1"), ("top-5", "top5"), ("superclass", "superclass_top1"), ("NLL (nats)", "nll"),
        ("ECE, raw", "calibration_error_raw"), (f"ECE, temperature {found.temperature:.3f}", "calibration_error"),
    ):  # fmt: skip
        lines.append(_row(label, getattr(found, name), card.intervals[name]))
    value, *interval = card.calibration_error_exact
    lines.append(_row("ECE, if exact", value, interval) + "   (what chance alone makes)")
    value, *interval = card.top1_without_duplicates
    lines.append(_row("top-1, no near-duplicates", value, interval) + f"   ({card.near_duplicates:,} left out)")
    title = f"top-1, {card.corruption_images:,} images"
    lines += ["", f"{title:<26}" + "".join(f"{severity:>8}" for severity in (*SEVERITIES, "mean"))]
    for name, values in card.corruptions.items():
        lines.append(f"{name:<26}" + "".join(f"{value:>8.3f}" for value in (*values, np.mean(values))))
    columns = np.mean(list(card.corruptions.values()), axis=0)
    lines.append(f"{'mean':<26}" + "".join(f"{value:>8.3f}" for value in (*columns, card.mean_corruption_accuracy)))
    lines.append(f"{'without corruption':<26}{card.clean:>8.3f}")
    ranked = sorted(found.per_superclass.items(), key=lambda item: -item[1])
    for title, part in (("best superclasses", ranked[:5]), ("worst superclasses", ranked[:-6:-1])):
        lines += ["", title, *(f"  {name:<32}{value:>8.3f}" for name, value in part)]
    lines += ["", "most frequent wrong answers"]
    lines += [f"  {f'{true} taken for {answer}':<32}{count:>8}" for true, answer, count in found.confusions[:10]]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table and writes the figures as JSON; 2 if there is no such bundle or data, 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    per_class = 2 if arguments.quick else sys.maxsize if arguments.all else 10
    try:
        card = score_model(load_model(arguments.model), load_dataset(arguments.data), per_class)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(arguments.out, card.as_dict())
    except (ValueError, OSError) as error:  # BundleError, ModelRejected and DatasetError are ValueErrors
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(format_table(card), f"all figures: {arguments.out}", sep="\n\n")
    return 0


def _predict(model, images, bar, size=500):
    parts = []
    for start in range(0, len(images), size):
        parts.append(model.predict(images[start : start + size]).logits)
        bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _calibration_interval(probabilities, wrong):
    """The error and 1.96 bootstrap standard errors: percentiles would lie too high, as resampling adds to the error."""
    confidence, wrong = probabilities.max(axis=1)[:, None], wrong.astype(int)  # one column, so that 0 is the answer
    random, resampled = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = random.integers(0, len(wrong), len(wrong))
        resampled.append(expected_calibration_error(confidence[chosen], wrong[chosen]))
    error, reach = expected_calibration_error(confidence, wrong), 1.96 * float(np.std(resampled))
    return max(0.0, error - reach), error + reach


def _row(label, value, interval):
    return f"{label:<26}{value:>8.4f}   {interval[0]:.4f} to {interval[1]:.4f}"


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.scorecard", description="Scores a bundle on test images.")
    runs = Path(os.environ.get("SUITE_RUNS") or ROOT / "runs")
    parser.add_argument("--model", type=Path, default=ROOT / "model", help="folder of the bundle (default: model)")
    parser.add_argument("--data", choices=SOURCES, default="auto", help="as in helpers.data.dataset (default: auto)")
    parser.add_argument("--out", type=Path, default=runs / "evaluation.json", help="default: runs/evaluation.json")
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--quick", action="store_true", help="corrupt 2 test images of each class instead of 10")
    amount.add_argument("--all", action="store_true", help="corrupt all test images: about ten times as long")
    return parser


if __name__ == "__main__":
    sys.exit(main())
