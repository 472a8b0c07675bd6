"""One notebook executed by papermill, with a time limit, a way to stop it, and no kernel left behind."""

import contextlib
import logging
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

GRACE = 3.0  # seconds that an interrupted cell has for its ``finally`` blocks before the kernel is killed


@dataclass(frozen=True)
class Failure:
    """Why a notebook did not reach its end: the source notebook's cell (from 1; None if none ran), and one sentence."""

    cell: int | None
    message: str
    interrupted: bool = False


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set while the block runs, instead of what they do otherwise."""
    stop = threading.Event()
    handlers = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Any],
    *,
    cwd: Path,
    stop: threading.Event,
    timeout: float | None = None,
    title: str = "Executing",
) -> Failure | None:
    """Execute `notebook` into `output` with papermill's progress bar, working in `cwd`.

    Ends the kernel, and all processes of its group, when `stop` is set or after `timeout` seconds: first an interrupt,
    so that the cell's own clean-up runs and the notebook shows where it was, then, `GRACE` seconds later, a kill.
    papermill runs in a thread of its own, so that a signal never breaks into the middle of its own clean-up.
    """
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what went wrong is said once, by whoever calls this
    output.unlink(missing_ok=True)
    kernels: list[subprocess.Popen] = []
    problems: list[Exception] = []

    # Sockets in a folder of this user alone: a port of the network is chosen long before the kernel listens on it, so
    # that another process can take it meanwhile. In /tmp, since a socket's path has at most 107 characters (unix(7)).
    sockets = tempfile.TemporaryDirectory(prefix="kernel-", dir="/tmp", ignore_cleanup_errors=True)

    class Kernel(AsyncKernelManager):
        transport, ip = "ipc", f"{sockets.name}/socket"

        async def _async_launch_kernel(self, kernel_cmd: list[str], **kw: Any) -> None:
            await super()._async_launch_kernel(kernel_cmd, **kw)
            kernels.append(self.provisioner.process)

    def work() -> None:
        try:
            papermill.execute_notebook(
                _literal(notebook),
                _literal(output),
                dict(parameters),
                cwd=str(cwd),
                progress_bar={"desc": title},
                kernel_manager_class=Kernel,
                # jupyter_client interrupts idle kernels before it ends them, and ipykernel calls that an error
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        except Exception as error:  # noqa: BLE001 - handed to the calling thread, which says it
            problems.append(error)

    worker = threading.Thread(target=work, name=f"papermill {title}", daemon=True)
    began, asked = time.monotonic(), None
    with sockets:
        worker.start()
        while worker.is_alive():
            worker.join(0.1)
            late = timeout is not None and time.monotonic() - began > timeout
            if asked is None and kernels and (late or stop.is_set()):
                asked = time.monotonic()
                _signal(kernels, signal.SIGINT)
            elif asked is not None and time.monotonic() - asked > GRACE:
                _signal(kernels, signal.SIGKILL)
    if asked is None and not problems:
        return None
    _signal(kernels, signal.SIGKILL)  # whatever the kernel had started
    cell = _failing_cell(output, problems[0] if problems else None)
    if stop.is_set():
        return Failure(cell, "interrupted", interrupted=True)
    if asked is not None:
        return Failure(cell, f"took longer than its {timeout:g} seconds (timeouts in the profile) and was stopped")
    return Failure(cell, _sentence(problems[0], kernels))


def left_early(output: Path) -> int | None:
    """The source notebook's cell that called ``sys.exit()``, which papermill takes for success; None if none did."""
    for cell in nbformat.read(output, as_version=4).cells:
        if any(item.get("ename") == "SystemExit" for item in cell.get("outputs", [])):
            return _failing_cell(output, None)
    return None


def _failing_cell(output: Path, problem: Exception | None) -> int | None:
    if not output.is_file():
        return None
    cells = nbformat.read(output, as_version=4).cells
    cells = [cell for cell in cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])]
    if isinstance(problem, PapermillExecutionError):
        index = problem.cell_index
    else:  # papermill marks every cell "completed" when a kernel died, but only those that began have a start
        began = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
        if not began:
            return None
        index = began[-1]
    injected = [i for i, cell in enumerate(cells) if "injected-parameters" in cell.metadata.get("tags", [])]
    return index + 1 - sum(i <= index for i in injected)  # the injected cell counts as the one above it


def _sentence(problem: Exception, kernels: list[subprocess.Popen]) -> str:
    if isinstance(problem, PapermillExecutionError):
        text = f"{problem.ename}: {problem.evalue}" if problem.evalue else problem.ename
        lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
        return lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"
    status = kernels[0].poll() if kernels else None
    if status is None:
        return f"{type(problem).__name__}: {problem}"
    if status == -signal.SIGKILL:
        return "the kernel was killed (signal 9), which is often the system's answer to too little memory"
    return f"the kernel died ({f'signal {-status}' if status < 0 else f'exit status {status}'})"


def _literal(path: Path) -> str:
    return str(path).replace("{", "{{").replace("}", "}}")  # papermill fills {names} into paths


def _signal(kernels: list[subprocess.Popen], number: int) -> None:
    for kernel in kernels:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(kernel.pid, number)  # a kernel leads its own session, and so its group
