"""A stand-in for Google Cloud Storage: its JSON API over a real socket, strict where the public emulators are not.

``ifGenerationMatch`` and its kin are enforced on every call, digests are compared, generations only grow, and faults
come on demand. Sources: https://cloud.google.com/storage/docs/json_api/v1/objects and /docs/resumable-uploads.
"""

import base64
import itertools
import json
import re
import socket
import threading
import time
import warnings
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

with warnings.catch_warnings():
    # TensorFlow brings grpc without grpcio-status; this first import says so once, though the JSON API needs neither.
    warnings.filterwarnings("ignore", "Please install grpcio-status", ImportWarning)
    import google.api_core.exceptions  # noqa: F401

Reply = namedtuple("Reply", "status body headers", defaults=(b"", {}))
ROUTE = re.compile(
    r"/(?P<area>(?:upload/|download/)?)storage/v1/b/(?P<bucket>[^/]+)(?:/o(?:/(?P<key>[^/]+)(?P<rest>/.*)?)?)?"
)
PART = 256 * 2**10
COPY = re.compile(r"/(?P<verb>copyTo|rewriteTo)/b/(?P<bucket>[^/]+)/o/(?P<key>[^/]+)")


@dataclass(frozen=True)
class Stored:
    data: bytes
    generation: int
    metageneration: int
    properties: dict


@dataclass
class Fault:
    """How a call fails: "unavailable" (503), "drop" (done, no reply), "cut" (body stops), "shorten" (and says so).

    "break", of a part of a resumable upload alone: the connection is lost when half of it has arrived. "stall": nothing
    is done and nothing is said until the client gives up. The call "any" is each.
    """

    kind: str
    call: str
    times: int
    after: int  # calls that do not fail before


