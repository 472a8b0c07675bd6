"""How often drift tests ring falsely, and how soon they see a change, beside windowed tests and an oracle.

    CIFAR100_DIR=~/data make bench-drift          --help lists the options

Streams are permutations of test images, none of which comes twice: exchangeable with the reference as far as both
splits are, which streams that draw an image again are not. The reference is the bundle's, of validation images. Each
change comes after a clean start. For the comparison every detector, ours included, rings at the line that the same
share of its clean streams crosses; ours stands there at the line of its guarantee, too, and once more without the
likeness to the very corruption that comes, as if nobody had foreseen it. Windowed Kolmogorov-Smirnov tests watch the
same scores, alone and with the likenesses; ADWIN and KSWIN the scores. The oracle is CUSUM that knows the change: log
likelihood ratios of naive Bayes over the bins of all scores, learned on other images of that change.
"""

import argparse
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
from scipy.stats import beta
from tqdm import tqdm

from benchmarks.detectors import (
    calibrate_river,
    first_at,
    ks_trace,
    learn_ratios,
    log_ratios,
    oracle_trace,
    our_trace,
    river_trace,
)
from benchmarks.measuring import conclude, summarise
from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split, choose_per_class, load_dataset
from helpers.inference.loader import load_model
from helpers.monitoring.drift import DriftDetector
from helpers.monitoring.drift_reference import SEVERITIES, TESTS, read_reference
from helpers.monitoring.martingale import break_ties
from helpers.monitoring.scores import NAMES
from helpers.workspace import ROOT

ALPHA = 0.01  # as the service has it
RESULT = ROOT / "benchmarks" / "results" / "drift.json"


def tell(delays, length):
    """Median delay, `length` where half saw nothing, and the share of streams that saw the change."""
    delays = [delay for delay in delays if delay != -1]
    seen = [delay for delay in delays if delay is not None]
    values = [length if delay is None else delay for delay in delays]
    return {"median": float(np.median(values)) if values else None, "seen": len(seen) / max(len(delays), 1)}


def share(hits, count):
    """A share with its exact 95 % interval (Clopper & Pearson 1934)."""
    low = beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(0.975, hits + 1, count - hits) if hits < count else 1.0
    return {"hits": hits, "streams": count, "share": hits / count, "low": float(low), "high": float(high)}


class Looker:
    """Scores and bins of images, as one model with its reference sees them."""

    def __init__(self, model, seed=0):
        self.model, self.reference = model, read_reference(model.bundle)
        self._random = np.random.default_rng(seed)

    def rows(self, images):
        """Scores, float32 (n, scores)."""
        parts = []
        for start in range(0, len(images), 500):
            part = images[start : start + 500]
            parts.append(self.reference.score(part, self.model.predict(part)))
        return np.concatenate(parts)

    def accuracy(self, split):
        """Share of right answers."""
        starts = range(0, len(split), 500)
        answers = [self.model.predict(split.images[start : start + 500]).logits.argmax(axis=1) for start in starts]
        return float(np.mean(np.concatenate(answers) == split.labels))

    def bins(self, rows):
        """int (n, tests), of scores."""
        keys = break_ties(self.reference.tests(rows), self._random)
        return np.stack([np.searchsorted(e, key) for e, key in zip(self.reference.edges, keys.T, strict=True)], axis=1)


def measure_cost(looker, images):
    """Microseconds an image beyond the engine's work, alone and 32 at once, and kilobytes held after all."""
    scores, found = looker.model.predict(images), {}
    parts = {size: [slice(i, i + size) for i in range(0, len(images) - size + 1, size)] for size in (1, 32)}
    for size, slices in parts.items():
        given = [(images[s], type(scores)(*(array[s] for array in vars(scores).values()))) for s in slices]
        seconds = []
        for _ in range(5):
            detector, started = DriftDetector(looker.reference), time.perf_counter()
            for batch in given:
                detector.update(*batch)
            seconds.append((time.perf_counter() - started) / (size * len(given)) * 1e6)
        found[f"microseconds, {size} at once"] = summarise(seconds)
    tracemalloc.start()
    detector = DriftDetector(looker.reference)
    detector.update(images, scores)
    found["kilobytes"] = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    return found


