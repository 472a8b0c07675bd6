"""Scores images in batch: ``python -m helpers.score FOLDER_OR_BUCKET_URL --out FILE.parquet``.

The file gets a row for each image: path, class, probability, the most probable classes, version of the model, and for
what is no image the reason. It appears when all is done; a run that ends before leaves none.
"""

import argparse
import csv
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetWriter
from tqdm import tqdm

from helpers.cluster import ClusterError, connected
from helpers.delivery.storage import StorageError
from helpers.inference.bulk import BATCH, SCHEMA, score
from helpers.inference.collection import Item, open_collection
from helpers.inference.source import MODEL_DIR, ModelSource
from helpers.registry import RegistryError
from helpers.workspace import ROOT, add_bucket_option

FORMATS = (".parquet", ".csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the file and says how fast that was.

    0, 1 if there was no image among them, 2 if it could not be done, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    try:
        scored, failed, seconds, version = _run(arguments)
    except (StorageError, RegistryError, ClusterError, OSError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    left = f"; {failed:,} could not be read, their rows say why" if failed else ""
    print(f"{scored:,} images in {seconds:.1f} s, {scored / seconds:,.0f} a second, by version {version}{left}")
    print(f"look at {arguments.out}")
    return 0 if scored else 1


def _run(arguments):
    if arguments.out.suffix not in FORMATS:
        raise ValueError(f"--out must end with {' or '.join(FORMATS)}, got {str(arguments.out)!r}")
    if arguments.out.is_dir():
        raise ValueError(f"--out must be a file, got the folder {str(arguments.out)!r}; name a file in it")
    collection = open_collection(arguments.source)
    items = collection.items()
    model_dir = arguments.model or MODEL_DIR
    fallback = None if arguments.model else ROOT / "model"
    model = ModelSource(arguments.bucket, model_dir=model_dir, fallback=fallback).load(model_dir)
    if not 1 <= arguments.top_k <= len(model.labels.fine):
        raise ValueError(f"--top-k must be 1 to {len(model.labels.fine)}, got {arguments.top_k}")
    name = model.bundle.manifest.name
    exact = {"bucket": arguments.bucket, "model_dir": f"models/{name}/versions/{model.version}", "fallback": fallback}
    scored, started = 0, time.perf_counter()
    with _writer(arguments.out) as write, tqdm(total=len(items), unit=" images", leave=False) as bar:
        if arguments.engine == "ray":
            batches = score_on_ray(arguments.source, items, exact, arguments.top_k)
        else:
            batches = score(collection, items, model, arguments.top_k)
        with closing(batches):
            for batch in batches:
                write(batch)
                scored += batch.column("error").null_count
                bar.update(len(batch))
    return scored, len(items) - scored, time.perf_counter() - started, model.version


def score_on_ray(source: str, items: Sequence[Item], origin: dict, top_k: int) -> Iterator[pa.Table]:
    """As `inference.bulk.score`, by Ray Data: an actor with a model of its own for each processor but one.

    Args:
        origin: arguments of `ModelSource`, whose model_dir names a version.

    Raises:
        ClusterError: if there is no Ray, or what an actor raised.
    """
    with connected() as ray:
        import ray.data as data
        from ray.exceptions import RayError

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and hints, among the progress
        context = data.DataContext.get_current()
        context.enable_progress_bars, context.execution_options.preserve_order = False, True
        actors = max(1, int(ray.cluster_resources()["CPU"]) - 1)
        rows = data.from_items([{"key": item.key, "size": item.size} for item in items])
        scored = rows.map_batches(
            _Actor,
            fn_constructor_args=(source, origin, top_k),
            batch_size=BATCH,
            batch_format="pyarrow",
            num_cpus=1,
            compute=data.ActorPoolStrategy(size=actors),
        )
        try:
            yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")
        except RayError as error:
            raise ClusterError(f"an actor failed: {str(error).strip().splitlines()[-1]}") from error


class _Actor:
    def __init__(self, source: str, origin: dict, top_k: int) -> None:
        self.collection, self.top_k = open_collection(source), top_k
        self.model = ModelSource(**origin, threads=1).load(origin["model_dir"])
        if not origin["model_dir"].endswith(self.model.version):
            raise ValueError(f"this machine has version {self.model.version} instead of {origin['model_dir']}")

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = [Item(row["key"], row["size"]) for row in batch.to_pylist()]
        return pa.Table.from_batches(score(self.collection, items, self.model, self.top_k))


@contextmanager
def _writer(path):
    """What writes a batch; the file gets its name when all are written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        if path.suffix == ".parquet":
            with ParquetWriter(part, SCHEMA, compression="zstd") as file:
                yield file.write
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                rows = csv.DictWriter(file, SCHEMA.names)
                rows.writeheader()
                yield lambda batch: rows.writerows(_flat(row) for row in batch.to_pylist())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _flat(row):
    return row | {"top": json.dumps(dict(row["top"])) if row["top"] else None}


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.score", description="Scores a folder of images in batch.")
    add = parser.add_argument
    add("source", help="folder, gs://BUCKET/PREFIX or file:///FOLDER of PNG and JPEG files, or an array FILE.npy")
    add("--out", type=Path, required=True, help="FILE.parquet or FILE.csv")
    add("--model", default="", help=f"under the bucket; else {MODEL_DIR}, or the bundle in model/ while absent")
    add_bucket_option(parser, "the store of the model")
    add("--top-k", type=int, default=5, help="how many classes, the most probable first (default: 5)")
    add("--engine", choices=["local", "ray"], default="local", help="where: here, or on the cluster of RAY_ADDRESS")
    return parser


if __name__ == "__main__":
    sys.exit(main())
