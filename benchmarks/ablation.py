"""What each part of training is worth: accuracy after the same time, with one part changed at a time.

    CIFAR100_DIR=~/data python -m benchmarks.ablation          about 40 minutes on two cores; --help lists the options

Every arm trains the same network from the same weights with the same seed, for the same time at the speed that was
measured for its kind of step. Compilation does not count here: it is the same for all. Accuracy is of the held-out
validation images, once an arm; so differences of a point are noise. In minutes a network is far from knowing its images
by heart: what guards against that (augmentation, mixing, smoothing) costs here, and pays in longer training.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from tqdm import tqdm

from benchmarks.budget import SEED, accuracy, draw, our_network, plan_recipe, probe
from benchmarks.measuring import conclude
from benchmarks.training import RESULT as TRAINING_RESULT
from benchmarks.training import load_data, make_start
from helpers.training.backend import load_keras
from helpers.training.loop import train

RESULT = TRAINING_RESULT.with_name("ablation.json")


class Arm(NamedTuple):
    """What is changed: values of the recipe, the precision, or our layers for those of Keras."""

    changes: dict
    precision: str = "auto"
    stock_layers: bool = False


ARMS = {
    "as it is": Arm({}),
    "float32": Arm({}, precision="float32"),
    "layers of Keras": Arm({}, stock_layers=True),
    "32 px from the start": Arm({"resolutions": "32"}),
    "no warmup": Arm({"warmup": 0.0}),
    "no momentum": Arm({"momentum": 0.0}),
    "no weight decay": Arm({"weight_decay": 0.0}),
    "label smoothing 0.1": Arm({"label_smoothing": 0.1}),
    "flips and shifts": Arm({"augment": True}),
    "average 0.99": Arm({"average": 0.99}),
    "policy trivial": Arm({"policy": "trivial"}),
    "cutout 8": Arm({"cutout": 8}),
    "mixup 0.2": Arm({"mixup": 0.2}),
    "cutmix 1": Arm({"cutmix": 1.0}),
}


def run(options) -> dict:
    """All arms, as the JSON file holds them."""
    load_keras().utils.set_random_seed(SEED)
    data, training, validation = load_data()
    config, weights = make_start(training, options.width)
    few = validation.take(slice(250))
    speeds, rows = {}, {}
    with tqdm(options.arms, unit=" arms", leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            arm = ARMS[name]
            with patch("helpers.training.model.layer_classes", _stock_layers) if arm.stock_layers else nullcontext():
                probed, network = (our_network(config, weights, arm.precision) for _ in range(2))
            kind = (arm.precision, arm.stock_layers)
            if kind not in speeds:
                speeds[kind] = probe(probed, training, few)[:2]
            recipe, images = plan_recipe(options.seconds, *speeds[kind], len(training), **arm.changes)
            results = train(network, draw(training, images), few, recipe, progress=False)
            rows[name] = {
                "accuracy": accuracy(network, validation),
                "epochs": recipe.epochs,
                "images_an_epoch": images,
                "seconds": sum(result.seconds for result in results),
            }
    return {
        "benchmark": "ablation",
        "data": data,
        "validation_images": len(validation),
        "seed": SEED,
        "arms": rows,
    }


def _stock_layers():
    layers = load_keras().layers
    return partial(layers.Conv2D, kernel_size=3, padding="same", use_bias=False), layers.BatchNormalization


def print_table(result: dict) -> None:
    """A row an arm: accuracy, and what the change made of it."""
    environment, arms = result["environment"], result["arms"]
    first = next(iter(arms.values()))["accuracy"]
    print(f"{environment['cpu']}, {environment['cpus']} CPUs; {result['data']['title']}")
    print(f"{'':<24}{'validation':>12}{'difference':>12}{'images seen':>13}")
    for name, row in arms.items():
        seen = row["epochs"] * row["images_an_epoch"]
        print(f"{name:<24}{100 * row['accuracy']:>10.2f} %{100 * (row['accuracy'] - first):>+12.2f}{seen:>13,}")


def main(arguments: list[str] | None = None) -> None:
    """Trains, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of: {', '.join(ARMS)}")
    add("--seconds", type=float, default=100, metavar="S", help="training time of each arm (%(default)s)")
    add("--width", type=float, default=1.0, metavar="X", help="of the network; below 1 only to try this out")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/ablation.json)")
    options = parser.parse_args(arguments)
    print("training each arm ...", file=sys.stderr)
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
