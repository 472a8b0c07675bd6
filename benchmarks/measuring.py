"""How measurements are taken and told: in turns, with intervals, and with what they were taken on."""

import os
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from helpers.receipts import now, write_json
from helpers.training.recipe import choose_precision


def rate(amount: float, work) -> float:
    """`amount` over the seconds that calling `work` takes."""
    started = time.perf_counter()
    work()
    return amount / (time.perf_counter() - started)


def measure(arms: dict, repeats: int) -> dict[str, list[float]]:
    """The rates of each arm; all run once to warm up, then `repeats` times in turns, A B B A; a bar shows which."""
    turns = [*arms, *(name for repeat in range(repeats) for name in list(arms)[:: -1 if repeat % 2 else 1])]
    rates = {name: [] for name in arms}
    with tqdm(turns, unit=" samples", leave=False) as bar:
        for name in bar:
            bar.set_description(name)
            rates[name].append(arms[name]())
    return {name: values[1:] for name, values in rates.items()}


def conclude(run, options, print_table) -> None:
    """Writes what `run` of `options` measured as JSON to ``options.output``, with its options, and prints the table."""
    told = {key: value for key, value in vars(options).items() if key != "output"}
    result = {"environment": describe_environment(), "options": told, **run(options)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.output, result)
    print_table(result)


def summarise(values) -> dict:
    """Median and the bootstrap's 95 % interval of it (percentiles, 10,000 resamples)."""
    values = np.asarray(values, float)
    medians = np.median(np.random.default_rng(0).choice(values, (10_000, len(values))), axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "values": values.tolist()}


def describe_environment() -> dict:
    """Processor, threads, versions and commit; neither host name nor paths."""
    import keras
    import tensorflow as tf

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=30)
    except OSError:
        commit = None
    return {
        "time": now(),
        "cpu": fields.get("model name", platform.machine()),
        "cpu_flags": [f for f in fields.get("flags", "").split() if f.startswith(("avx", "amx", "fma"))],
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),  # 0 is TensorFlow's choice
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
        "variables": {k: v for k, v in os.environ.items() if k in ("OMP_NUM_THREADS", "TF_ENABLE_ONEDNN_OPTS")},
        "precision": choose_precision(),
        "versions": {
            "python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "commit": (commit.stdout.strip() or None) if commit else None,
    }  # fmt: skip
