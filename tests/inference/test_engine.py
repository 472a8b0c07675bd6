import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import QUANTISATION, make_bundle
from onnx import TensorProto, helper

from helpers.inference.engine import (
    NICENESS,
    KerasEngine,
    ModelRejected,
    OpenVinoEngine,
    available_cpus,
    open_engine,
)
from helpers.inference.int8 import is_faster_here


@pytest.fixture(scope="module")
def served_bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("engine") / "bundle")


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("int8") / "bundle", quantisation=QUANTISATION)


def write_graph(path, *, dtype=TensorProto.UINT8, shape=("N", 32, 32, 3), name="images", outputs=3):
    """A graph of the right form (but for the changes asked for) whose three outputs are the mean of each image."""
    names = ("probabilities", "logits", "features")[:outputs]
    nodes = [helper.make_node("Cast", [name], ["x"], to=TensorProto.FLOAT)]
    nodes += [helper.make_node("ReduceMean", ["x"], [output], axes=[1, 2], keepdims=0) for output in names]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info(name, dtype, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 3]) for output in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_it_gives_all_outputs_for_any_batch_size(tmp_path):
    engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), threads=1)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for count in (1, 3, 5):
        scores = engine.run(images[:count])
        for output in (scores.probabilities, scores.logits, scores.features):
            np.testing.assert_allclose(output, images[:count].mean((1, 2)), rtol=0.01)


def test_results_outlive_the_next_runs(tmp_path):
    engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), threads=1)
    black, white = (np.full((1, 32, 32, 3), level, np.uint8) for level in (0, 255))
    first = engine.run(black).probabilities
    for _ in range(3):
        engine.run(white)
    assert first.max() == 0


def test_threads_that_call_it_at_once_get_each_their_own_scores(tmp_path):
    engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), threads=1)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda level: engine.run(np.full((2, 32, 32, 3), level, np.uint8)).logits, range(256))
    for level, logits in enumerate(found):
        np.testing.assert_allclose(logits, level, rtol=0.01)


@pytest.mark.parametrize(("threads", "streams"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_batches_that_share_it_get_the_same_scores(tmp_path, threads, streams):
    engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), threads)
    assert engine.streams == streams
    batches = np.random.default_rng(1).integers(0, 256, (8, 5, 32, 32, 3), dtype=np.uint8)
    expected = [engine.run(images).logits for images in batches]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda images: engine.run(images, shared=True).logits, batches))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
@pytest.mark.parametrize("own", [0, 15])
def test_where_batches_share_it_the_threads_that_answer_come_first(tmp_path, own):
    def priorities():
        return [os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir("/proc/self/task")]

    def opened():
        here = os.PRIO_PROCESS, threading.get_native_id()
        os.setpriority(*here, own)
        before = priorities()
        engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), 2)
        engine.run(np.zeros((1, 32, 32, 3), np.uint8), shared=True)
        behind = min(19, own + NICENESS)
        return priorities().count(behind) - before.count(behind), os.getpriority(*here)

    with ThreadPoolExecutor(1) as pool:
        more, here = pool.submit(opened).result()
    assert more > 0
    assert here == own


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
def test_where_threads_may_have_no_priority_of_their_own_it_says_so_and_serves(tmp_path, monkeypatch, caplog):
    def forbidden(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    engine = OpenVinoEngine(write_graph(tmp_path / "model.onnx"), 2)
    assert len(engine.run(np.zeros((3, 32, 32, 3), np.uint8), shared=True).logits) == 3
    assert "threads cannot step back here ([Errno 1] Operation not permitted)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dtype": TensorProto.FLOAT}, r"must take u8 \[\?,32,32,3\] images, it takes f32 \[\?,32,32,3\]"),
        ({"shape": ("N", 64, 64, 3)}, r"must take u8 \[\?,32,32,3\] images, it takes u8 \[\?,64,64,3\]"),
        ({"shape": (1, 32, 32, 3)}, r"must take u8 \[\?,32,32,3\] images, it takes u8 \[1,32,32,3\]"),
        ({"name": "pixels"}, "must take images and give probabilities, logits, features; it takes pixels"),
        ({"outputs": 2}, "it takes images and gives probabilities, logits"),
    ],
)
def test_a_graph_of_another_form_is_refused(tmp_path, changes, sentence):
    with pytest.raises(ModelRejected, match=sentence):
        OpenVinoEngine(write_graph(tmp_path / "model.onnx", **changes), threads=1)


@pytest.mark.parametrize("data", [b"", b"not a network", bytes(100)])
def test_a_file_that_is_no_graph_is_refused_without_its_path(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelRejected, match=r"^model\.onnx ") as refusal:
        OpenVinoEngine(path, threads=1)
    assert str(tmp_path) not in str(refusal.value)


def test_precision_and_threads_are_those_of_the_compiled_network(served_bundle):
    engine = open_engine(served_bundle, "openvino", threads=1)
    with open("/proc/cpuinfo", encoding="ascii") as file:
        flags = file.read().split()
    assert engine.precision == ("bf16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "f32")
    assert engine.threads == 1


@pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
@pytest.mark.parametrize("name", ["auto", "openvino"])
def test_a_bundle_that_says_how_is_served_in_8_bits(int8_bundle, served_bundle, name):
    plain, quantised = open_engine(served_bundle, name).precision, open_engine(int8_bundle, name).precision
    assert quantised == "+".join(sorted({plain, "int8"}))


def test_such_a_bundle_is_served_in_floats_where_that_is_asked_for(int8_bundle, served_bundle):
    engine, plain = open_engine(int8_bundle, "openvino-float"), open_engine(served_bundle)
    images = int8_bundle.golden()[0]
    assert engine.precision == plain.precision
    np.testing.assert_array_equal(engine.run(images).logits, plain.run(images).logits)


def test_such_a_bundle_is_served_in_floats_on_a_processor_that_is_not_known_to_gain(int8_bundle, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "int8" not in open_engine(int8_bundle).precision


@pytest.mark.skipif(not is_faster_here(), reason="8 bits are not for this processor")
def test_ranges_of_another_network_are_refused(tmp_path):
    other = QUANTISATION.model_copy(update={"ranges": {"conv1": 1.0}})
    bundle = make_bundle(tmp_path / "bundle", quantisation=other)
    sentence = "quantisation.json and model.onnx do not fit together: ranges must name .*; 'conv1' is none"
    with pytest.raises(ModelRejected, match=sentence):
        open_engine(bundle)


def test_an_unknown_engine_is_refused_with_the_known_ones(served_bundle):
    with pytest.raises(ValueError, match="engine must be one of auto, openvino, openvino-float, keras, got 'tpu'"):
        open_engine(served_bundle, "tpu")


def test_keras_computes_what_openvino_computes_and_ignores_8_bits(served_bundle, int8_bundle):
    images, expected = served_bundle.golden()
    engine = KerasEngine(int8_bundle)  # the same weights
    scores, other = engine.run(images[:3]), open_engine(served_bundle).run(images[:3])
    np.testing.assert_allclose(scores.probabilities, expected[:3], atol=1e-3)
    np.testing.assert_allclose(scores.logits, other.logits, atol=0.1)
    np.testing.assert_allclose(scores.features, other.features, atol=0.1)
    assert (engine.precision, engine.threads) == ("float32", 0)


def test_keras_without_a_gpu_is_refused(served_bundle):
    import keras

    if keras.distribution.list_devices("gpu"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="engine 'keras' needs a GPU and Keras sees none; choose engine 'auto'"):
        open_engine(served_bundle, "keras")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cpus_are_those_that_the_container_may_use(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert available_cpus(tmp_path) == expected
