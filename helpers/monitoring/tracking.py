"""Weights & Biases runs that never stand in the way: offline when the server cannot be had, absent when W&B fails."""

import contextlib
import logging
import netrc
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from helpers.delivery import events
from helpers.workspace import secret

if TYPE_CHECKING:
    from wandb import Run

    from helpers.delivery.bundle import Bundle

PROJECT = "mlops-midterm"
MODES = ("online", "offline", "disabled")

_PROBE_TIMEOUT_S = 1.0
_INIT_TIMEOUT_S = 10.0
_FINISH_TIMEOUT_S = 15.0
_logger = logging.getLogger(__name__)
_observers: dict[str, Callable[[events.Event], None]] = {}  # of the open runs, by their ids


class NoApiKey(LookupError):
    """No key for the W&B server, or one that others can read."""


def start_run(
    job_type: str, *, group: str = "", config: dict | None = None, mode: str = "offline", directory: str | Path
) -> "Run | None":
    """Start a run of project ``mlops-midterm``; None when `mode` is "disabled" or W&B cannot even record offline.

    `group` is the pipeline's run id, `job_type` one of eda, train, deploy, monitor. Everything W&B writes lies under
    ``<directory>/wandb``. "online" needs an API key (``WANDB_API_KEY``, ``WANDB_API_KEY_FILE`` or what ``wandb login``
    stored) and a server that answers; without either the run is recorded offline within seconds, with a warning that
    says why and how to send it later. The source code, git state, command line and package list are never recorded.

    Raises:
        ValueError: if `mode` is unknown. Nothing else: telemetry does not fail the work.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "disabled":
        return None
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
        if mode == "online":
            try:
                return connect_run(job_type, group=group, config=config, directory=directory)
            except (NoApiKey, ConnectionError) as error:
                files = Path(directory) / "wandb" / "offline-run-*"
                _logger.warning("%s; this run is recorded offline, send it later with: wandb sync %s", error, files)
        return _open(job_type, group, config, "offline", directory, None)
    except Exception:
        _logger.exception("W&B cannot record this run; the work goes on without it")
        return None


def connect_run(
    job_type: str, *, group: str = "", config: dict | None = None, directory: str | Path, run_id: str | None = None
) -> "Run":
    """An online run, or an error; arguments as `start_run`.

    Args:
        run_id: of a run that is gone on with, if the server has it; its `starting_step` is the first that it lacks.

    Raises:
        NoApiKey: if there is none; asking again will not help.
        ConnectionError: if the server gives no answer within a second, or refuses the run.
    """
    key = _find_key_and_server()
    try:
        return _open(job_type, group, config, "online", directory, key, run_id)
    except Exception as error:
        _logger.debug("wandb.init failed", exc_info=True)
        raise ConnectionError(f"W&B refused the run ({_first_line(error)})") from error


def log(run: "Run | None", values: dict[str, object]) -> None:
    """Log `values` to `run`, if there is one; what W&B raises is logged, never raised."""
    if run is None:
        return
    try:
        run.log(values)
    except Exception:
        _logger.exception("W&B did not take %s of run %s", ", ".join(values), run.id)


def log_model(run: "Run | None", bundle: "Bundle", aliases: Sequence[str], **metadata: object) -> None:
    """Log the manifest and the card of a published `bundle` as an artifact of type model, named as the model.

    The weights stay where they were published: the manifest names them by digest.

    Args:
        aliases: those that shall point to it.
        metadata: kept with the artifact; the place of publication, for one.
    """
    if run is None:
        return
    try:
        import wandb

        artifact = wandb.Artifact(bundle.manifest.name, "model", metadata={"version": bundle.version, **metadata})
        for name in ("manifest.json", "model_card.md"):
            path = str((bundle.path / name).resolve())
            artifact.add_file(path, name, policy="immutable", skip_cache=True)  # no copy in the user's home
        run.log_artifact(artifact, aliases=list(aliases))
    except Exception:
        _logger.exception("W&B did not take version %s as an artifact of run %s", bundle.version, run.id)


def finish_run(run: "Run | None", timeout: float = _FINISH_TIMEOUT_S) -> bool:
    """Finish `run`, waiting at most `timeout` seconds; False when W&B needed longer or failed (logged, never raised).

    What was not sent by then stays on disk, for ``wandb sync``. None, the run that was never started, is finished.
    """
    if run is None:
        return True
    if observer := _observers.pop(run.id, None):
        events.observers.remove(observer)
    try:
        _within(timeout, run.finish)
    except TimeoutError:
        _logger.warning(
            "W&B did not finish run %s within %g s; send what is missing later with: wandb sync %s",
            run.id,
            timeout,
            Path(run.dir).parent,
        )
    except Exception:
        _logger.exception("W&B could not finish run %s", run.id)
    else:
        return True
    return False


def _open(job_type, group, config, mode, directory, key, run_id=None) -> "Run":
    import wandb

    wishes = {
        "silent": True,
        "console": "off",  # a notebook's output may hold what is nobody else's business
        "init_timeout": _INIT_TIMEOUT_S,
        "finish_timeout": _FINISH_TIMEOUT_S,  # also bounds the wait when the interpreter exits with the run open
        "reinit": "create_new",  # independent of any other run in this kernel
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
    }
    # The x_ settings come and go with W&B's versions, and an unknown one is an error.
    known = {name: value for name, value in wishes.items() if name in wandb.Settings.model_fields}
    if key:
        known["api_key"] = key  # handed over here, W&B neither asks for it nor writes it to ~/.netrc
    run = wandb.init(
        project=PROJECT,
        job_type=job_type,
        group=group or None,
        config=config,
        mode=mode,
        dir=str(directory),
        id=run_id,
        resume="allow" if run_id else None,
        settings=wandb.Settings(**known),
    )
    _observers[run.id] = partial(_log_event, run)  # what happens to models while it is open, too
    events.observers.append(_observers[run.id])
    return run


def _log_event(run, event) -> None:
    log(run, {f"Event/{event.kind}": event.version})


def _find_key_and_server() -> str:
    """The API key, where the server answers; NoApiKey or ConnectionError elsewhere."""
    import wandb

    server = wandb.setup().settings.base_url
    try:
        key = secret("WANDB_API_KEY") or _stored_key(server)
    except OSError as error:
        raise NoApiKey(f"W&B has no API key ({_first_line(error)})") from error
    if not key:
        raise NoApiKey("W&B has no API key (set WANDB_API_KEY or WANDB_API_KEY_FILE, or run: wandb login)")
    try:
        # Asked first, because wandb.init takes up to 100 s to give up and then holds back the interpreter's exit.
        _within(_PROBE_TIMEOUT_S, lambda: _probe(server))
    except (OSError, ValueError, HTTPException) as error:
        raise ConnectionError(f"W&B cannot be reached at {server} ({_first_line(error)})") from error
    return key


def _probe(server: str) -> None:
    """Return if `server` gives any answer at all; OSError, ValueError or HTTPException otherwise."""
    request = urllib.request.Request(server, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()
    except urllib.error.URLError as error:
        # W&B's own client brings its own certificates, so that one missing here proves nothing.
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _within(timeout: float, call: Callable[[], object]) -> None:
    """Run `call` to its end or its exception, or raise TimeoutError after `timeout` seconds and leave it running."""
    outcome: Future = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 - handed to the waiting thread as it is
            outcome.set_exception(error)

    threading.Thread(target=work, name="wandb-call", daemon=True).start()
    outcome.result(timeout)


def _stored_key(server: str) -> str | None:
    """The key that ``wandb login`` stored for `server` in netrc."""
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(path).authenticators(urlsplit(server).hostname or "")
        return entry[2] if entry else None
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
