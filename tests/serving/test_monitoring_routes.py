"""`monitoring_routes`: metrics, drift and feedback of a live service."""

from contextlib import closing

import pytest
from observers import Accuracy, Detector
from prometheus_client.parser import text_string_to_metric_families
from served import TOKEN, send, serve, version_path

from helpers.monitoring.log_reader import LogReader
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.watch import Watch


@pytest.fixture
def service(shop, tmp_path):
    """A server with a log, a detector and a monitor of accuracy."""
    with (
        closing(PredictionLog(tmp_path / "log.db")) as log,
        serve(shop, log=log, watch=Watch(Detector, Accuracy), admin_token=TOKEN) as service,
    ):
        service.log = log
        yield service


def read(client):
    """Each sample of ``/metrics``, by name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def test_metrics_count_requests_batches_classes_and_changes(service, shop):
    client, auth = service.client, {"authorization": f"Bearer {TOKEN}"}
    names = [send(client).json() for _ in range(3)]
    send(client, b"no image")
    client.get("/no/such/place")
    ids = [send(client, route="/predict").json()["request_id"] for _ in range(2)]
    assert client.post("/feedback", json={"request_id": ids[0], "label": names[0]}).status_code == 200
    for where, status in ((version_path(shop.other), 200), ("models/none", 404), ("nowhere", 400)):
        assert client.post("/change_model", params={"string_input": where}, headers=auth).status_code == status
    samples = read(client)
    route = ("route", "/predict_single")
    assert samples["suite_requests_total", route, ("status", "200")] == 3
    assert samples["suite_requests_total", route, ("status", "415")] == 1
    assert samples["suite_requests_total", ("route", "other"), ("status", "404")] == 1
    assert samples["suite_request_seconds_count", route] == 4
    assert samples["suite_batch_images_sum",] == samples["suite_batch_images_count",] == 5
    assert 0 < samples["suite_engine_seconds_sum",] < 5
    assert samples["suite_predictions_total", ("class", names[0])] == 5
    assert samples["suite_confidence_count",] == 5
    assert samples["suite_feedback_total", ("right", "true")] == 1
    assert samples["suite_model_swaps_total", ("outcome", "done")] == 1
    assert samples["suite_model_swaps_total", ("outcome", "refused")] == 2
    assert samples["suite_log_written_rows_total",] == 5
    assert samples["suite_log_lost_rows_total",] == samples["suite_log_waiting_rows",] == 0
    assert samples["suite_drift",] == 0
    (version,) = (dict(labels) for name, *labels in samples if name == "suite_model_info")
    assert version == {"name": "tiny", "version": shop.other, "engine": "openvino", "precision": "bf16"} | {
        "precision": shop.models[0].precision
    }


def test_metrics_say_how_far_a_sink_is_behind(service):
    service.log._connection.execute("INSERT INTO cursors VALUES ('wandb', 1, '{}')")
    request_ids = [send(service.client, route="/predict").json()["request_id"] for _ in range(4)]
    service.client.post("/feedback", json={"request_id": request_ids[-1], "label": 0})
    assert read(service.client)["suite_sink_lag_rows", ("sink", "wandb")] == 3


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "suite.ngrok.app"}, 403),
        ({"x-forwarded-for": "192.0.2.7"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "https://evil.example", "authorization": f"Bearer {TOKEN}"}, 200),
        ({"host": "suite.ngrok.app", "authorization": "Bearer wrong"}, 403),
        ({"host": "suite.ngrok.app", "authorization": f"Bearer {TOKEN}"}, 200),
    ],
)
def test_metrics_and_drift_are_for_this_machine_or_the_owner(service, headers, status):
    service.client.post(
        "/feedback", json={"request_id": send(service.client, route="/predict").json()["request_id"], "label": 0}
    )
    for route in ("/metrics", "/drift"):
        answer = service.client.get(route, headers=headers)
        assert answer.status_code == status
        assert (status == 200) or answer.json()["detail"].startswith("only for requests on this machine, or with ")


def test_drift_is_the_report_of_the_detector_of_the_model_that_serves(service, shop):
    answers = [send(service.client, route="/predict").json() for _ in range(3)]
    service.client.post("/feedback", json={"request_id": answers[0]["request_id"], "label": 0})  # all are recorded now
    assert service.client.get("/drift").json() == {"verdict": "stable", "version": shop.good, "samples": 3}


def test_without_a_detector_drift_is_404_with_a_sentence(shop):
    with serve(shop) as service:
        answer = service.client.get("/drift")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("drift is not followed here; ")


def test_feedback_is_answered_with_what_it_means_and_survives_the_server(service):
    answer = send(service.client, route="/predict").json()
    body = {"request_id": answer["request_id"], "label": answer["class"]}
    expected = {"position": 0, "predicted": answer["class"], "right": True, "known": False, "accuracy": {"told": 2}}
    assert service.client.post("/feedback", json=body).json() == body | expected
    assert service.client.post("/feedback", json=body).json() == body | expected | {"known": True}
    with LogReader(service.log.path) as log:
        assert log.labels() == {(answer["request_id"], 0): answer["class_index"]}


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"request_id": "f" * 32, "label": 1}, 404, "there is no request 'ffffffffffffffffffffffffffffffff' in the pr"),
        ({"label": 100}, 422, "label must be one of the 100 class names, or an index from 0 to 99, got 100"),
        ({"label": -1}, 422, "label must be one of the 100 class names, or an index from 0 to 99, got -1"),
        (
            {"label": "unicorn"},
            422,
            "label must be one of the 100 class names, or an index from 0 to 99, got 'unicorn'",
        ),
        ({"label": None}, 422, "body.label: Input should be the name or the index of a class, got 'None'"),
        ({"label": 1, "position": 1}, 422, "position must be one of an image of the request, 0 to 0, got 1"),
        ({"label": 1, "position": -1}, 422, "body.position: Input should be greater than or equal to 0, got '-1'"),
        ({"label": 1, "lable": 1}, 422, "body.lable: Extra inputs are not permitted"),
        ({"label": True}, 422, "body.label: Input should be the name or the index of a class, got 'True'"),
        ({"label": 1.0}, 422, "body.label: Input should be the name or the index of a class, got '1.0'"),
        ({"label": 1, "position": True}, 422, "body.position: Input should be a valid integer, got 'True'"),
        ({"label": 1, "position": "0"}, 422, "body.position: Input should be a valid integer, got '0'"),
        ({"request_id": "x" * 65, "label": 1}, 422, "body.request_id: String should have at most 64 characters"),
    ],
)
def test_feedback_that_makes_no_sense_is_refused_and_changes_nothing(service, body, status, sentence):
    known = send(service.client, route="/predict").json()["request_id"]
    answer = service.client.post("/feedback", json={"request_id": known} | body)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)
    assert service.client.post("/feedback", json={"request_id": known, "label": 5}).json()["known"] is False


JSON, AS_JSON = {"content-type": "application/json"}, "send the body as JSON, with Content-Type: application/json"
SAID = b'{"request_id": "x", "label": 1}'


@pytest.mark.parametrize(
    ("body", "headers", "sentence"),
    [
        (SAID, {}, AS_JSON),
        (SAID, {"content-type": "application/x-www-form-urlencoded"}, AS_JSON),
        (b"", JSON, AS_JSON),
        (b"[1]", JSON, "the body must be a JSON object, got '[1]'"),
        (b"null", JSON, "the body must be a JSON object, got 'None'"),
        (b'{"label": 1}', JSON, "body.request_id: Field required"),
        (
            b"{x",
            JSON,
            "the body is not valid JSON (at character 2: Expecting property name enclosed in double quotes); "
            "correct it and send it again",
        ),
    ],
)
def test_feedback_that_is_no_json_object_is_422_with_what_to_send(service, body, headers, sentence):
    answer = service.client.post("/feedback", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json() == {"detail": sentence}


def test_other_feedback_than_before_is_409_and_the_first_stands(service):
    known = send(service.client, route="/predict").json()["request_id"]
    service.client.post("/feedback", json={"request_id": known, "label": 5})
    answer = service.client.post("/feedback", json={"request_id": known, "label": 6})
    assert answer.status_code == 409
    assert answer.json() == {"detail": "the true class was said to be 5 before, now 6; the first stands"}


def test_where_the_log_takes_nothing_feedback_is_503_and_predictions_go_on(service):
    known = send(service.client, route="/predict").json()["request_id"]
    service.log._connection.execute("PRAGMA query_only = 1")  # as a disk that went read-only
    answer = service.client.post("/feedback", json={"request_id": known, "label": 5})
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("the prediction log takes nothing now")
    assert send(service.client).status_code == 200
    service.log._connection.execute("PRAGMA query_only = 0")
    assert service.client.post("/feedback", json={"request_id": known, "label": 5}).status_code == 200


def test_without_a_log_every_request_is_unknown(shop):
    with serve(shop) as service:
        answer = service.client.post("/feedback", json={"request_id": "x", "label": 5})
    assert answer.status_code == 404
    assert answer.json()["detail"] == "this server keeps no prediction log; start it with --log to send feedback"
