"""What each part of training is worth: accuracy for the same work, with one part changed at a time.

    CIFAR100_DIR=~/data python -m benchmarks.ablation          about 45 minutes on two cores; --help lists the options

Every arm trains the same network from the same weights with the same seed, for as long as the unchanged recipe takes
for `--images` images. That is counted in steps, not in seconds, which differ with what else a machine does: what a step
of an arm costs is first measured beside the unchanged one, in pairs, A B B A. Only that needs a quiet machine
(`--costs`); the training then may run beside other work. Compilation and the check after an epoch do not count.

Accuracy is of the held-out validation images, once an arm, with the paired bootstrap's 95 % interval of its difference.
That covers the choice of images, not of the seed: the arm "another seed" shows what that alone makes. In minutes a
network is far from knowing its images by heart: what guards against that (augmentation, mixing, smoothing) costs here,
and pays in longer training. Each arm that is done is kept beside the JSON file, and a run that was cut goes on there.
"""

import argparse
import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

from benchmarks import budget
from benchmarks.arms import time_steps
from benchmarks.measuring import conclude, measure, summarise
from benchmarks.training import RESULT as TRAINING_RESULT
from benchmarks.training import load_data, make_start
from helpers.receipts import write_json
from helpers.training.backend import load_keras
from helpers.training.batches import make_batches, make_feed
from helpers.training.evaluation import paired_difference
from helpers.training.loop import compile_model, predict_logits, train
from helpers.training.recipe import Recipe

RESULT = TRAINING_RESULT.with_name("ablation.json")
UNCHANGED = "as it is"
STEPS = 8  # a sample
SAME_WORK = ("resolutions", "warmup", "label_smoothing", "seed")  # what they change costs a step nothing


class Arm(NamedTuple):
    """What is changed: values of the recipe, the precision, or our layers for those of Keras."""

    changes: dict
    precision: str = "auto"
    stock_layers: bool = False


