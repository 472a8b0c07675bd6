"""The client sends what a browser or curl would, and gives every answer back, errors too."""

import io
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests
from PIL import Image

from helpers.client import Client, encode_png

PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


class Recorder(BaseHTTPRequestHandler):
    """Answers everything with 418 and what it was asked."""

    def handle_request(self):
        self.server.asked = (
            self.command,
            self.path,
            dict(self.headers),
            self.rfile.read(int(self.headers.get("Content-Length", 0))),
        )
        body, kind = (
            (b"plain", "text/plain") if self.path == "/text" else (json.dumps({"a": 1}).encode(), "application/json")
        )
        self.send_response(418)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = handle_request

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server):
    client = Client(f"http://127.0.0.1:{server.server_port}/", token="t0ken")
    yield client
    client.close()


def test_pixels_are_sent_as_a_png_in_the_field_file(server, client):
    reply = client.predict_single(PICTURE)
    method, path, headers, body = server.asked
    assert (method, path) == ("POST", "/predict_single")
    assert b'name="file"; filename="image.png"' in body
    sent = body[body.index(b"\x89PNG") : body.index(b"\r\n--", body.index(b"IEND"))]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sent))), PICTURE)
    assert headers["ngrok-skip-browser-warning"] == "1"
    assert (reply.status, reply.body) == (418, {"a": 1})
    assert reply.seconds > 0


def test_a_picture_goes_to_predict_and_its_truth_to_feedback(server, client):
    client.predict(PICTURE)
    method, path, _, body = server.asked
    assert (method, path) == ("POST", "/predict")
    assert b'name="file"; filename="image.png"' in body
    client.feedback("an id", "apple")
    method, path, headers, body = server.asked
    assert (method, path, headers["Content-Type"]) == ("POST", "/feedback", "application/json")
    assert json.loads(body) == {"request_id": "an id", "label": "apple"}


def test_the_token_and_the_query_are_sent(server, client):
    client.get("/change_model", string_input="models/a b")
    _, path, headers, _ = server.asked
    assert path == "/change_model?string_input=models%2Fa+b"
    assert headers["Authorization"] == "Bearer t0ken"


def test_an_answer_that_is_no_json_comes_back_as_text(client):
    assert client.get("/text").body == "plain"


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG")]
)
def test_an_image_is_encoded_in_the_mode_and_kind_asked_for(mode, kind):
    with Image.open(io.BytesIO(encode_png(PICTURE, mode, kind))) as image:
        assert (image.mode, image.format, image.size) == (mode, kind, (32, 32))


# Wherever the service is


class Busy(Recorder):
    """Answers 503 so often as `server.busy` says, then as `Recorder`."""

    def handle_request(self):
        self.server.times += 1
        if self.server.times > self.server.busy:
            super().handle_request()
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = handle_request


@contextmanager
def serving(handler, **attributes):
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        vars(server).update(attributes)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("path", "patience", "status", "times"), [
    ("/model", 5, 418, 3),
    ("/model", 0, 503, 1),
    ("/rollback_model", 5, 503, 1),
])  # fmt: skip
def test_a_busy_service_is_asked_again_where_that_does_no_harm(path, patience, status, times):
    with serving(Busy, busy=2, times=0) as server:
        client = Client(f"http://127.0.0.1:{server.server_port}", patience=patience)
        assert client.get(path).status == status
        assert server.times == times
        client.close()


def test_without_patience_a_service_that_is_not_there_is_an_error_at_once():
    client = Client("http://127.0.0.1:9")
    with pytest.raises(requests.ConnectionError):
        client.predict_single(PICTURE)


def test_with_patience_it_is_an_error_when_that_is_spent():
    client, started = Client("http://127.0.0.1:9", patience=0.5), time.monotonic()
    with pytest.raises(requests.ConnectionError):
        client.predict_single(PICTURE)
    assert 0.2 < time.monotonic() - started < 2
