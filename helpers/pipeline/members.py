"""Runs the members of a sweep, some at once, each as a process of its own: on this machine, or on a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from helpers import cluster
from helpers.pipeline.journal import ENVIRONMENT
from helpers.pipeline.sweep import OUTPUT
from helpers.workspace import ROOT

ENGINES = ("local", "ray")
CPUS = 2  # of a member, at most: more at once on fewer share them, and take as long
POLL_S = 0.1

Run = Callable[[Path, threading.Event], int]


@contextlib.contextmanager
def engine(name: str) -> Iterator[tuple[Run, int]]:
    """How to run one member, and how many at once the machine or the cluster is made for.

    The first takes the folder of a run that is planned there, and an event that asks for its end; it gives the exit
    status of `run_pipeline.py`, or the negative number of the signal that ended it.

    Raises:
        ClusterError: if there is no Ray.
    """
    if name == "local":
        yield run_here, max(1, (os.cpu_count() or 1) // CPUS)
        return
    with cluster.connected() as ray:
        resources = ray.cluster_resources()
        cpus, gpus = max(1, min(CPUS, int(resources["CPU"]))), min(1, int(resources.get("GPU", 0)))
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_there)
        yield partial(_run_on_ray, ray, task), max(1, int(resources["GPU"] if gpus else resources["CPU"] // cpus))


def run_all(
    directories: Sequence[Path],
    run: Run,
    jobs: int,
    stop: threading.Event,
    *,
    started: Callable[[Path], None],
    ended: Callable[[Path, int], None],
) -> None:
    """Runs all members, at most `jobs` at once; after `stop` none starts, and those under way end.

    `started` and `ended` are told of each, one call at a time.
    """
    telling = threading.Lock()

    def work(directory: Path) -> None:
        if stop.is_set():
            return
        with telling:
            started(directory)
        status = run(directory, stop)
        with telling:
            ended(directory, status)

    with ThreadPoolExecutor(jobs, "member") as pool:
        try:
            for future in [pool.submit(work, directory) for directory in directories]:
                future.result()
        except BaseException:
            stop.set()  # what went wrong here must not wait for hours of other members
            raise


def run_here(directory: Path, stop: threading.Event, environment: dict[str, str] | None = None) -> int:
    """Runs the member in `directory` to its end; what it prints goes to a file there."""
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "--resume", directory.name]
    with open(directory / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            [*command, "--run-dir", str(directory.parent)],
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while process.poll() is None and not stop.wait(POLL_S):
            pass
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its kernel, closes its record, and says 130
        status = process.wait()
    return 130 if stop.is_set() and status == -signal.SIGTERM else status


def _run_there(directory: str, environment: dict[str, str]) -> int:
    return run_here(Path(directory), threading.Event(), environment)  # a cancelled task is one that is interrupted


def _run_on_ray(ray, task, directory: Path, stop: threading.Event) -> int:
    # By name, and these alone: what a task is given is no place for secrets.
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    member, cancelled = task.remote(str(directory), environment), False
    while not ray.wait([member], timeout=POLL_S)[0]:
        if stop.is_set() and not cancelled:
            ray.cancel(member)
            cancelled = True
    try:
        return ray.get(member)
    except ray.exceptions.TaskCancelledError:
        return 130
    except ray.exceptions.RayError as error:
        with open(directory / OUTPUT, "a", encoding="utf-8") as output:
            output.write(f"{error}\n")
        return 1
