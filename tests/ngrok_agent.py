"""A stand-in for the ngrok agent: the same command line, log lines and local API, and a real proxy, on loopback only.

It takes what pyngrok passes (``start --none --log stdout --config FILE``) and serves one "public" HTTP port per tunnel.
``--stand-in`` picks a behaviour: work, refuse (the token), silent (no line at all), or no-tunnel (the API refuses one).
"""

import argparse
import http.client
import json
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


def say(level: str, message: str, **fields: str) -> None:
    """One logfmt line as the agent writes them."""
    rest = "".join(f" {name}={json.dumps(value)}" for name, value in fields.items())
    print(f't=2026-01-01T00:00:00+0000 lvl={level} msg="{message}"{rest}', flush=True)


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, content: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class PublicSide:
    """A loopback port whose requests are passed on to `upstream`, as ngrok's edge does."""

    def __init__(self, name: str, upstream: str):
        self.name, self.upstream = name, upstream
        target = urlsplit(upstream)

        class Proxy(Answering):
            def forward(self) -> None:
                say("info", "join connections", obj="join", id="0", l="127.0.0.1", r=self.client_address[0])
                body = self.body()
                headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
                headers |= {"X-Forwarded-For": self.client_address[0], "X-Forwarded-Proto": "https"}
                connection = http.client.HTTPConnection(target.hostname, target.port, timeout=10)
                try:
                    connection.request(self.command, self.path, body or None, headers)
                    reply = connection.getresponse()
                    kept = [(k, v) for k, v in reply.getheaders() if k.lower() not in HOP_BY_HOP]
                    self.answer(reply.status, reply.read(), kept)
                except OSError:
                    self.answer(502, b"ERR_NGROK_8012", [("Ngrok-Error-Code", "ERR_NGROK_8012")])
                finally:
                    connection.close()

            do_GET = do_POST = do_PUT = do_DELETE = forward

        self.server = serve(Proxy)
        self.public_url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def described(self) -> dict:
        return {
            "name": self.name,
            "ID": self.name,
            "uri": f"/api/tunnels/{self.name}",
            "public_url": self.public_url,
            "proto": "http",
            "config": {"addr": self.upstream, "inspect": False},
            "metrics": {},
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def local_api(behaviour: str) -> type[BaseHTTPRequestHandler]:
    tunnels: dict[str, PublicSide] = {}

    class Api(Answering):
        def reply(self, status: int, value: object = None) -> None:
            content = b"" if value is None else json.dumps(value).encode()
            self.answer(status, content, [("Content-Type", "application/json")])

        def do_GET(self) -> None:
            if self.path == "/api/tunnels":
                self.reply(200, {"tunnels": [tunnel.described() for tunnel in tunnels.values()], "uri": self.path})
            elif self.path == "/api/status":
                self.reply(200, {"status": "online", "agent_version": "3.0.0-stand-in"})
            else:
                self.reply(404, {"msg": "not found"})

        def do_POST(self) -> None:
            asked = json.loads(self.body())
            if self.path != "/api/tunnels":
                self.reply(404, {"msg": "not found"})
            elif behaviour == "no-tunnel":
                self.reply(
                    502, {"error_code": 103, "msg": "failed to start tunnel", "details": {"err": "ERR_NGROK_324"}}
                )
            else:
                tunnel = tunnels[asked["name"]] = PublicSide(asked["name"], asked["addr"])
                say(
                    "info", "started tunnel", obj="tunnels", name=tunnel.name, addr=asked["addr"], url=tunnel.public_url
                )
                self.reply(201, tunnel.described())

        def do_DELETE(self) -> None:
            tunnel = tunnels.pop(unquote(self.path.removeprefix("/api/tunnels/")), None)
            if tunnel:
                tunnel.close()
            self.answer(204 if tunnel else 404, b"", [])

    return Api


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stand-in", default="work", choices=["work", "refuse", "silent", "no-tunnel"])
    parser.add_argument("--report", help="file that gets this process's id, arguments and environment")
    parser.add_argument("command", choices=["start"])
    parser.add_argument("--none", action="store_true")
    parser.add_argument("--log", choices=["stdout"], required=True)
    parser.add_argument("--config", required=True)
    arguments = parser.parse_args()

    config = Path(arguments.config).read_text(encoding="utf-8")
    token = re.search(r"^authtoken: *['\"]?([^'\"\n]+)", config, re.MULTILINE)
    if arguments.report:
        mine = {
            "pid": os.getpid(),
            "argv": Path("/proc/self/cmdline").read_text().split("\0") if os.path.exists("/proc/self") else [],
            "environ": dict(os.environ),
            "config": arguments.config,
            "config mode": f"{os.stat(arguments.config).st_mode & 0o777:o}",
            "token": token and token[1],
        }
        Path(arguments.report).write_text(json.dumps(mine), encoding="utf-8")
    if arguments.stand_in == "silent":
        time.sleep(60)
        return 1

    say("info", "no configuration paths supplied")
    server = serve(local_api(arguments.stand_in))
    say("info", "starting web service", obj="web", addr=f"127.0.0.1:{server.server_address[1]}", allow_hosts="[]")
    if arguments.stand_in == "refuse" or not token:
        quoted = f"authentication failed: The authtoken is invalid.\\nYour authtoken: {token and token[1]}"
        line = f'err="{quoted}\\r\\n\\r\\nERR_NGROK_107\\r\\n"'
        print(f't=2026-01-01T00:00:00+0000 lvl=eror msg="failed to auth" obj=tunnels.session {line}', flush=True)
        return 1
    say("info", "client session established", obj="csess", id="0")
    say("info", "tunnel session started", obj="tunnels.session")
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
