"""benchmarks/: each command measures, writes its JSON file and prints its table; nothing here looks at the times."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from fastapi import FastAPI, Request, Response

from benchmarks import ablation, arms, budget, detectors, drift, load, plain, servers, serving, training
from benchmarks.budget import plan_recipe
from benchmarks.measuring import measure, summarise
from benchmarks.plain import build_plain
from helpers.client import encode_png
from helpers.data.corruptions import corrupt
from helpers.data.dataset import Split
from helpers.data.synthetic import draw_images
from helpers.hosting import Server
from helpers.inference.loader import load_model
from helpers.training import model
from helpers.training.model import build_vgg16, get_weights, make_config, set_weights
from helpers.workspace import ROOT

SHORT = {**budget.SHORT, "batch_size": 2, "resolutions": "32"}
CONFIG = make_config((129, 124, 112), (68, 65, 70), width=0.0625, dropout=0.0)


def draw(count: int, seed: int = 0) -> Split:
    random = np.random.default_rng(seed)
    return Split(random.integers(0, 256, (count, 32, 32, 3), np.uint8), random.integers(0, 100, count))


def test_the_plain_and_our_network_give_the_same_logits_from_the_same_weights():
    ours, stock = build_vgg16(**CONFIG), build_plain(**CONFIG)
    random = np.random.default_rng(0)
    weights = {name: array + random.random(array.shape) / 10 for name, array in get_weights(ours).items()}
    for network in (ours, stock):
        set_weights(network, weights)
    images = draw(16).images.astype(np.float32)
    for in_training in (False, True):
        first, second = (np.asarray(network(images, training=in_training)) for network in (ours, stock))
        assert np.ptp(first) > 0.1
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def test_the_operations_of_an_image_at_width_1_are_those_of_the_literature():
    assert training.training_gflop(CONFIG | {"width": 1.0}) == pytest.approx(1.883, abs=0.001)


def test_arms_run_in_turns_after_a_warm_up():
    calls = []
    rates = measure({name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 4)
    assert "".join(calls) == "ab" + "abba" * 2
    assert rates == {"a": [3, 6, 7, 10], "b": [4, 5, 8, 9]}


def test_an_interval_holds_its_median():
    summary = summarise([3.0, 1.0, 2.0, 5.0, 4.0])
    assert summary["median"] == 3.0
    assert 1.0 <= summary["low"] < 3.0 < summary["high"] <= 5.0


@pytest.mark.parametrize(("seconds", "epochs"), [(10, 3), (100, 3), (1000, 17)])
def test_a_plan_fills_its_time_with_the_fewest_epochs(seconds, epochs):
    speeds = {16: 1000.0, 24: 500.0, 32: 250.0}
    recipe, images = plan_recipe(seconds, speeds, 1.0, 27_000, batch_size=100, resolutions="16 24 32")
    taken = sum(images / speeds[recipe.resolution(epoch)] + 1 for epoch in range(recipe.epochs))
    assert 0.8 * seconds < taken <= seconds
    assert recipe.epochs == epochs
    assert images <= 27_000


def test_a_run_that_missed_its_time_is_planned_anew_by_what_it_took():
    asked = []

    def train(longer):
        asked.append(longer)
        return {"seconds": 360 * longer}  # its probe was 20 % too fast

    assert budget.fill(train, 300) == {"seconds": pytest.approx(0.97 * 300)}
    assert asked == [1.0, pytest.approx(0.97 * 300 / 360)]


def test_of_runs_that_all_miss_their_time_the_nearest_counts():
    seconds = iter([150, 320, 400])
    assert budget.fill(lambda longer: {"seconds": next(seconds)}, 300) == {"seconds": 320}


def test_the_command_writes_json_and_prints_a_table(tmp_path, monkeypatch, capsys):
    data = {"title": "noise", "source": "noise", "fingerprint": "0" * 64, "synthetic": True}
    monkeypatch.setattr(training, "load_data", lambda: (data, draw(64), draw(16, seed=1)))
    monkeypatch.setattr(arms, "GEMM_SIZES", (8,))
    monkeypatch.setattr(arms, "CONVOLUTIONS", ((4, 8),))
    monkeypatch.setattr(budget, "SHORT", SHORT)
    monkeypatch.setattr(budget, "TRIES", 1)  # so short a time is missed by all
    for module in (model, plain):
        monkeypatch.setattr(module, "BLOCKS", ((64, 1), (64, 1)))  # tracing takes its time by the layer
    tiny = ["--width=0.0625", "--batch-size=8", "--steps=2", "--repeats=2", "--xla-limit=0", "--seconds=1"]

    training.main([*tiny, f"--output={tmp_path}/results/training.json"])

    result = json.loads((tmp_path / "results" / "training.json").read_text())
    assert result.keys() >= {
        "environment",
        "data",
        "options",
        "xla",
        "better_plain",
        "ratio",
        "overhead",
        "share_of_peak",
    }
    assert result["images_per_second"].keys() == {"ours", "ours, bare step", "plain"}
    assert len(result["gflop_per_second"]) == 4
    assert {len(summary["values"]) for summary in result["images_per_second"].values()} == {2}
    assert result["environment"].keys() >= {"cpu", "cpu_flags", "cpus", "versions", "precision", "commit"}
    for arm in ("ours", "plain"):
        assert 0 <= result["accuracy"][arm]["accuracy"] <= 1
        assert result["accuracy"][arm]["images"] > 0
    assert str(tmp_path) not in json.dumps(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("noise; XLA skipped")
    assert len([line for line in lines if re.search(r" to -?\d+\.\d\d  ", line)]) == 10
    assert len([line for line in lines if "validation after" in line]) == 2


def test_a_count_below_its_least_is_refused(capsys):
    with pytest.raises(SystemExit):
        training.main(["--repeats=0"])
    assert "--repeats and --steps must be at least 1" in capsys.readouterr().err


@pytest.fixture
def ablate(tmp_path, monkeypatch):
    """Runs the ablation on noise with a tiny network; its JSON file is x.json in `tmp_path`."""
    data = {"title": "noise", "source": "noise", "fingerprint": "0" * 64, "synthetic": True}
    monkeypatch.setattr(ablation, "load_data", lambda: (data, draw(64), draw(16, seed=1)))
    monkeypatch.setattr(budget, "SHORT", SHORT)
    monkeypatch.setattr(model, "BLOCKS", ((64, 1), (64, 1)))
    tiny = ["--width=0.0625", "--images=40", "--pairs=1", f"--output={tmp_path}/x.json"]
    return lambda *options: ablation.main([*tiny, *options])


def test_the_ablation_trains_every_arm_and_says_what_each_change_is_worth(ablate, tmp_path, capsys):
    chosen = ["as it is", "layers of Keras", "float32", "no momentum"]
    ablate("--arms", *chosen)
    result = json.loads((tmp_path / "x.json").read_text())
    assert list(result["arms"]) == list(result["costs"]) == chosen
    assert result["arms"]["as it is"]["images_an_epoch"] == 40
    assert all(0 <= row["accuracy"] <= 1 and row["images_an_epoch"] >= 2 for row in result["arms"].values())
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(chosen)
    assert re.search(r"^as it is .* \+0\.00 .* 40   \+0\.00 to \+0\.00$", lines[2])
    assert not (tmp_path / "x.part.json").exists()


def test_an_ablation_that_was_cut_goes_on_with_the_next_arm(ablate, tmp_path, monkeypatch):
    trained = []

    def count(network, *rest, **options):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(network)
        return []

    monkeypatch.setattr(ablation, "train", count)
    with pytest.raises(KeyboardInterrupt):
        ablate("--arms", "as it is", "no warmup")
    kept = json.loads((tmp_path / "x.part.json").read_text())
    assert (list(kept["costs"]), list(kept["arms"])) == (["as it is"], ["as it is"])
    with pytest.raises(SystemExit, match="remove it"):
        ablate("--arms", "as it is", "--images=41")
    monkeypatch.setattr(ablation, "measure", None)
    trained.clear()
    ablate("--arms", "as it is", "no warmup")
    assert len(trained) == 1


def test_costs_alone_are_kept_for_the_run_that_trains(ablate, tmp_path):
    with pytest.raises(SystemExit, match="without --costs"):
        ablate("--arms", "as it is", "no warmup", "--costs")
    kept = json.loads((tmp_path / "x.part.json").read_text())
    assert (list(kept["costs"]), kept["arms"]) == (["as it is"], {})


def test_the_unchanged_arm_gets_the_images_that_were_asked_for_whatever_its_steps_cost():
    random, sides, epochs = np.random.default_rng(0), ("16", "24", "32"), budget.SHORT["resolutions"].split()
    for _ in range(1000):
        costs = {"as it is": {side: {"median": random.uniform(0.2, 1.0)} for side in {*sides, *epochs}}}
        asked = len(epochs) * budget.SHORT["batch_size"] * int(random.integers(1, 100))
        _, images = ablation.plan("as it is", costs, asked, available=10**6)
        assert images * len(epochs) == asked


def test_an_arm_of_the_ablation_gets_as_many_images_as_cost_what_the_unchanged_recipe_costs(monkeypatch):
    costs = {
        "as it is": {"16": {"median": 0.5}, "32": {"median": 1.0}},
        "float32": {"16": {"median": 2.0}, "32": {"median": 4.0}},
    }
    planned = {name: ablation.plan(name, costs, 3840, 10_000) for name in ("as it is", "no warmup", "float32")}
    assert {name: images for name, (_, images) in planned.items()} == {
        "as it is": 1280,
        "no warmup": 1280,
        "float32": 384,
    }
    recipe, images = ablation.plan("32 px from the start", costs, 3840, 10_000)
    assert (recipe.epochs, images) == (1, 2560)


@pytest.fixture
def port():
    app = FastAPI()

    @app.post("/predict_single")
    async def predict_single(request: Request) -> Response:
        body = await request.body()
        return Response("busy", 503) if b"busy" in body else Response(f"{len(body)}")

    with Server(app, port=0) as server:
        yield server.port


def test_clients_in_a_closed_loop_time_every_answer_and_tell_refusals_apart(port):
    requests = [load.post_file("/predict_single", data) for data in (b"1", b"busy", b"333")]

    found = asyncio.run(load.closed_loop(port, requests, connections=3, seconds=0.2))

    assert set(found.statuses) == {200, 503}
    assert len(found.latencies) == found.statuses[200] > 10
    assert len(found.refused) == found.statuses[503]
    assert len(found.bodies) == 3
    answers = found.as_dict()
    assert answers["requests_per_second"] == pytest.approx(found.statuses[200] / found.seconds)
    assert 0 < answers["ms"]["p50"] <= answers["ms"]["p99"] < 1000


def test_an_open_loop_sends_as_often_as_asked_whatever_comes_back(port):
    requests = [load.post_file("/predict_single", b"busy")]

    found = asyncio.run(load.open_loop(port, requests, rate=200, seconds=0.5))

    assert 60 < found.statuses[503] < 150  # 100 on average, standard deviation 10
    assert found.as_dict()["ms"]["p50"] is None


def test_a_server_that_is_not_there_is_counted_and_not_waited_for():
    found = asyncio.run(load.closed_loop(1, [load.get("/")], connections=1, seconds=0.05))

    assert set(found.statuses) == {0}


def test_the_serving_benchmark_writes_json_and_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(servers, "PEERS", tmp_path / "python")
    options = ["--repeats=1", "--seconds=0.3", "--data=synthetic", f"--output={tmp_path}/serving.json"]

    serving.main([*options, "--connections", "1", "--arms", "ours", "mosec"])
    serving.main([*options, "--connections", "2", "--kinds", "PNG", "--arms", "ours", "--add"])

    result = json.loads((tmp_path / "serving.json").read_text())
    assert result["loads"].keys() == {"PNG 1", "JPEG 1", "PNG 2"}
    for load_of_kind in result["loads"].values():
        assert load_of_kind["ours"]["errors"] == 0
        assert load_of_kind["ours"]["requests_per_second"]["median"] > 0
    assert result["overload"]["goodput"]["median"] > 0
    assert result["swap"]["statuses"].keys() == {"200"}
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if " connections, ours" in line]) == 2 + 3
    assert "mosec: not measured, not installed; make bench-serving installs it" in lines
    assert lines[-1].startswith("ours while its model is swapped under 8 clients: ")


def test_the_drift_benchmark_writes_json_and_prints_a_table(tmp_path, monkeypatch, capsys):
    def look(options):
        looker = drift.Looker(load_model(ROOT / "model"))
        random = np.random.default_rng(0)
        labels = np.tile(np.arange(100), 4)
        images = draw_images(labels, seed=1)
        clean = np.repeat(looker.rows(images), 3, axis=0) + random.normal(0, 0.01, (1200, 8)).astype(np.float32)
        changes = {"contrast 5": (looker.rows(corrupt(images[:200], "contrast", 5)), 0.5)}
        return {"title": "drawn"}, looker, clean, np.arange(200), changes, images[:64]

    monkeypatch.setattr(drift, "look", look)
    few = ["--streams=4", "--length=300", "--baseline-streams=4", "--repeats=2", "--clean=50", "--river"]

    drift.main([*few, f"--output={tmp_path}/drift.json"])

    result = json.loads((tmp_path / "drift.json").read_text())
    assert result["false_alarms"]["streams"] == 4
    row = result["delays"]["contrast 5"]
    detectors = {"ours, guaranteed", "ours, unforeseen", "ours", "windowed KS", "windowed KS, likenesses"}
    assert row.keys() == {"loss", "images", *detectors, "oracle"}
    assert result["summary"].keys() == detectors
    assert 0 < row["oracle"]["median"] < 100
    assert result["cost"]["kilobytes"] > 0
    assert any(line.startswith("contrast 5 ") for line in capsys.readouterr().out.splitlines())


def test_delays_count_from_the_change_and_what_rang_before_it_does_not_count():
    trace = np.array([0, 1, 0, 3, 9])
    assert [detectors.first_at(trace, line, start=3) for line in (1, 2, 5, 10)] == [-1, 1, 2, None]
    assert drift.tell([-1, 1, 2, None, 4], length=50) == {"median": 3.0, "seen": 0.75}


def test_the_oracle_is_the_cusum_of_its_definition():
    ratios = np.array([-1.0, 2, -0.5, -3, 1, 1])
    assert detectors.oracle_trace(ratios).tolist() == [0, 2, 1.5, 0, 1, 2]


def test_a_windowed_distance_is_that_of_kolmogorov_and_smirnov():
    bins = np.zeros((120, 1), int)
    found = detectors.ks_trace(np.array([[25, 25, 25, 25]]), bins)
    assert found[98] == 0
    assert found[99:] == pytest.approx(0.75)


@pytest.mark.skipif(not servers.PEERS.exists(), reason="needs the peers: make bench-serving installs them")
@pytest.mark.parametrize("name", [name for name, arm in servers.ARMS.items() if arm.peer])
def test_each_peer_that_is_installed_names_what_an_image_shows(name):
    model, image = load_model(ROOT / "model"), np.full((32, 32, 3), 200, np.uint8)
    right = model.labels.fine[model.predict(image[None]).probabilities.argmax()]
    with servers.running(servers.ARMS[name], encode_png(image), right) as running:
        assert running.start_s > 0
        assert servers.cpu_seconds(running.pid) > 0.1


def test_servers_that_are_asleep_take_no_processor_and_go_on_afterwards():
    two = f"import os\nmine = os.getpid()\nos.fork()\nwhile os.getppid() in ({os.getpid()}, mine): pass"
    with subprocess.Popen([sys.executable, "-c", two]) as process:

        def used(seconds):
            before = servers.cpu_seconds(process.pid)
            time.sleep(seconds)
            return servers.cpu_seconds(process.pid) - before

        server = servers.Running(port=0, pid=process.pid, start_s=0)
        time.sleep(0.2)
        with servers.asleep([server]):
            time.sleep(0.1)  # until a signal has reached what runs elsewhere
            assert used(0.3) == 0
        assert used(1) > 0.5
        process.kill()


def test_a_server_that_ends_by_itself_is_told_with_what_it_said_last():
    arm = servers.Arm(("-c", "import sys; print('no such model'); sys.exit(1)"), peer=False)
    with (
        pytest.raises(servers.NotStarted, match="no right answer; it says 'no such model'"),
        servers.running(arm, b"", "x"),
    ):
        pass
