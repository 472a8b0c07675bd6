"""The options of ``python -m helpers.hosting``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from helpers.inference.source import MODEL_DIR
from helpers.workspace import add_bucket_option


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options in `argv`, the process's own if None; ends the process where they cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m helpers.hosting", description="Serves the production model.")
    add = parser.add_argument
    add_bucket_option(parser)
    add("--model-dir", default="", help=f"under the bucket; else {MODEL_DIR}, or the bundle in model/ while absent")
    add("--host", default="127.0.0.1", help="address to listen on; any but this machine's wants a token")
    add("--port", type=int, default=8000, help="0 takes a free one")
    text = "openvino-float serves an 8-bit version in floats, keras needs a GPU (default: auto)"
    add("--engine", default="auto", choices=["auto", "openvino", "openvino-float", "keras"], help=text)
    add("--log", type=Path, help="file of a prediction log, gone on with if there is one; else none")
    add("--log-images", action="store_true", help="keep the images in it, for replays; 3 kB each")
    add("--rate-limit", metavar="RATE", help="predictions of one client address, e.g. 60/minute; else all it likes")
    text = "follow the alias: look at it so often (1 without a number), and go back from what is worse"
    add("--watch", type=float, nargs="?", const=1.0, metavar="SECONDS", help=text)
    text = "share of the requests (0.1 without a number) that the candidate answers too, unseen; see /candidate"
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--shadow", type=float, nargs="?", const=0.1, metavar="SHARE", help=text)
    text = "share of the single predictions that the candidate answers instead, until it is worse; see /candidate"
    beside.add_argument("--canary", type=float, nargs="?", const=0.1, metavar="SHARE", help=text)
    arguments = parser.parse_args(argv)
    if arguments.log_images and not arguments.log:
        parser.error("--log-images keeps them in a log; name its file with --log")
    if arguments.watch is not None and not arguments.watch > 0:
        parser.error(f"--watch must be above 0 seconds, got {arguments.watch:g}")
    return arguments