ARMS = {
    UNCHANGED: Arm({}),
    "another seed": Arm({"seed": budget.SEED + 1}),
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
    load_keras().utils.set_random_seed(budget.SEED)
    data, training, validation = load_data()
    start = make_start(training, options.width)
    identity = {"data": data, "images": options.images, "width": options.width}
    part = options.output.with_suffix(".part.json")
    done = json.loads(part.read_text(encoding="utf-8")) if part.exists() else {**identity, "costs": {}, "arms": {}}
    if any(done[name] != value for name, value in identity.items()):
        raise SystemExit(f"{part} is of a run with other data, --images or --width; give the same, or remove it")
    part.parent.mkdir(parents=True, exist_ok=True)

    measure_costs(start, training, options.arms, options.pairs, done["costs"], lambda: write_json(part, done))
    if options.costs:
        raise SystemExit(f"costs are kept in {part}; the same command without --costs goes on from there")
    few = validation.take(slice(250))
    with tqdm(options.arms, unit=" arms", leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            if name in done["arms"]:
                continue
            recipe, images = plan(name, done["costs"], options.images, len(training))
            network = _build(start, ARMS[name])
            results = train(network, budget.draw(training, images), few, recipe, progress=False)
            right = predict_logits(network, validation.images).argmax(1) == validation.labels
            done["arms"][name] = {
                "epochs": recipe.epochs,
                "images_an_epoch": images,
                "seconds": sum(result.seconds for result in results),
                "right": "".join(map(str, right.astype(int))),  # an image a digit, for the paired difference
            }
            write_json(part, done)
    rows, before = {}, _digits(done["arms"][options.arms[0]])
    for name in options.arms:
        right = _digits(done["arms"][name])
        difference, *interval = (0.0, 0.0, 0.0) if name == options.arms[0] else paired_difference(right, before)
        told = {key: value for key, value in done["arms"][name].items() if key != "right"}
        rows[name] = {"accuracy": float(right.mean()), "difference": difference, "interval": interval, **told}
    part.unlink()
    return {
        "benchmark": "ablation",
        "data": data,
        "validation_images": len(validation),
        "seed": budget.SEED,
        "costs": done["costs"],
        "arms": rows,
    }


def measure_costs(start, training, names, pairs: int, costs: dict, keep) -> None:
    """Adds to `costs`, by arm and side in pixels, what a step costs beside the unchanged one at that side.

    The unchanged one's own are beside itself at 32 pixels. `keep` is called after each arm.
    """
    sides, networks = _sides(), {}

    def sampler(arm, side):
        recipe = Recipe(**budget.SHORT | _work(arm) | {"epochs": len(sides), "resolutions": " ".join(map(str, sides))})
        compiled = arm.precision, arm.stock_layers, recipe.momentum, recipe.weight_decay, recipe.average
        if compiled not in networks:  # those that differ in their input only share one
            networks[compiled] = _build(start, arm)
            compile_model(networks[compiled], recipe, steps=10_000)

        # More batches than are timed, so that their making does not end before the time does.
        some = training.take(slice(2 * STEPS * recipe.batch_size))
        batches = make_batches(some, recipe, sides.index(side))
        feed = make_feed(networks[compiled], some.images, side)

        def epoch(clock):
            feed.fit(batches, shuffle=False, verbose=0, callbacks=[clock])

        return lambda: time_steps(epoch, STEPS)

    for name in dict.fromkeys((UNCHANGED, *names)):
        if name in costs or (name != UNCHANGED and not _changes_work(name)):
            continue
        measured = {}
        for side in sides:
            beside = sampler(ARMS[UNCHANGED], sides[-1] if name == UNCHANGED else side)
            rates = measure({"unchanged": beside, "arm": sampler(ARMS[name], side)}, pairs)
            measured[str(side)] = summarise(np.divide(rates["unchanged"], rates["arm"]))
        costs[name] = measured
        keep()


def plan(name: str, costs: dict, images: int, available: int) -> tuple[Recipe, int]:
    """The recipe of arm `name` that costs as much as the unchanged one with `images` images, and images an epoch."""
    unit = {side: costs[UNCHANGED][str(side)]["median"] for side in _sides()}
    own = {side: costs[name][str(side)]["median"] if _changes_work(name) else 1.0 for side in unit}
    allowed = images * np.mean([unit[int(side)] for side in budget.SHORT["resolutions"].split()])
    speeds = {side: 1 / (unit[side] * own[side]) for side in unit}
    return budget.plan_recipe(float(allowed), speeds, 0.0, available, **ARMS[name].changes)


def _sides():
    return list(dict.fromkeys(map(int, budget.SHORT["resolutions"].split())))


def _work(arm):
    return {key: value for key, value in arm.changes.items() if key not in SAME_WORK}


def _changes_work(name):
    arm = ARMS[name]
    return bool(_work(arm)) or arm.precision != "auto" or arm.stock_layers


def _build(start, arm):
    with patch("helpers.training.model.layer_classes", _stock_layers) if arm.stock_layers else nullcontext():
        return budget.our_network(*start, arm.precision)


def _stock_layers():
    layers = load_keras().layers
    return partial(layers.Conv2D, kernel_size=3, padding="same", use_bias=False), layers.BatchNormalization


def _digits(row):
    return np.array([int(digit) for digit in row["right"]])


def print_table(result: dict) -> None:
    """A row an arm: accuracy, what the change made of it, what a step costs, and images seen."""
    environment, costs = result["environment"], result["costs"]
    print(f"{environment['cpu']}, {environment['cpus']} CPUs; {result['data']['title']}, seed {result['seed']}")
    sides = [f"step, {side} px" for side in _sides()]
    heads = "".join(f"{head:>13}" for head in ("validation", "difference", *sides, "images seen"))
    print(f"{'':<22}{heads}   95 % interval of the difference")
    for name, row in result["arms"].items():
        steps = [f"{costs[name][str(side)]['median']:.2f}" if _changes_work(name) else "1" for side in _sides()]
        seen = f"{row['epochs'] * row['images_an_epoch']:,}"
        cells = (f"{100 * row['accuracy']:.2f} %", f"{100 * row['difference']:+.2f}", *steps, seen)
        low, high = row["interval"]
        line = "".join(f"{cell:>13}" for cell in cells)
        print(f"{name:<22}{line}   {100 * low:+.2f} to {100 * high:+.2f}")


def main(arguments: list[str] | None = None) -> None:
    """Measures and trains what is not done yet, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of: {', '.join(ARMS)}")
    add("--images", type=int, default=60_000, metavar="N", help="that the unchanged recipe takes (%(default)s)")
    add("--pairs", type=int, default=3, metavar="N", help="of samples by which a step's cost is measured (%(default)s)")
    add("--costs", action="store_true", help="measure what steps cost, keep it for the next run, and stop")
    add("--width", type=float, default=1.0, metavar="X", help="of the network; below 1 only to try this out")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/ablation.json)")
    options = parser.parse_args(arguments)
    if min(options.pairs, options.images) < 1:
        parser.error("--pairs and --images must be at least 1")
    print("measuring what steps cost, then training each arm ...", file=sys.stderr)
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
