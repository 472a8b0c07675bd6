import json
import os
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache

import httpx2
import numpy as np
import pytest
from held_model import HeldModel, Insane, wait_until
from PIL import Image
from served import ALIAS, IMAGES, PIXELS, PNG, TOKEN, encode, npy, send, serve, version_path

from helpers.delivery.storage import StorageUnavailable
from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.prediction_log import PredictionLog
from helpers.serving import inference


@pytest.fixture(scope="module")
def service(shop):
    """One server for the tests that change nothing."""
    with serve(shop) as service:
        yield service


@pytest.fixture(scope="module")
def client(service):
    return service.client


# predictions


def test_the_home_page_leads_to_the_documentation(client):
    response = client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert 'href="/docs"' in response.text
    assert client.get("/docs").status_code == 200


def test_predict_single_gives_the_class_name_as_a_bare_json_string(client, shop):
    index = int(shop.models[0].predict(PIXELS[None]).probabilities.argmax())
    response = send(client)
    assert response.status_code == 200
    assert response.text == f'"class_{index:02d}"'


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_png_gets_an_answer(client, mode):
    image = Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64)
    image = image if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    assert send(client, encode(image)).json().startswith("class_")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("name", ["PHOTO.JPG", "photo.jpeg", "photo", "photo.png", "../../ü.JPG"])
def test_every_kind_of_jpeg_gets_an_answer_whatever_its_name(client, mode, name):
    data = encode(Image.fromarray(PIXELS).convert(mode), "JPEG")
    assert send(client, data, name).json().startswith("class_")


def test_predict_gives_the_first_classes_with_probabilities_and_version(client, shop):
    row = shop.models[0].predict(PIXELS[None]).probabilities[0]
    response = send(client, route="/predict", params={"top_k": 3})
    answer = response.json()
    assert sorted(answer) == [
        "class",
        "class_index",
        "milliseconds",
        "model_version",
        "probability",
        "request_id",
        "top",
    ]
    order = np.argsort(-row)[:3]
    assert [candidate["class"] for candidate in answer["top"]] == [f"class_{index:02d}" for index in order]
    assert [candidate["probability"] for candidate in answer["top"]] == pytest.approx(row[order], abs=1e-5)
    assert {"class": answer["class"], "probability": answer["probability"]} == answer["top"][0]
    assert answer["class_index"] == order[0]
    assert answer["model_version"] == shop.good
    assert answer["request_id"] == response.headers["x-request-id"]
    assert 0 < answer["milliseconds"] < 5000


