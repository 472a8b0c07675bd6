"""`metrics` and deploy/monitoring/: a real Prometheus scrapes a live service, where it is installed."""

import json
import re
import shutil
import socket
import subprocess
import time
from contextlib import closing

import httpx2
import pytest
import yaml
from observers import Detector
from served import send, serve

from helpers.monitoring.metrics import Metrics
from helpers.monitoring.prediction_log import PredictionLog
from helpers.monitoring.watch import Watch
from helpers.workspace import ROOT

FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana" / "dashboards" / "suite.json").read_text())
ALERTS = [rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
QUERIES += [rule["expr"] for rule in ALERTS]
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="needs Prometheus: apt-get install prometheus"
)


class Drifting(Detector):
    def report(self):
        report = super().report().as_dict() | {"verdict": "drift", "log10_capital": {"brightness": 4.5}}
        return type("Report", (), {"as_dict": lambda self: report})()


@pytest.fixture(scope="module")
def service(shop, tmp_path_factory):
    """A server that has done everything at least once that there is a metric for."""
    path = tmp_path_factory.mktemp("metrics") / "log.db"
    with closing(PredictionLog(path)) as log, serve(shop, log=log, watch=Watch(Drifting)) as service:
        log._connection.execute("INSERT INTO cursors VALUES ('wandb', 0, '{}')")
        ids = [send(service.client, route="/predict").json()["request_id"] for _ in range(20)]
        service.client.post("/feedback", json={"request_id": ids[-1], "label": 0})
        service.client.post("/reload_model")
        yield service


@pytest.fixture(scope="module")
def prometheus(service, tmp_path_factory):
    """A Prometheus server that scrapes the service every second, by the committed configuration else."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{service.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(FOLDER / "alerts.yml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log) as process,
    ):
        try:
            with httpx2.Client(base_url=f"http://{address}", verify=False) as client:
                yield client
        finally:
            process.terminate()


def ask(prometheus, query, enough=lambda result: result, seconds=20):
    """What Prometheus answers to `query` once that is `enough`."""
    deadline, result = time.monotonic() + seconds, []
    while time.monotonic() < deadline:
        try:
            result = prometheus.get("/api/v1/query", params={"query": query}).json()["data"]["result"]
        except (httpx2.TransportError, KeyError, ValueError):
            result = []  # it starts
        if enough(result):
            return result
        time.sleep(0.1)
    pytest.fail(f"{query} gave {result}")


@needs_prometheus
def test_prometheus_scrapes_the_service_and_knows_its_numbers(prometheus, service):
    assert ask(prometheus, "up{job='suite'} == 1")
    (requests,) = ask(prometheus, 'suite_requests_total{route="/predict",status="200"}')
    assert float(requests["value"][1]) == 20
    (quantile,) = ask(
        prometheus,
        'histogram_quantile(0.5, suite_request_seconds_bucket{route="/predict"})',
        lambda result: result and result[0]["value"][1] != "NaN",
    )
    assert 0 < float(quantile["value"][1]) < 1


@needs_prometheus
def test_a_drift_verdict_rings_the_alarm(prometheus):
    assert ask(prometheus, 'ALERTS{alertname="Drift",alertstate="firing"}')


@needs_prometheus
@pytest.mark.parametrize("query", QUERIES)
def test_prometheus_understands_every_query_of_dashboard_and_alerts(prometheus, query):
    assert ask(prometheus, "up == 1")
    answer = prometheus.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer


@needs_prometheus
@pytest.mark.parametrize("check", ["rules alerts.yml", "config prometheus.yml"])
def test_promtool_finds_nothing_wrong(check):
    command = ["promtool", "check", *check.split()]
    result = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "SUCCESS" in result.stdout


@needs_prometheus
def test_promtool_has_nothing_to_say_about_the_names(service):
    text = service.client.get("/metrics").text
    result = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_metric_of_dashboard_and_alerts_is_there(service):
    there = set(re.findall(r"^(suite_\w+?)(?:\{| )", service.client.get("/metrics").text, re.MULTILINE))
    named = {name for query in QUERIES for name in re.findall(r"suite_\w+", query)}
    assert named
    assert named - there == set()


def test_every_alert_says_what_happened_and_what_to_do():
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("page", "warning")
        assert rule["annotations"].keys() == {"summary", "action"}


def test_two_apps_count_apart():
    first, second = Metrics(), Metrics()
    first.responded("/predict", 200, 0.01)
    assert b"suite_requests_total{" in first.render()
    assert b"suite_requests_total{" not in second.render()
