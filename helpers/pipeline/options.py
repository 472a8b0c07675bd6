"""The options of `run_pipeline.py`."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from helpers.pipeline.members import ENGINES


def parse(description: str, stages: Iterable[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options in `arguments`, the process's own if None; ends the process where they cannot be read."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--params", type=Path, metavar="FILE", help="profile (default: params/demo.yaml)")
    add("--only", metavar="STAGE,...", help=f"only these of {', '.join(stages)}")
    add("--from", dest="first", metavar="STAGE", help="this stage and those after it")
    add("-p", dest="overrides", action="append", default=[], metavar="STAGE.NAME=VALUE",
        help="one parameter, above the profile; STAGE may be all; may be repeated")  # fmt: skip
    add("--run-dir", type=Path, metavar="DIR", help="the folder of all runs (default: $SUITE_RUNS, or else runs)")
    add("--resume", metavar="RUN_ID",
        help="go on with that run and its parameters (or those of --params); skips what still holds")  # fmt: skip
    add("--sweep", action="append", default=[], metavar="STAGE.NAME=A,B,C",
        help="run once for each of these values; repeated, for each combination")  # fmt: skip
    add("--jobs", type=_count, metavar="N", help="how many of a sweep run at once (default: one for two processors)")
    add("--engine", choices=ENGINES, default="local",
        help="where a sweep runs: on this machine, or on the Ray cluster that RAY_ADDRESS names")  # fmt: skip
    add("--list", action="store_true", help="show the stages and their parameters")
    add("--dry-run", action="store_true", help="show what would run, with the final parameters")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)