@pytest.mark.parametrize(("query", "count"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": 100}, 100)])
def test_top_k_says_how_many_classes(client, query, count):
    top = send(client, route="/predict", params=query).json()["top"]
    assert len(top) == count
    assert sum(candidate["probability"] for candidate in top) <= 1.001


@pytest.mark.parametrize("top_k", ["0", "101", "many"])
def test_another_top_k_is_refused(client, top_k):
    response = send(client, route="/predict", params={"top_k": top_k})
    assert response.status_code == 422
    assert response.json()["detail"].startswith("query.top_k: Input should be ")
    assert response.json()["detail"].endswith(f"got '{top_k}'")


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + PNG[33:]


@pytest.mark.parametrize(
    ("request_body", "status", "sentence"),
    [
        ({"files": {"file": ("a.png", b"just text")}}, 415, "the file must be a PNG or a JPEG image, got 9 bytes"),
        ({"files": {"file": ("a.png", b"")}}, 415, "the file must be a PNG or a JPEG image, got no bytes"),
        ({"files": {"file": ("a.png", PNG[:500])}}, 400, "cut off after 500 bytes"),
        (
            {"files": {"file": ("a.png", png_header(20000, 20000))}},
            413,
            "the image is too large, at most 16777216 pixels are accepted",
        ),
        ({"files": {"image": ("a.png", PNG)}}, 422, "send multipart/form-data with the image as a file in a field"),
        ({"data": {"file": "text"}}, 422, "send multipart/form-data with the image as a file in a field named file"),
        ({}, 422, "send multipart/form-data with the image as a file in a field named file"),
        ({"json": {"file": "x"}}, 422, "send multipart/form-data with the image as a file in a field named file"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400, "names no boundary"),
        (
            {"files": {"file": ("a.png", bytes(17 * 2**20))}},
            413,
            "the request body has more than 16777216 bytes; send a smaller image",
        ),
    ],
)
def test_what_is_no_image_is_refused_with_a_sentence(client, request_body, status, sentence):
    response = client.post("/predict_single", **request_body)
    assert response.status_code == status
    assert sentence in response.json()["detail"]
    assert "/tmp" not in response.text


def test_a_large_image_is_decoded_by_a_patient_thread_and_answered_like_a_small_one(service, monkeypatch):
    where, decode = [], inference.decode_image

    def note(data, **options):
        image = decode(data, **options)
        where.append(threading.current_thread().name)
        return image

    monkeypatch.setattr(inference, "decode_image", note)
    large = encode(Image.fromarray(PIXELS).resize((320, 320), Image.Resampling.NEAREST))
    answers = [send(service.client, data, route="/predict") for data in (PNG, large)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [name.rpartition("_")[0] or name for name in where] == ["predictor", "patient decoder"]


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(client):
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 2**30:
            sent += 2**16
            yield bytes(2**16)

    response = client.post(
        "/predict_single", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert response.status_code == 413
    assert response.json()["detail"] == "the request body has more than 16777216 bytes; send a smaller image"
    assert sent < 2**26


def test_64_requests_at_once_are_all_answered_right(service, shop):
    images = np.random.default_rng(6).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    bodies = [encode(Image.fromarray(image)) for image in images]
    expected = [f"class_{index:02d}" for index in shop.models[0].predict(images).probabilities.argmax(1)]
    with (
        httpx2.Client(base_url=service.url, timeout=20, limits=httpx2.Limits(max_connections=64)) as client,
        ThreadPoolExecutor(64) as pool,
    ):
        answers = list(pool.map(lambda i: send(client, bodies[i % 8]), range(64)))
    assert [answer.json() for answer in answers] == expected * 8


def test_past_the_deadline_the_answer_is_504(shop):
    held = HeldModel(shop.models[0])
    with serve(shop, held, limits={"deadline_s": 0.2}) as service:
        start = time.monotonic()
        response = send(service.client)
        held.gate.set()
        assert response.status_code == 504
        assert response.json() == {"detail": "no answer within 0.2 s; try again"}
        assert 0.19 <= time.monotonic() - start < 2  # uvloop counts in whole milliseconds
        assert send(service.client).status_code == 200


def test_a_client_that_leaves_while_it_waits_is_not_answered(shop):
    held = HeldModel(shop.models[0])
    with serve(shop, held, limits={"max_batch": 1}) as service, ThreadPoolExecutor(4) as pool:
        others = [pool.submit(send, service.client)]
        wait_until(lambda: held.sizes)
        others += [pool.submit(send, service.client) for _ in range(3)]
        wait_until(lambda: len(held.sizes) == 2 and service.predictor.waiting == 2)
        part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + PNG + b"\r\n--x--\r\n"
        head = b"POST /predict_single HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(part) + part)
            wait_until(lambda: service.predictor.waiting == 3)
        time.sleep(0.2)
        held.gate.set()
        assert [other.result(10).status_code for other in others] == [200] * 4
        wait_until(lambda: service.predictor.waiting == 0)
    assert held.sizes == [1] * 4


def test_answers_that_make_no_sense_are_500(shop):
    with serve(shop, Insane(shop.models[0])) as service:
        response = send(service.client)
    assert response.status_code == 500
    assert response.json() == {"detail": "probabilities must be finite; 1 of 100 are not"}


def test_clients_that_leave_leave_nothing_behind(service):
    head = b"POST /predict_single HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + PNG
    whole = head + b"Content-Length: %d\r\n\r\n" % (len(part) + 7) + part + b"\r\n--x--"

    def visit(data):
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(data)

    def footprint():
        return len(os.listdir("/proc/self/fd")), service.predictor.waiting

    send(service.client)
    before = footprint()
    for cut in (10, len(head), len(head) + 100, len(whole) - 5, len(whole)):
        for _ in range(10):
            visit(whole[:cut])
    wait_until(lambda: footprint() == before)
    assert send(service.client).status_code == 200
    assert threading.active_count() < 30


def answers_of(model, images):
    return [f"class_{index:02d}" for index in model.predict(images).probabilities.argmax(1)]


def test_many_files_or_an_array_are_answered_in_their_order_by_one_version(client, shop):
    files = [("file", ("image.png", encode(Image.fromarray(image)))) for image in IMAGES]
    requests = ({"files": files}, {"content": npy(IMAGES), "headers": {"content-type": "application/octet-stream"}})
    for request in requests:
        answer = client.post("/predict_batch", params={"top_k": 3}, **request).json()
        assert [prediction["class"] for prediction in answer["predictions"]] == answers_of(shop.models[0], IMAGES)
        assert all(len(prediction["top"]) == 3 for prediction in answer["predictions"])
        assert answer["model_version"] == shop.good


@pytest.mark.parametrize(
    ("array", "status", "sentence"),
    [
        (b"", 415, "the body is no array in the .npy format; write it with numpy.save"),
        (npy(IMAGES)[:-1], 400, "the array says 122880 bytes and has 122879; send the whole file again"),
        (npy(IMAGES.astype(np.float32)), 415, "the array must be uint8 (n, 32, 32, 3) in C order, got float32 (40"),
        (npy(IMAGES[0]), 415, "the array must be uint8 (n, 32, 32, 3) in C order, got uint8 (32, 32, 3)"),
        (npy(IMAGES[:0]), 415, "the array must be uint8 (n, 32, 32, 3) in C order, got uint8 (0, 32, 32, 3)"),
        (npy(np.asfortranarray(IMAGES)), 415, "the array must be uint8 (n, 32, 32, 3) in C order, got uint8 (40"),
        (npy(np.array([{}], object), allow_pickle=True), 415, "the array must be uint8 (n, 32, 32, 3) in C order"),
        (npy(np.zeros((257, 32, 32, 3), np.uint8)), 413, "the array has 257 images, at most 256 are taken"),
        (npy(IMAGES[:1]).replace(b"(1, 32", b"(9**9, 32"), 415, "the body is no array in the .npy format"),
    ],
)
def test_another_array_is_refused_with_a_sentence(client, array, status, sentence):
    headers = {"content-type": "application/octet-stream"}
    response = client.post("/predict_batch", content=array, headers=headers)
    assert response.status_code == status
    assert sentence in response.json()["detail"]


@pytest.mark.parametrize(
    ("wrong", "status", "sentence"),
    [
        (PNG[:100], 400, "file 2 of 3: the PNG image is cut off after 100 bytes; send the whole file again"),
        (b"text", 415, "file 2 of 3: the file must be a PNG or a JPEG image, got 4 bytes"),
        (png_header(20000, 20000), 413, "file 2 of 3: the image is too large, at most 16777216 pixels are accepted"),
    ],
    ids=["cut off", "text", "large"],
)
def test_one_wrong_file_of_many_refuses_them_all_and_is_named(client, wrong, status, sentence):
    response = client.post("/predict_batch", files=[("file", ("image.png", data)) for data in (PNG, wrong, PNG)])
    assert response.status_code == status
    assert response.json()["detail"].startswith(sentence)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
def test_who_sends_neither_files_nor_an_array_is_told_of_both(client, kind):
    headers = {"content-type": kind}
    form = b"--x\r\nContent-Disposition: form-data; name=other\r\n\r\n1\r\n--x--\r\n"
    body = form if kind.startswith("multipart") else npy(IMAGES)
    response = client.post("/predict_batch", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["detail"] == (
        "send multipart/form-data with the image as a file in a field named file, "
        "or an array in the .npy format with Content-Type: application/octet-stream"
    )
    assert ".npy" not in client.post("/predict", content=body, headers=headers).json()["detail"]


def test_the_only_file_has_no_number(client):
    response = send(client, PNG[:100], route="/predict_batch")
    assert response.json()["detail"].startswith("the PNG image is cut off after 100 bytes")


def test_a_client_of_the_open_inference_protocol_finds_its_way(client, shop):
    assert client.get("/v2").json()["name"] == "cifar100-notebook-suite"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    metadata = client.get("/v2/models/tiny").json()
    assert metadata["versions"] == [shop.good]
    (tensor,) = metadata["inputs"]
    for where in ("/v2/models/tiny", f"/v2/models/tiny/versions/{shop.good}"):
        assert client.get(where).json() == metadata
        assert client.get(f"{where}/ready").json() == {"name": "tiny", "ready": True}
        inputs = [tensor | {"shape": list(IMAGES.shape), "data": IMAGES.ravel().tolist()}]
        answer = client.post(f"{where}/infer", json={"id": "7", "inputs": inputs}).json()
        assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "tiny", shop.good)
        outputs = {output["name"]: output for output in answer["outputs"]}
        assert {name: output["datatype"] for name, output in outputs.items()} == {
            output["name"]: output["datatype"] for output in metadata["outputs"]
        }
        assert outputs["class"]["data"] == answers_of(shop.models[0], IMAGES)
        assert outputs["probabilities"]["shape"] == [40, 100]
        expected = shop.models[0].predict(IMAGES).probabilities
        np.testing.assert_allclose(np.reshape(outputs["probabilities"]["data"], (40, 100)), expected, atol=1e-3)


@pytest.mark.parametrize("where", ["models/other", f"models/tiny/versions/{'0' * 8}", "models/tiny/versions/x/ready"])
def test_a_model_that_is_not_served_is_404_in_the_protocols_words(client, where):
    response = client.get(f"/v2/{where}")
    assert response.status_code == 404
    assert "is not served here; tiny is, version" in response.json()["error"]


def test_a_tensor_that_is_none_is_400_in_the_protocols_words(client):
    response = client.post("/v2/models/tiny/infer", content=b"no json")
    assert response.status_code == 400
    assert response.json()["error"].startswith("the body must be JSON like ")


# changes of the model


def test_rollback_model_serves_the_model_before_and_a_replay_says_what_changed(shop):
    with serve(shop) as service:
        for image in IMAGES:
            send(service.client, encode(Image.fromarray(image)))
        where = version_path(shop.other)
        answer = service.client.get("/change_model", params={"string_input": where, "replay": 256}).json()
        assert answer["message"] == f"version {shop.other} of {where} serves now, in place of {shop.good}"
        before, now = (answers_of(model, IMAGES) for model in shop.models)
        assert answer["replay"]["images"] == 40
        flips = {(flip["before"], flip["now"]): flip["count"] for flip in answer["replay"]["flips"]}
        pairs = [pair for pair in zip(before, now, strict=True) if pair[0] != pair[1]]
        assert flips == {pair: pairs.count(pair) for pair in pairs}
        back = service.client.post("/rollback_model")
        assert back.json() == {"message": f"version {shop.good} of {ALIAS} serves now, in place of {shop.other}"}
        assert service.client.get("/model").json()["version"] == shop.good
        again = service.client.post("/rollback_model")
        assert again.status_code == 404
        assert again.json()["detail"].startswith("no model served before this one; name the one you want")


def test_change_model_serves_the_other_version(shop):
    with serve(shop) as service:
        for method in ("GET", "POST"):
            for version, before in ((shop.other, shop.good), (shop.good, shop.other)):
                where = version_path(version)
                response = service.client.request(method, "/change_model", params={"string_input": where})
                assert response.status_code == 200
                assert response.json() == {"message": f"version {version} of {where} serves now, in place of {before}"}
                assert send(service.client, route="/predict").json()["model_version"] == version
                assert service.client.get("/model").json()["model_dir"] == where


def test_a_parameter_that_is_missing_is_named(client):
    response = client.post("/change_model")
    assert response.status_code == 422
    assert response.json() == {"detail": "query.string_input: Field required"}


def test_reload_model_follows_the_alias(shop):
    with serve(shop) as service:
        shop.registry.promote(shop.other, reason="newer")
        try:
            message = {"message": f"version {shop.other} of {ALIAS} serves now, in place of {shop.good}"}
            assert service.client.get("/reload_model").json() == message
        finally:
            shop.registry.rollback(reason="test over")
        assert service.client.post("/reload_model").status_code == 200
        assert service.client.get("/model").json()["version"] == shop.good


@pytest.mark.parametrize(
    ("where", "status", "sentence"),
    [
        ("models/tiny/aliases/nightly", 404, "model 'tiny' has no alias 'nightly' in store; "),
        ("models/none", 404, "model 'none' has no alias 'production' in store"),
        ("models/tiny/versions/20260101T000000Z-000000000000", 404, "model 'tiny' has no version"),
        ("", 400, "model_dir must be models/<name>, models/<name>/aliases/<alias> or models/<name>/versions/<version>"),
        ("models/../tiny", 400, "model_dir must be models/<name>"),
        ("/etc/passwd", 400, "model_dir must be models/<name>"),
        ("models/tiny\0", 400, "model_dir must be models/<name>"),
        ("gs://other/models/tiny", 400, "model_dir must be models/<name>"),
        ("nan", 422, "probabilities must be finite; "),
        ("damaged", 422, "labels.json has sha256 "),
    ],
)
def test_a_change_that_fails_says_why_and_keeps_the_old_model(service, shop, where, status, sentence):
    where = {"nan": version_path(shop.nan), "damaged": version_path(shop.damaged)}.get(where, where)
    response = service.client.get("/change_model", params={"string_input": where})
    detail = response.json()["detail"]
    assert (response.status_code, list(response.json())) == (status, ["detail"])
    assert sentence in detail
    assert detail.endswith(f"; version {shop.good} goes on serving")
    assert str(shop.folder) not in response.text
    assert send(service.client, route="/predict").json()["model_version"] == shop.good
    assert service.client.get("/model").json()["model_dir"] == ALIAS


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (StorageUnavailable("gs://bucket is out of reach; try later"), 503, "gs://bucket is out of reach; try later"),
        (MemoryError("at /srv/x"), 500, "the model could not be loaded; the server's log says why"),
    ],
)
def test_trouble_while_loading_keeps_the_old_model(shop, error, status, sentence, caplog):
    def load(model_dir):
        raise error

    with serve(shop, load=load) as service:
        response = service.client.get("/reload_model")
        assert response.status_code == status
        assert response.json() == {"detail": f"{sentence}; version {shop.good} goes on serving"}
        assert send(service.client).status_code == 200
    assert (status == 500) == ("could not change the model" in caplog.text)


def test_a_second_change_while_one_runs_is_409(shop):
    started, go_on = threading.Event(), threading.Event()

    def load(model_dir):
        started.set()
        assert go_on.wait(10)
        return shop.load(model_dir)

    with serve(shop, load=load) as service, ThreadPoolExecutor(1) as pool:
        first = pool.submit(service.client.get, "/reload_model")
        assert started.wait(10)
        for route in ("/reload_model", f"/change_model?string_input={ALIAS}"):
            response = service.client.post(route)
            assert response.status_code == 409
            assert response.json()["detail"].startswith("another change of the model is under way; ")
        assert send(service.client).status_code == 200
        assert service.client.get("/health/ready").status_code == 200
        go_on.set()
        assert first.result(10).status_code == 200
        assert service.client.post("/reload_model").status_code == 200


def test_swaps_under_load_fail_nothing_and_mix_nothing(shop):
    expected = {model.version: model.predict(PIXELS[None]).probabilities[0] for model in shop.models}
    done = threading.Event()

    def ask(url):
        versions = []
        with httpx2.Client(base_url=url, timeout=20, verify=False) as client:
            while not done.is_set():
                response = send(client, route="/predict", params={"top_k": 100})
                assert response.status_code == 200, response.text
                answer = response.json()
                row = np.zeros(100)
                for candidate in answer["top"]:
                    row[int(candidate["class"].removeprefix("class_"))] = candidate["probability"]
                np.testing.assert_allclose(row, expected[answer["model_version"]], atol=1e-3)
                versions.append(answer["model_version"])
                time.sleep(0.005)
        return versions

    with serve(shop) as service, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, service.url) for _ in range(4)]
        try:
            for swap in range(20):
                where = version_path(shop.good if swap % 2 else shop.other)
                response = service.client.get("/change_model", params={"string_input": where})
                assert response.status_code == 200, response.text
        finally:
            done.set()
        versions = [version for client in clients for version in client.result(10)]
    assert set(versions) == set(expected)
    assert len(versions) > 20


