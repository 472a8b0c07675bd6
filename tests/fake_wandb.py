"""A W&B server, as far as runs need one: it keeps each run's history lines, gives them back to a run that resumes, and
can go down and come back at the same address."""

import gzip
import json
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeWandb:
    """A server on loopback while the block runs; `down` and `up` in between.

    Attributes:
        lines: of each run by its id: the history as sent, by line number.
        config: of each run by its id, as sent last.
    """

    def __init__(self):
        self.lines, self.config, self._server, self.port = {}, {}, None, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def history(self, run_id):
        """The rows of a run in order, each a dict."""
        return [json.loads(line) for _, line in sorted(self.lines.get(run_id, {}).items())]

    def up(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                known = self.path == "/graphql" or self.path.endswith("/file_stream")  # not its telemetry
                self._reply(fake._answer(self.path, json.loads(body)) if known else {})

            def do_HEAD(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self._reply({})

            do_GET = do_PUT = do_HEAD

            def _reply(self, answer):
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def handle(self):
                with suppress(OSError):  # cut off
                    super().handle()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads, allow_reuse_address = True, True

        self._server = Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self):
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self):
        self.up()
        return self

    def __exit__(self, *_):
        self.down()

    def _answer(self, path, request):
        if stream := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            kept = self.lines.setdefault(stream[1], {})
            history = request.get("files", {}).get("wandb-history.jsonl", {})
            for number, line in enumerate(history.get("content", []), history.get("offset", 0)):
                kept[number] = line
            return {"exitcode": None, "limits": {}}
        query, variables = request.get("query", ""), request.get("variables", {})
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        if "RunResumeStatus" in query:
            return {"data": {"model": {**project, "bucket": self._resume(variables["name"])}}}
        if "UpsertBucket" in query:
            run = variables["name"]
            if variables.get("config"):
                self.config[run] = json.loads(variables["config"])
            bucket = {"id": run, "name": run, "displayName": run, "project": project, "historyLineCount": 0}
            answer = {"bucket": bucket, "inserted": run not in self.lines}
            self.lines.setdefault(run, {})
            return {"data": {"upsertBucket": answer}}
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}}
        return {"data": {}}

    def _resume(self, run):
        if run not in self.lines:
            return None
        history = self.history(run)
        return {
            "id": run,
            "name": run,
            "displayName": run,
            "summaryMetrics": "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyLineCount": len(history),
            "historyTail": json.dumps([json.dumps(row) for row in history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(self.config.get(run, {})),
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),  # without it the run counts as one that never began
        }
