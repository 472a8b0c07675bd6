"""Where things are: the repository, the model store, the folder of a run, secrets by name, and where text goes."""

import argparse
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def bucket_url(bucket: str = "") -> str:
    """The object store to use: `bucket`, else the environment's ``SUITE_BUCKET``, else the folder ``store/`` here."""
    return bucket or os.environ.get("SUITE_BUCKET") or (ROOT / "store").as_uri()


def add_bucket_option(parser: argparse.ArgumentParser, what: str = "the store") -> None:
    """The option ``--bucket`` of a command, for `bucket_url`."""
    parser.add_argument("--bucket", default="", help=f"url of {what}; else $SUITE_BUCKET, else the folder store/ here")


def run_directory(run_dir: str = "") -> Path:
    """The folder that a notebook writes to, made if need be.

    `run_dir` is what the pipeline passes. Empty, as in an interactive session, it is ``runs/interactive`` here, or
    ``interactive`` under the environment's ``SUITE_RUNS``.
    """
    runs = Path(os.environ.get("SUITE_RUNS") or ROOT / "runs")
    directory = Path(run_dir).resolve() if run_dir else runs / "interactive"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def secret(name: str) -> str | None:
    """The secret called `name`: from the environment, or from the file that ``<name>_FILE`` points to; None if unset.

    Raises:
        PermissionError: if others than its owner may read that file.
    """
    value = os.environ.get(name, "").strip()
    file = os.environ.get(f"{name}_FILE", "").strip()
    if value or not file:
        return value or None
    return read_private(f"{name}_FILE", file).strip() or None


def read_private(name: str, file: str) -> str:
    """The text of `file`, which the variable `name` names and its owner alone may read; else PermissionError."""
    mode = stat.S_IMODE(os.stat(file).st_mode)
    if mode & 0o077:
        raise PermissionError(f"{name}: {file} can be read by others (mode {mode:04o}); run: chmod 600 {file}")
    return Path(file).read_text(encoding="utf-8")


def show(lines: Iterable[str]) -> None:
    """Prints `lines` as long as somebody reads them: a pager or `head` may have seen enough before the last."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the end of Python writes what is left


def adopt_colab_secrets(*names: str) -> None:
    """Takes secrets that were stored in Colab, and that this notebook may read, into the environment; else nothing."""
    if "google.colab" not in sys.modules:
        return
    from google.colab import userdata

    for name in names:
        if os.environ.get(name):
            continue
        try:
            os.environ[name] = userdata.get(name)
        except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
            continue