@pytest.fixture(scope="module")
def owned(shop):
    """``owned(token, required)``: a server with that token, the same for all who ask."""
    with ExitStack() as stack:

        @cache
        def owned(token, required):
            options = {"admin_token": token, "require_token": required}
            return stack.enter_context(serve(shop, load=lambda _: shop.models[0], **options))

        yield owned


@pytest.mark.parametrize(
    ("token", "required", "headers", "status"),
    [
        (None, False, {}, 200),
        (None, False, {"host": "localhost:8000"}, 200),
        (None, False, {"host": "[::1]:8000"}, 200),
        (None, False, {"host": "evil.example"}, 403),
        (None, False, {"host": "127.0.0.1.evil.example"}, 403),
        (None, False, {"host": "localhost:8000@evil.example"}, 403),
        (None, False, {"sec-fetch-site": "cross-site"}, 403),
        (None, False, {"sec-fetch-site": "same-origin"}, 200),
        (None, False, {"host": "localhost:8000", "x-forwarded-for": "192.0.2.7"}, 403),
        (None, False, {"host": "localhost:8000", "x-forwarded-for": "127.0.0.1"}, 403),
        (None, False, {"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        (None, False, {"host": "localhost:8000", "origin": "http://127.0.0.1:8000"}, 200),
        (None, False, {"host": "127.0.0.1:8000", "origin": "http://[::1]:8000"}, 200),
        (None, False, {"host": "localhost:8000", "origin": "http://localhost:3000"}, 403),
        (None, False, {"host": "localhost:8000", "origin": "https://evil.example"}, 403),
        (None, False, {"host": "localhost:8000", "origin": "http://localhost:8000.evil.example"}, 403),
        (None, False, {"host": "localhost:8000", "origin": "null"}, 403),
        (None, True, {}, 403),
        (None, True, {"authorization": "Bearer None"}, 403),
        (TOKEN, False, {}, 401),
        (TOKEN, True, {}, 401),
        (TOKEN, True, {"authorization": "Bearer wrong"}, 401),
        (TOKEN, True, {"authorization": "Bearer \u00fc".encode("latin-1")}, 401),
        (TOKEN, True, {"authorization": f"Basic {TOKEN}"}, 401),
        (TOKEN, True, {"authorization": f"Bearer {TOKEN}"}, 200),
        (TOKEN, True, {"authorization": f"bearer {TOKEN}", "host": "suite.example"}, 200),
    ],
)
def test_only_the_owner_changes_the_model(owned, token, required, headers, status):
    service = owned(token, required)
    for route in ("/reload_model", f"/change_model?string_input={ALIAS}"):
        for method in ("GET", "POST"):
            response = service.client.request(method, route, headers=headers)
            assert response.status_code == status
            assert ("www-authenticate" in response.headers) == (status == 401)
    assert service.client.get("/change_model", headers=headers).status_code == (422 if status == 200 else status)
    assert send(service.client).status_code == 200
    if required and not token:
        detail = "changing the model is off; set SUITE_ADMIN_TOKEN or SUITE_ADMIN_TOKEN_FILE and start the server again"
        assert service.client.get("/reload_model").json() == {"detail": detail}


# the rest


def test_model_says_what_serves_and_on_what_data_it_was_trained(client, shop):
    manifest = shop.models[0].bundle.manifest
    assert client.get("/model").json() == {
        "model_dir": ALIAS,
        "name": "tiny",
        "version": shop.good,
        "created": manifest.created,
        "engine": "openvino",
        "precision": shop.models[0].precision,
        "threads": shop.models[0].threads,
        "data": {"source": "synthetic", "fingerprint": "0" * 64, "synthetic": True},
        "temperature": 1.0,
        "classes": 100,
    }


def test_a_server_that_stops_is_live_but_not_ready(shop):
    with serve(shop) as service:
        assert service.client.get("/health/live").json() == {"status": "live"}
        assert service.client.get("/health/ready").json() == {"status": "ready"}
        service.app.state.draining = True
        assert service.client.get("/health/live").status_code == 200
        response = service.client.get("/health/ready")
        assert response.status_code == 503
        assert response.json() == {"detail": "the server is stopping; send requests elsewhere"}


def test_every_prediction_of_every_route_is_in_the_log_under_its_request_id(shop, tmp_path):
    with closing(PredictionLog(tmp_path / "log.db")) as log:
        with serve(shop, log=log) as service:
            client = service.client
            inputs = [
                {"name": "images", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": IMAGES[:2].ravel().tolist()}
            ]
            answers = [
                send(client),
                send(client, route="/predict"),
                client.post("/predict_batch", content=npy(IMAGES[:3]), headers={"content-type": "application/x-npy"}),
                client.post("/v2/models/tiny/infer", json={"inputs": inputs}),
            ]
            assert send(client, b"no image").status_code == 415
        with LogReader(log.path) as reader:
            rows = reader.rows()
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert [row["request_id"] for row in rows] == [ids[0], ids[1], *[ids[2]] * 3, *[ids[3]] * 2]
    assert [row["class_name"] for row in rows[2:5]] == answers_of(shop.models[0], IMAGES[:3])
    assert rows[0]["class_name"] == answers[0].json()
    assert {row["version"] for row in rows} == {shop.good}
    assert all(0 < row["seconds"] < 5 for row in rows)


@pytest.mark.parametrize("path", ["/", "/model", "/health/live", "/health/ready", "/nowhere"])
def test_head_is_answered_as_get_without_the_body(client, path):
    asked, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (asked.status_code, b"")
    assert head.headers["content-length"] == asked.headers["content-length"]


def test_head_changes_no_model(client):
    for path in ("/reload_model", "/change_model", "/rollback_model"):
        assert client.head(path).status_code == 405


def test_every_answer_has_an_id_and_security_headers(client):
    answers = [client.get("/"), client.get("/nowhere"), send(client), send(client, bytes(17 * 2**20))]
    assert [answer.status_code for answer in answers] == [200, 404, 200, 413]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    assert len({answer.headers["x-request-id"] for answer in answers}) == 4


def test_errors_nobody_thought_of_show_nothing_of_the_inside(service, caplog, monkeypatch):
    def fail(*arguments):
        raise OSError("/srv/secret/place")

    monkeypatch.setattr(service.predictor, "submit_encoded", fail)
    response = send(service.client)
    assert response.status_code == 500
    assert response.json() == {"detail": "the server failed on this request; its log says why"}
    wait_until(lambda: "/srv/secret/place" in caplog.text)  # uvicorn logs it after the answer


def test_the_openapi_document_describes_every_route(client):
    document = client.get("/openapi.json").json()
    assert (document["info"]["title"], document["info"]["version"]) == ("CIFAR-100 classifier", "1.0")
    operations = {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        ("POST", "/predict_single"),
        ("POST", "/predict"),
        ("POST", "/predict_batch"),
        ("GET", "/rollback_model"),
        ("POST", "/rollback_model"),
        ("GET", "/reload_model"),
        ("POST", "/reload_model"),
        ("GET", "/change_model"),
        ("POST", "/change_model"),
        ("GET", "/model"),
        ("GET", "/metrics"),
        ("GET", "/drift"),
        ("POST", "/feedback"),
        ("GET", "/candidate"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/{name}"),
        ("GET", "/v2/models/{name}/ready"),
        ("POST", "/v2/models/{name}/infer"),
        ("GET", "/v2/models/{name}/versions/{version}"),
        ("GET", "/v2/models/{name}/versions/{version}/ready"),
        ("POST", "/v2/models/{name}/versions/{version}/infer"),
    }
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    tags = {tag["name"] for tag in document["tags"]}
    for operation in operations.values():
        assert set(operation["tags"]) <= tags
        assert operation.get("description")
        for code, answer in operation["responses"].items():
            if code != "200":
                schema = "ProtocolError" if "open inference protocol" in operation["tags"] else "Problem"
                assert answer["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{schema}"}
    for code in ("400", "401", "403", "404", "409", "422", "503"):
        assert code in operations["GET", "/change_model"]["responses"]
    assert {"413", "415", "503", "504"} <= set(operations["POST", "/predict_single"]["responses"])
    assert document["components"]["schemas"]["Problem"]["examples"]
    assert operations["GET", "/change_model"]["security"] == [{"HTTPBearer": []}]
    assert json.dumps(document).isascii()
