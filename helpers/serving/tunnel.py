"""A public URL for a local port, through the ngrok agent that pyngrok drives; the token is kept out of sight."""

import logging
import os
import shlex
import shutil
import signal
import tempfile
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

import yaml

from helpers.workspace import secret

TOKEN = "NGROK_AUTHTOKEN"
AGENT_PATH = "PYNGROK_NGROK_PATH"
_SET_UP = (
    "install the agent from https://ngrok.com/download and put it on PATH, or name it in PYNGROK_NGROK_PATH; "
    "everything but the public URL works without it"
)
# What the agent may see of the environment: where things are, and the way to the network.
_AGENT_ENVIRONMENT = {
    *("HOME", "PATH", "USER", "LANG", "TZ", "TMPDIR", "XDG_CONFIG_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
}
_logger = logging.getLogger(__name__)


class TunnelError(RuntimeError):
    """There is no public URL; the message says why and what to do. Nothing was left running."""


def tunnel_obstacle() -> str:
    """Why a tunnel cannot be opened here, in one sentence with the next step; empty when it can be tried."""
    try:
        if secret(TOKEN) is None:
            return (
                f"there is no public URL because {TOKEN} is not set; set it, or {TOKEN}_FILE to a file that holds it, "
                "to your token from https://dashboard.ngrok.com/get-started/your-authtoken"
            )
    except OSError as error:
        return f"there is no public URL because the ngrok token cannot be read: {error}"
    path = os.environ.get(AGENT_PATH)
    if path and not os.access(path, os.X_OK):
        return f"there is no public URL because {AGENT_PATH} names no executable file: {path}; {_SET_UP}"
    return ""


class Tunnel:
    """The local `port` under a public URL, while the ``with`` block runs or from `start` to `stop`.

    The token (``NGROK_AUTHTOKEN``, or the file in ``NGROK_AUTHTOKEN_FILE``) reaches the agent in an ``ngrok.yml`` of
    its own that only its owner can read: it is in no command line, in no child's environment and in no log. The agent
    is the one in ``PYNGROK_NGROK_PATH``, else the one on PATH, else the one pyngrok has downloaded or downloads now.

    Attributes:
        public_url: empty while the tunnel is not open.
    """

    def __init__(self, port: int, *, startup_timeout: float = 15.0):
        self.port = port
        self.public_url = ""
        self._startup_timeout = startup_timeout
        self._folder: tempfile.TemporaryDirectory | None = None
        self._config = None
        self._redaction: _Redaction | None = None

    def __enter__(self) -> "Tunnel":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """Whether the agent is alive; it reconnects by itself when only the network was lost."""
        if self._config is None:
            return False
        from pyngrok import process

        return process.is_process_running(self._config.ngrok_path)

    def start(self) -> str:
        """Open the tunnel and return its public URL; of an open tunnel, the URL it has.

        Raises:
            TunnelError: without a token or agent, or when ngrok refuses or stays silent past `startup_timeout` seconds.
        """
        from pyngrok.exception import PyngrokError

        if self.running:
            return self.public_url
        self.stop()
        if obstacle := tunnel_obstacle():
            raise TunnelError(obstacle)
        token = secret(TOKEN) or ""
        self._redaction = _Redaction(token)
        problem = ""
        try:
            self.public_url = self._connect(token)
        except (PyngrokError, OSError, ValueError, HTTPException) as error:
            problem = self._redaction.clean(str(error).replace("\\r", "").replace("\\n", " ")) or type(error).__name__
        finally:
            if not self.public_url:
                self.stop()
        if problem:
            # Raised outside the handler: ngrok's own error, which may quote the token, must not be its context.
            raise TunnelError(f"ngrok opened no tunnel to port {self.port}: {problem}")
        _logger.info("port %d is public at %s", self.port, self.public_url)
        return self.public_url

    def stop(self) -> None:
        """Close the tunnel and end its agent; nothing to do when it is not open."""
        if self._config is not None:
            from pyngrok import ngrok, process
            from pyngrok.exception import PyngrokError

            if self.public_url:
                with suppress(PyngrokError, OSError, ValueError, HTTPException):  # the agent is ended in any case
                    ngrok.disconnect(self.public_url, self._config)
            process.kill_process(self._config.ngrok_path)
        if self._folder is not None:
            self._folder.cleanup()
        if self._redaction is not None:
            self._redaction.remove()
        self.public_url, self._folder, self._config, self._redaction = "", None, None, None

    def _connect(self, token: str) -> str:
        from pyngrok import conf, ngrok

        agent = _find_agent()
        self._folder = tempfile.TemporaryDirectory(prefix="tunnel-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        # Version 2 of the agent's configuration and API: what every agent that pyngrok supports understands.
        _write(folder / "ngrok.yml", yaml.safe_dump({"version": "2", "authtoken": token}), 0o600)
        _write(folder / "ngrok", _launcher(agent, folder / "pid"), 0o700)
        self._config = conf.PyngrokConfig(
            ngrok_path=str(folder / "ngrok"),
            config_path=str(folder / "ngrok.yml"),
            config_version="2",
            startup_timeout=max(1, round(self._startup_timeout)),
        )
        self._config.auth_token = None  # pyngrok takes it from the environment and puts it on the command line
        self._config.api_key = None
        # pyngrok looks at its timeout only between the agent's lines, so a silent agent would hold it for ever.
        watchdog = threading.Timer(self._startup_timeout, _kill, [folder / "pid"])
        watchdog.daemon = True
        watchdog.start()
        try:
            # Without inspection the agent keeps no copies of requests, which may carry the admin token.
            tunnel = ngrok.connect(f"http://127.0.0.1:{self.port}", pyngrok_config=self._config, inspect=False)
        finally:
            watchdog.cancel()
        return tunnel.public_url


def _find_agent() -> str:
    """The path of the ngrok agent, downloaded by pyngrok if there is none."""
    from pyngrok import conf, installer
    from pyngrok.exception import PyngrokError

    if named := os.environ.get(AGENT_PATH):
        return os.path.abspath(named)
    for folder in os.get_exec_path():
        found = shutil.which("ngrok", path=folder)
        # pyngrok installs a script of this name, which is not the agent but would download it.
        if found and not _is_script(found):
            return found
    if not os.access(conf.DEFAULT_NGROK_PATH, os.X_OK):
        try:
            installer.install_ngrok(conf.DEFAULT_NGROK_PATH)
        except (PyngrokError, OSError) as error:
            raise TunnelError(f"the ngrok agent is not here and cannot be downloaded ({error}); {_SET_UP}") from error
    return conf.DEFAULT_NGROK_PATH


def _is_script(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _launcher(agent: str, pid_file: Path) -> str:
    """A shell script that becomes the agent, without the secrets that this process's environment holds.

    pyngrok offers no way to set the child's environment, and changing our own would be seen by every thread. The
    script's path, another for each tunnel, is also what pyngrok tells its processes apart by.
    """
    hidden = "".join(f" -u {shlex.quote(name)}" for name in sorted(os.environ) if name not in _AGENT_ENVIRONMENT)
    return f'#!/bin/sh\necho $$ > {shlex.quote(str(pid_file))}\nexec env{hidden} {shlex.quote(agent)} "$@"\n'


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _kill(pid_file: Path) -> None:
    with suppress(OSError, ValueError):
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


class _Redaction(logging.Filter):
    """Takes the token out of the agent's lines that pyngrok logs: ngrok quotes a token that it refuses."""

    def __init__(self, token: str):
        super().__init__()
        self._token = token
        self._agent_log = logging.getLogger("pyngrok.process.ngrok")
        self._agent_log.addFilter(self)

    def clean(self, text: str) -> str:
        return text.replace(self._token, "<token>")

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), ()
        return True

    def remove(self) -> None:
        self._agent_log.removeFilter(self)