@dataclass
class FakeGCS:
    """``with FakeGCS() as server: os.environ["STORAGE_EMULATOR_HOST"] = server.url``

    `calls` counts what clients asked for, by name: upload, start, download, get, list, delete, patch, copy. `parts`
    are the first bytes and sizes of what resumable uploads sent.
    """

    buckets: dict = field(default_factory=lambda: {"bucket": {}})
    faults: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    parts: list = field(default_factory=list)

    def __enter__(self):
        self.lock, self.uploads, self.ids, self.last = threading.RLock(), {}, itertools.count(1), 0
        self._listen(0)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self._hang_up()

    def _listen(self, port):
        self.server = _Server(("127.0.0.1", port), _Handler)
        self.server.fake = self
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def _hang_up(self):
        self.server.shutdown()
        self.thread.join()
        self.server.hang_up()
        self.server.server_close()

    @contextmanager
    def away(self, kind):
        """While the block runs every call fails in the way of `kind`, "refused" being that nobody listens."""
        if kind == "refused":
            self._hang_up()
        else:
            self.inject(kind, "any", times=10**9)
        try:
            yield
        finally:
            if kind == "refused":
                self._listen(self.server.server_port)
            self.faults.clear()

    def inject(self, kind, call, times=1, after=0):
        """`times` calls named `call` fail in the way of `kind`, once `after` of them have not."""
        self.faults.append(Fault(kind, call, times, after))

    def take_fault(self, call):
        with self.lock:
            for fault in self.faults:
                if fault.call in (call, "any") and fault.times > 0:
                    if fault.after:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault.kind
        return None

    def put(self, bucket, key, data, properties, query, *, metageneration=1):
        """Stores an object as one step with its preconditions."""
        digests = {"crc32c": crc32c(data), "md5Hash": base64.b64encode(md5(data).digest()).decode()}
        for name, digest in digests.items():
            if properties.get(name, digest) != digest:
                return problem(400, f"Provided {name} {properties[name]!r} doesn't match calculated {digest!r}.")
        with self.lock:
            if refusal := check(self.buckets[bucket].get(key), query):
                return refusal
            self.last = max(time.time_ns() // 1000, self.last + 1)
            kept = {"contentType": properties.get("contentType"), "metadata": properties.get("metadata", {})} | digests
            stored = self.buckets[bucket][key] = Stored(data, self.last, metageneration, kept)
        return as_json(resource(bucket, key, stored))


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close() waits for them, and no socket is left open
    request_queue_size = 64

    def __init__(self, *arguments):
        self.open = set()
        super().__init__(*arguments)

    def process_request(self, request, address):
        self.open.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self):
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by the client already
                continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, *_):
        pass

    def handle_any(self):
        fake = self.server.fake
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call, answer = route(fake, self.command, url.path, query, self.headers, body)
        fault = fake.take_fault(call)
        if fault == "break":
            _, answer = route(fake, self.command, url.path, query, self.headers, body[: len(body) // 2])
        with fake.lock:
            fake.calls.append(call)
        if fault == "stall":
            self.rfile.read(1)  # ends when the client closes
            self.close_connection = True
            return
        reply = problem(503, "Try again later.") if fault == "unavailable" else answer()
        if fault in ("drop", "break"):
            self.close_connection = True
            return
        self.send(reply, fault)

    def send(self, reply, fault):
        body = reply.body if fault not in ("cut", "shorten") else reply.body[: len(reply.body) // 2]
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body if fault == "cut" else body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.close_connection or fault == "cut"

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any


def route(fake, method, path, query, headers, body):
    """The name of the call, and what carries it out."""
    match = ROUTE.fullmatch(path)
    if not match:
        return "unknown", lambda: problem(404, f"no such path: {path}")
    area, bucket, key, rest = match["area"], unquote(match["bucket"]), unquote(match["key"] or ""), match["rest"]
    if bucket not in fake.buckets:
        return "unknown", lambda: problem(404, "The specified bucket does not exist.")
    if area == "upload/" and "upload_id" in query:
        return "upload", lambda: continue_upload(fake, query["upload_id"], headers, body)
    if area == "upload/" and query.get("uploadType") == "resumable":
        return "start", lambda: start_upload(fake, bucket, query, headers, body)
    if area == "upload/":
        properties, data = split_multipart(headers, body)
        return "upload", lambda: fake.put(bucket, properties["name"], data, properties, query)
    if not key:
        return "list", lambda: list_objects(fake, bucket, query)
    if rest and (target := COPY.fullmatch(rest)):
        return "copy", lambda: copy(fake, bucket, key, target, query)
    if query.get("alt") == "media":
        return "download", lambda: download(fake, bucket, key, query, headers)
    operations = {"GET": ("get", get), "DELETE": ("delete", delete), "PATCH": ("patch", patch)}
    name, operation = operations[method]
    return name, lambda: operation(fake, bucket, key, query, body)


def check(stored, query, prefix="if"):
    """The refusal that the preconditions ask for, or None. https://cloud.google.com/storage/docs/request-preconditions"""
    state = {"Generation": stored.generation if stored else 0, "Metageneration": stored.metageneration if stored else 0}
    for name, value in state.items():
        if query.get(f"{prefix}{name}Match", str(value)) != str(value):
            return problem(412, "At least one of the pre-conditions you specified did not hold.")
        if query.get(f"{prefix}{name}NotMatch") == str(value):
            return problem(304, "")
    return None


def find(fake, bucket, key, query):
    """The object that a call names, checked; or the refusal."""
    stored = fake.buckets[bucket].get(key)
    if stored is None or query.get("generation", str(stored.generation)) != str(stored.generation):
        return None, problem(404, f"No such object: {bucket}/{key}")
    return stored, check(stored, query)


def get(fake, bucket, key, query, body):
    with fake.lock:
        stored, refusal = find(fake, bucket, key, query)
    return refusal or as_json(resource(bucket, key, stored))


def delete(fake, bucket, key, query, body):
    with fake.lock:
        _, refusal = find(fake, bucket, key, query)
        if not refusal:
            del fake.buckets[bucket][key]
    return refusal or Reply(204)


def patch(fake, bucket, key, query, body):
    with fake.lock:
        stored, refusal = find(fake, bucket, key, query)
        if refusal:
            return refusal
        properties = stored.properties | json.loads(body)
        stored = replace(stored, metageneration=stored.metageneration + 1, properties=properties)
        fake.buckets[bucket][key] = stored
    return as_json(resource(bucket, key, stored))


def copy(fake, bucket, key, target, query):
    with fake.lock:
        stored = fake.buckets[bucket].get(key)
        wanted = query.get("sourceGeneration", str(stored.generation)) if stored else None
        if stored is None or wanted != str(stored.generation):
            return problem(404, f"No such object: {bucket}/{key}")
        if refusal := check(stored, query, "ifSource"):
            return refusal
        reply = fake.put(unquote(target["bucket"]), unquote(target["key"]), stored.data, stored.properties, query)
    if target["verb"] == "copyTo" or reply.status != 200:
        return reply
    size = str(len(stored.data))
    done = {"kind": "storage#rewriteResponse", "done": True, "totalBytesRewritten": size, "objectSize": size}
    return as_json(done | {"resource": json.loads(reply.body)})


def list_objects(fake, bucket, query):
    with fake.lock:
        found = sorted(
            (key, stored) for key, stored in fake.buckets[bucket].items() if key.startswith(query.get("prefix", ""))
        )
    start, size = (
        int(query.get("pageToken", 0)),
        min(int(query.get("maxResults", 3)), 3),
    )  # small pages: clients must turn them
    page = {"kind": "storage#objects", "items": [resource(bucket, *item) for item in found[start : start + size]]}
    return as_json(page | ({"nextPageToken": str(start + size)} if start + size < len(found) else {}))


def download(fake, bucket, key, query, headers):
    with fake.lock:
        stored, refusal = find(fake, bucket, key, query)
    if refusal:
        return refusal
    about = {
        "Content-Type": "application/octet-stream",
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": f"crc32c={stored.properties['crc32c']},md5={stored.properties['md5Hash']}",
        "X-Goog-Stored-Content-Length": str(len(stored.data)),
        "X-Goog-Stored-Content-Encoding": "identity",
    }
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", "")):
        first, last = int(match[1]), min(int(match[2] or len(stored.data)), len(stored.data) - 1)
        if first >= len(stored.data):
            return problem(416, "The requested range cannot be satisfied.")
        return Reply(
            206, stored.data[first : last + 1], about | {"Content-Range": f"bytes {first}-{last}/{len(stored.data)}"}
        )
    return Reply(200, stored.data, about)


def start_upload(fake, bucket, query, headers, body):
    properties = json.loads(body)
    name = query.get("name") or properties["name"]
    with fake.lock:
        if refusal := check(fake.buckets[bucket].get(name), query):
            return refusal
        number = str(next(fake.ids))
        fake.uploads[number] = {"to": (bucket, name), "data": b"", "about": properties, "query": query, "done": None}
    where = f"{fake.url}/upload/storage/v1/b/{quote(bucket)}/o?uploadType=resumable&upload_id={number}"
    return Reply(200, b"", {"Location": where})


def continue_upload(fake, number, headers, body):
    upload = fake.uploads.get(number)
    if upload is None:
        return problem(404, "no such upload")
    with fake.lock:
        if upload["done"]:
            return upload["done"]  # a client that lost this reply asks again
        match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers["Content-Range"])
        if match[1] is not None:
            first, last = int(match[1]), int(match[2])
            if first > len(upload["data"]):
                return problem(400, "a part is missing")
            if match[3] != str(last + 1) and (last + 1 - first) % PART:
                return problem(400, f"The size of every part but the last must be a multiple of {PART} bytes.")
            fake.parts.append((first, len(body)))
            upload["data"] = upload["data"][:first] + body
            if len(body) < last + 1 - first:  # the connection was lost: of what came whole parts are kept
                upload["data"] = upload["data"][: len(upload["data"]) // PART * PART]
        if match[3] == "*" or len(upload["data"]) < int(match[3]):
            return Reply(308, b"", {"Range": f"bytes=0-{len(upload['data']) - 1}"} if upload["data"] else {})
        sent = dict(re.findall(r"(crc32c|md5)=([\w+/]+=*)", headers.get("X-Goog-Hash", "")))
        properties = upload["about"] | {{"md5": "md5Hash"}.get(name, name): value for name, value in sent.items()}
        reply = fake.put(*upload["to"], upload["data"], properties, upload["query"])
        if reply.status == 200:
            upload["done"] = reply
        return reply


def split_multipart(headers, body):
    boundary = re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1].encode()
    _, about, media, _ = body.split(b"--" + boundary)
    payloads = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in (about, media)]
    return json.loads(payloads[0]), payloads[1]


def resource(bucket, key, stored):
    return {
        "kind": "storage#object",
        "name": key,
        "bucket": bucket,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "size": str(len(stored.data)),
        **stored.properties,
    }


def as_json(value, status=200):
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def problem(status, message):
    return Reply(304) if status == 304 else as_json({"error": {"code": status, "message": message}}, status)


def crc32c(data):
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
