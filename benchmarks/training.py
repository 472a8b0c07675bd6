"""Training of VGG16 on a processor: this suite beside stock Keras, and both beside what TensorFlow reaches at best.

    CIFAR100_DIR=~/data python -m benchmarks.training          20 to 40 minutes on two cores; --help lists the options

The arms alternate (A B B A), each warmed first; medians with bootstrap 95 % intervals. Stock Keras is the same network
of its own layers in float32, through ``fit`` on NumPy arrays without augmentation; compiled by XLA, as Keras does by
itself, and not; the better counts. Ours is what `training.loop.train` does, with shuffle and augmentation. Accuracy
is of the held-out validation images, never of test images, after the same time from the same weights; compilation and
the probes that plan the training count. A run that missed its time by more than a few percent is planned anew by what
it took, at most twice.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.arms import WARM, limit_arms, our_arms, plain_arm, start_xla_arm
from benchmarks.budget import SEED, fill, train_ours, train_plain
from benchmarks.measuring import conclude, measure, summarise
from benchmarks.plain import CLASSES, SIDE
from helpers.data.dataset import Split, load_dataset, split_validation
from helpers.training.backend import load_keras
from helpers.training.model import build_vgg16, get_weights, make_config, weight_shapes
from helpers.training.recipe import choose_precision

RESULT = Path(__file__).parent / "results" / "training.json"


def load_data() -> tuple[dict, Split, Split]:
    """Provenance, training and validation images: CIFAR-100 where ``CIFAR100_DIR`` is set, else the stand-in."""
    dataset = load_dataset("cifar100" if os.environ.get("CIFAR100_DIR") else "synthetic")
    return {"title": dataset.title, **dataset.provenance()}, *split_validation(dataset.train)


def make_start(training: Split, width: float) -> tuple[dict, dict]:
    """Config and initial weights of the network that all arms start from; no dropout, as the notebooks train."""
    channels = training.images[:5000].reshape(-1, 3)
    config = make_config(channels.mean(0), channels.std(0), num_classes=CLASSES, width=width, dropout=0.0)
    return config, get_weights(build_vgg16(**config))


def training_gflop(config) -> float:
    """Of one 32-pixel image: forward, and twice that backward; two operations for each product; 1.883 at width 1."""
    products = 0
    for name, shape in weight_shapes(config).items():
        if name.endswith("/kernel"):
            side = SIDE >> (int(name[5]) - 1) if name.startswith("block") else 1
            products += math.prod(shape) * side**2
    return 6 * products / 1e9


def run(options) -> dict:
    """All measurements, as the JSON file holds them."""
    load_keras().utils.set_random_seed(SEED)
    batch_size = options.batch_size
    data, training, validation = load_data()
    config, weights = make_start(training, options.width)
    batches = training.take(slice((options.steps + WARM) * batch_size))
    if len(batches) < (options.steps + WARM) * batch_size:
        raise SystemExit(f"(--steps + {WARM}) times --batch-size must be at most {len(training)}, the training images")

    print("measuring speed ...", file=sys.stderr)
    arms = our_arms(config, weights, batches, batch_size)
    arms["plain"] = plain_arm(config, weights, batches, batch_size, jit_compile=False)
    few = max(1, options.steps // 4) + WARM  # XLA's steps are several times longer
    fewer = batches.take(slice(few * batch_size))
    xla, xla_note = None, "skipped"
    if options.xla_limit:
        xla, xla_note = start_xla_arm(options.xla_limit, config, weights, fewer, batch_size)
    arms |= {"plain, XLA": xla} if xla else {}
    arms |= limit_arms(batch_size)
    rates = {name: np.array(values) for name, values in measure(arms, options.repeats).items()}

    better = max((name for name in rates if name.startswith("plain")), key=lambda name: np.median(rates[name]))
    dtype = "bfloat16" if choose_precision() == "mixed_bfloat16" else "float32"
    best = {}
    for kind in ("GEMM", "convolution"):
        for name in ("float32", "bfloat16"):
            of_kind = [arm for arm in rates if arm.startswith(kind) and arm.endswith(name)]
            best[f"{kind} {name}"] = max(of_kind, key=lambda arm: np.median(rates[arm]))
    peak = max((best[f"GEMM {dtype}"], best[f"convolution {dtype}"]), key=lambda arm: np.median(rates[arm]))
    gflop = training_gflop(config)
    result = {
        "benchmark": "training",
        "data": data,
        "gflop_per_image": gflop,
        "xla": xla_note,
        "better_plain": better,
        "best": best,
        "images_per_second": {name: summarise(rates[name]) for name in arms if name.startswith(("ours", "plain"))},
        "gflop_per_second": {name: summarise(rates[name]) for name in arms if name.startswith(("GEMM", "convolution"))},
        "ratio": summarise(rates["ours"] / rates[better]),
        "overhead": summarise(1 - rates["ours"] / rates["ours, bare step"]),
        "peak": peak,
        "share_of_peak": summarise(gflop * rates["ours"] / rates[peak]),
        "accuracy": None,
    }
    if options.accuracy:
        print(f"training twice for {options.seconds:g} s ...", file=sys.stderr)
        given = config, weights, training, validation
        ours = fill(lambda longer: train_ours(*given, options.seconds, longer), options.seconds)
        allowed = max(options.seconds, ours["seconds"])  # plain never gets less
        jit = better == "plain, XLA"
        plain = fill(lambda longer: train_plain(*given, allowed, jit, longer), allowed)
        result["accuracy"] = {"validation_images": len(validation), "seed": SEED, "ours": ours, "plain": plain}
    return result


def print_table(result: dict) -> None:
    """One aligned row a measurement: median, 95 % interval, unit."""
    environment, limits = result["environment"], result["gflop_per_second"]
    precision, xla = environment["precision"], result["xla"]
    rows = [
        (f"ours, {precision}, with input", result["images_per_second"]["ours"], 1, "images/s"),
        (f"ours, {precision}, bare step", result["images_per_second"]["ours, bare step"], 1, "images/s"),
    ]
    for name, summary in result["images_per_second"].items():
        if name.startswith("plain"):
            rows.append((f"stock Keras, float32, XLA {'on' if 'XLA' in name else 'off'}", summary, 1, "images/s"))
    rows.append(("ours / the better stock Keras", result["ratio"], 1, "times"))
    rows.append(("overhead of input, callbacks, metrics", result["overhead"], 100, "% of our time; target 3"))
    rows += [
        (f"best {arm.rpartition(' ')[0]}, {arm.rpartition(' ')[2]}", limits[arm], 1, "GFLOP/s")
        for arm in result["best"].values()
    ]
    rows.append((f"our share of {result['peak']}", result["share_of_peak"], 100, "%"))
    print(f"{environment['cpu']}, {environment['cpus']} CPUs; {result['data']['title']}; XLA {xla}")
    print(f"{'':<40}{'median':>10}{'95 % interval':>22}")
    for name, summary, factor, unit in rows:
        median, low, high = (f"{factor * summary[part]:.2f}" for part in ("median", "low", "high"))
        print(f"{name:<40}{median:>10}{f'{low} to {high}':>22}  {unit}")
    for name in ("ours", "plain") if result["accuracy"] else ():
        arm = result["accuracy"][name]
        label = f"{'ours' if name == 'ours' else 'stock Keras'}, validation after {arm['seconds']:.0f} s"
        of = f"% of {result['accuracy']['validation_images']}; {arm['how']}"
        print(f"{label:<40}{100 * arm['accuracy']:>10.2f}{'':>22}  {of}")


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--repeats", type=int, default=5, metavar="N", help="samples of each arm (%(default)s)")
    add("--batch-size", type=int, default=128, metavar="N", help="images a step while speed is measured (%(default)s)")
    add("--steps", type=int, default=24, metavar="N", help="steps a sample (%(default)s); a quarter of it with XLA")
    add("--xla-limit", type=float, default=180, metavar="S", help="seconds for XLA's first epoch, 0 for no XLA (180)")
    add("--seconds", type=float, default=300, metavar="S", help="training time for accuracy (%(default)s)")
    add("--no-accuracy", dest="accuracy", action="store_false", help="measure speed only")
    add("--width", type=float, default=1.0, metavar="X", help="of the network; below 1 only to try this out")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/training.json)")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.steps, options.batch_size - 1) < 1:
        parser.error("--repeats and --steps must be at least 1, --batch-size at least 2")
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