def look(options) -> tuple:
    """The data's provenance, a `Looker`, rows of the test images, the sample that is changed, and rows by change."""
    dataset, looker = load_dataset(options.data), Looker(load_model(Path(options.model or ROOT / "model")))
    test, changes = dataset.test, {}
    clean = looker.rows(test.images)
    sample = choose_per_class(test.labels, options.per_class)
    right = looker.accuracy(test.take(sample))
    for name in tqdm(options.families, "corruptions", leave=False):
        for severity in SEVERITIES:
            split = Split(corrupt(test.images[sample], name, severity), test.labels[sample])
            changes[f"{name} {severity}"] = (looker.rows(split.images), right - looker.accuracy(split))
    shifted = np.array(dataset.labels.superclass_of)[test.labels[sample]] < 5
    changes["class shift, 5 of 20 superclasses"] = (clean[sample][shifted], 0.0)
    return {"title": dataset.title, **dataset.provenance()}, looker, clean, sample, changes, test.images[:2000]


def run(options) -> dict:
    """All of it, as the JSON file holds it."""
    data, looker, clean, sample, changes, images = look(options)
    random, gaps, level = np.random.default_rng(0), looker.reference.gaps, options.level
    bins, scores = looker.bins(clean), slice(len(NAMES))
    orders = [random.permutation(len(clean))[: options.length] for _ in range(options.streams)]
    few = orders[: options.baseline_streams]
    peaks = np.array([our_trace(gaps, bins[order]).max() for order in tqdm(orders, "clean streams", leave=False)])
    windowed = [[ks_trace(gaps[part], bins[order][:, part]).max() for order in few] for part in (scores, slice(None))]
    guarantee = float(np.log10(len(TESTS) / ALPHA))
    lines = {
        "ours, guaranteed": guarantee,
        "ours, unforeseen": guarantee,
        "ours": float(np.quantile(peaks, 1 - level)),
        "windowed KS": float(np.quantile(windowed[0], 1 - level)),
        "windowed KS, likenesses": float(np.quantile(windowed[1], 1 - level)),
    }
    levels = {name: calibrate_river(name, clean, few[: options.river_streams], level) for name in options.river}
    others, rows = np.setdiff1d(np.arange(len(clean)), sample), {}
    for name, (changed, loss) in tqdm(changes.items(), "changes", leave=False):
        changed_bins, found = looker.bins(changed), {key: [] for key in (*lines, "oracle", *levels)}
        blind = [test for test, title in enumerate(TESTS) if title != f"like {name[:-2]}"]
        for seed in range(options.repeats):
            draw = np.random.default_rng([2, seed])
            before, after = draw.permutation(others)[: options.clean], draw.permutation(len(changed))
            learned, shown = np.array_split(after, 2)  # the oracle's own, and the stream's
            stream = np.concatenate([bins[before], changed_bins[shown]])
            ours = our_trace(gaps, stream)
            table = learn_ratios(changed_bins[learned][:, scores], bins[others][:, scores], gaps.shape[1])
            quiet = log_ratios(table, bins[:, scores])
            line = np.quantile([oracle_trace(quiet[order]).max() for order in few], 1 - level)
            traces = {"ours, guaranteed": ours.max(axis=1), "ours, unforeseen": ours[:, blind].max(axis=1)}
            traces |= {"ours": ours.max(axis=1), "windowed KS": ks_trace(gaps[scores], stream[:, scores])}
            traces |= {"windowed KS, likenesses": ks_trace(gaps, stream)}
            for key, trace in traces.items():
                found[key].append(first_at(trace, lines[key], len(before)))
            found["oracle"].append(first_at(oracle_trace(log_ratios(table, stream[:, scores])), line, len(before)))
            for key, value in levels.items() if seed < options.river_repeats else ():
                image = river_trace(key, np.concatenate([clean[before], changed[shown]]), value)
                found[key].append(None if image is None else image - len(before) if image > len(before) else -1)
        length = len(changed) // 2
        delays = {key: tell(values, length) for key, values in found.items()}
        rows[name] = {"loss": float(loss), "images": length, **delays}
    return {
        "benchmark": "drift",
        "data": data,
        "model": looker.model.version,
        "false_alarms": share(int((peaks >= guarantee).sum()), len(peaks)),
        "lines": lines,
        "river_levels": levels,
        "delays": rows,
        "summary": sum_up(rows),
        "cost": measure_cost(looker, images),
    }


