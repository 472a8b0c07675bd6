"""Ray, which nobody needs and which is found here alone: a cluster of several machines, or one of this machine.

``RAY_ADDRESS`` names a cluster (``ray start --head`` prints it); without it one is started here and ended with the
block. The machines of a cluster must see this repository, and what a command reads and writes, under the same paths.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from helpers.workspace import ROOT

OBJECT_STORE_BYTES = 200 * 2**20  # of a cluster started here: what passes between its processes is small


class ClusterError(RuntimeError):
    """There is no cluster to work on, in one sentence with the next step."""


@contextmanager
def connected() -> Iterator[ModuleType]:
    """The module ``ray``, connected while the block runs; a connection that was there before stays.

    Raises:
        ClusterError: if Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it tells its makers about each start otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without a GPU keeps the variables it has
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            "--engine ray needs Ray; install it with: pip install --require-hashes -r requirements/ray.lock"
        ) from error
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS", "")
    own = {} if address else {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="WARNING",
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {reason}; see RAY_ADDRESS") from error
    try:
        yield ray
    finally:
        ray.shutdown()