def sum_up(rows):
    """Of each detector, the median over changes of its delay over the oracle's; of others, where they beat ours."""
    found = {}
    for name in [key for key in next(iter(rows.values())) if key not in ("loss", "images", "oracle")]:
        known = {change: row for change, row in rows.items() if row[name]["median"] is not None}
        ratios = [row[name]["median"] / row["oracle"]["median"] for row in known.values() if row["oracle"]["median"]]
        found[name] = {"times the oracle": float(np.median(ratios)) if ratios else None}
        if not name.startswith("ours"):
            better = [key for key, row in known.items() if row[name]["median"] < (row["ours"]["median"] or 0)]
            found[name]["faster than ours"] = better
    return found


def print_table(result: dict) -> None:
    """A row a change: the accuracy it costs, and the median delay of each detector with the share that saw it."""
    alarms, delays = result["false_alarms"], result["delays"]
    print(f"{result['environment']['cpu']}, {result['data']['title']}, model {result['model']}")
    print(
        f"false alarms of {alarms['streams']} clean streams: {alarms['hits']} "
        f"({alarms['share']:.1%}, 95 % interval {alarms['low']:.1%} to {alarms['high']:.1%})"
    )
    columns = [key for key in next(iter(delays.values())) if key not in ("loss", "images")]
    print(f"{'median delay (seen)':<36}{'loss':>6}" + "".join(f"{name:>26}" for name in columns))
    for name, row in delays.items():
        cells = "".join(f"{row[key]['median'] or 0:>18.0f} ({row[key]['seen']:>4.0%})" for key in columns)
        print(f"{name:<36}{100 * row['loss']:>6.1f}{cells}")
    for name, row in result["summary"].items():
        faster = ", ".join(row.get("faster than ours", [])) or "nothing"
        note = "" if name.startswith("ours") else f"; faster than ours at equal false alarms on: {faster}"
        print(f"{name:<36}{row['times the oracle'] or 0:>8.2f} times the oracle's delay{note}")
    for name, value in result["cost"].items():
        print(f"{name:<36}{value['median'] if isinstance(value, dict) else value:>8.1f}")


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes the JSON file, prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", default="cifar100", help="cifar100, synthetic or auto (%(default)s)")
    add("--model", metavar="FOLDER", help="a bundle (model/)")
    add("--streams", type=int, default=200, metavar="N", help="clean streams (%(default)s)")
    add("--length", type=int, default=10_000, metavar="N", help="images of a clean stream (%(default)s)")
    add("--baseline-streams", type=int, default=50, metavar="N", help="clean streams of the others (%(default)s)")
    add("--level", type=float, default=0.02, metavar="X", help="share of clean streams that may ring (%(default)s)")
    add("--repeats", type=int, default=10, metavar="N", help="streams of each change (%(default)s)")
    add("--clean", type=int, default=500, metavar="N", help="clean images before it (%(default)s)")
    add("--per-class", type=int, default=20, metavar="N", help="test images of each class to change (%(default)s)")
    add("--families", nargs="+", choices=CORRUPTIONS, default=list(CORRUPTIONS), metavar="NAME", help="corruptions")
    add(
        "--river",
        nargs="*",
        choices=("ADWIN", "KSWIN"),
        default=["ADWIN"],
        help="river's to run; KSWIN is far slower (ADWIN)",
    )
    add("--river-streams", type=int, default=50, metavar="N", help="clean streams of river's (%(default)s)")
    add("--river-repeats", type=int, default=3, metavar="N", help="streams of each change of river's (%(default)s)")
    add("--output", type=Path, default=RESULT, metavar="FILE", help="JSON file (benchmarks/results/drift.json)")
    options = parser.parse_args(arguments)
    print("looking at the images ...", file=sys.stderr)
    conclude(run, options, print_table)


if __name__ == "__main__":
    main()
