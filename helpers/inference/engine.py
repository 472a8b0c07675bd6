"""Runs the network of a bundle on whole batches: OpenVINO on the CPU, or Keras on a GPU."""

import logging
import math
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from helpers.delivery.bundle import Bundle
from helpers.delivery.graph import INPUT, OUTPUTS, GraphError, read_weights
from helpers.inference.int8 import is_faster_here, quantise
from helpers.training.backend import has_gpu, load_keras
from helpers.training.model import WeightsError, build_vgg16, set_weights

NICENESS = 5  # more than others have: a third of the event loop's weight where both want one core
ENGINES = ("auto", "openvino", "openvino-float", "keras")

log = logging.getLogger(__name__)


class ModelRejected(ValueError):
    """A network that must not serve; the message says what is wrong with it and how far off it is."""


@dataclass(frozen=True)
class Scores:
    """What the network says about n images, all float32.

    Attributes:
        probabilities: (n, classes), rows sum to 1.
        logits: (n, classes), before temperature and softmax.
        features: (n, units), the input of the last layer.
    """

    probabilities: np.ndarray
    logits: np.ndarray
    features: np.ndarray

    def row(self, index: int) -> "Scores":
        """One image alone: views, in arrays of one row."""
        rows = slice(index, index + 1)
        return Scores(self.probabilities[rows], self.logits[rows], self.features[rows])


def open_engine(bundle: Bundle, name: str = "auto", threads: int | None = None) -> "OpenVinoEngine | KerasEngine":
    """The engine called `name` with the network of `bundle`.

    "auto" and "openvino" are OpenVINO, in 8 bits where the bundle says how and the processor gains by it;
    "openvino-float" does without.

    Raises:
        ValueError: if there is no such engine, or "keras" is asked for where there is no GPU.
        ModelRejected: if the network cannot be compiled.
    """
    if name not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {name!r}")
    if name == "keras":
        if not has_gpu():
            raise ValueError("engine 'keras' needs a GPU and Keras sees none; choose engine 'auto'")
        return KerasEngine(bundle)
    quantised = bundle.quantisation if name != "openvino-float" and is_faster_here() else None
    return OpenVinoEngine(bundle.model_path, threads or available_cpus(), quantised and quantised.ranges)


class OpenVinoEngine:
    """One compiled network with its batch dimension free.

    The plugin keeps what it prepared for each batch size it has met (about 12 ms at the first meeting). Measured on
    two cores against padding to 1, 2, 4 ... 32: equal where sizes match, up to a third faster between them, ready
    in a tenth of the time of six fixed networks and in a fifth of their memory.

    It is compiled a second time, for batches that come while another is computed: each has half the threads, which
    wait for each other less. On Linux these step back behind those that answer, on the cores they share.

    Args:
        ranges: of the convolutions that shall compute in 8 bits, see `inference.int8.quantise`; None for none.

    Attributes:
        precision: of the convolutions and dense layers as compiled, e.g. "bf16"; "bf16+int8" where they differ.
        threads: of a batch that has the engine for itself.
        streams: batches that are computed at once where they share it: 2, or 1 of an odd number of threads.
    """

    name = "openvino"

    def __init__(self, model_path: Path, threads: int, ranges: Mapping[str, float] | None = None) -> None:
        import openvino

        core = openvino.Core()
        try:
            network = core.read_model(model_path)
        except RuntimeError as error:
            raise ModelRejected("model.onnx is not a network that OpenVINO reads; export it again") from error
        inputs, outputs = (
            {name: port for port in ports for name in port.names} for ports in (network.inputs, network.outputs)
        )
        if set(inputs) != {INPUT} or not set(OUTPUTS) <= set(outputs):
            raise ModelRejected(
                f"model.onnx must take {INPUT} and give {', '.join(OUTPUTS)}; "
                f"it takes {', '.join(inputs) or 'nothing'} and gives {', '.join(outputs) or 'nothing'}"
            )
        given = f"{inputs[INPUT].element_type.get_type_name()} {inputs[INPUT].partial_shape}"
        if given != "u8 [?,32,32,3]":
            raise ModelRejected(f"model.onnx must take u8 [?,32,32,3] images, it takes {given}")
        if ranges:
            try:
                quantise(network, ranges)
            except ValueError as error:
                raise ModelRejected(f"quantisation.json and model.onnx do not fit together: {error}") from error
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        options["ENABLE_CPU_PINNING"] = False  # a pinned thread waits for its core while the event loop has it

        self.streams = 1 if threads % 2 else 2

        def compiled(streams):
            return core.compile_model(network, "CPU", options | {"NUM_STREAMS": streams})

        try:
            alone = compiled(1)
            with ThreadPoolExecutor(1, initializer=_step_back) as pool:  # threads inherit priority from who makes them
                shared = pool.submit(compiled, self.streams).result()
        except RuntimeError as error:
            raise ModelRejected("model.onnx cannot be compiled by OpenVINO; export it again") from error
        self.precision = _compiled_precision(alone)
        self.threads = alone.get_property("INFERENCE_NUM_THREADS")
        self._alone, self._shared = _make_requests(alone), _make_requests(shared)

    def run(self, images: np.ndarray, *, shared: bool = False) -> Scores:
        """Scores of uint8 (n, 32, 32, 3) images; whether they make sense is for the caller to check.

        Two threads may call it at once.

        Args:
            shared: whether another batch is computed meanwhile.
        """
        free = self._shared if shared else self._alone
        request = free.get()
        try:
            request.start_async({INPUT: images})  # infer() would compute in this thread, which needs the GIL
            request.wait()
            results = request.results
        except RuntimeError as error:
            raise ModelRejected(f"model.onnx fails on a batch of {len(images)} images; export it again") from error
        finally:
            free.put(request)
        return Scores(*(results[name] for name in OUTPUTS))


def _make_requests(compiled):
    """Places for two batches: with one stream OpenVINO begins the second when the first is done."""
    free = SimpleQueue()
    for _ in range(2):
        free.put(compiled.create_infer_request())
    return free


class KerasEngine:
    """The network rebuilt in code, with the weights that `model.onnx` keeps; batches are padded to powers of two.

    Attributes:
        precision: the dtype Keras computes in (a GPU may round the factors of float32 products to TF32).
        threads: 0; the work is not on the CPU.
        streams: 1; batches are computed one after the other.
    """

    name, threads, streams = "keras", 0, 1

    def __init__(self, bundle: Bundle) -> None:
        keras = load_keras()

        try:
            network = build_vgg16(**bundle.manifest.config)
            set_weights(network, read_weights(bundle.model_path))
        except (GraphError, WeightsError, TypeError, ValueError) as error:
            raise ModelRejected(
                "model.onnx and the config of the manifest do not fit together; export again"
            ) from error
        self.precision = network.compute_dtype
        self._network = keras.Model(network.inputs, [network.outputs[0], network.features])
        self._temperature = bundle.manifest.temperature
        self._one_at_a_time = threading.Lock()

    def run(self, images: np.ndarray, *, shared: bool = False) -> Scores:
        """As `OpenVinoEngine.run`; `shared` is of no effect."""
        padded = np.zeros((2 ** math.ceil(math.log2(len(images))), *images.shape[1:]), np.float32)
        padded[: len(images)] = images
        with self._one_at_a_time:
            outputs = self._network.predict_on_batch(padded)
        logits, features = (np.asarray(output, np.float32)[: len(images)] for output in outputs)
        scaled = logits / self._temperature
        exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return Scores(exponents / exponents.sum(axis=1, keepdims=True), logits, features)


def run_batches(
    engine: OpenVinoEngine | KerasEngine, images: np.ndarray, size: int = 32, *, shared: bool = False
) -> Scores:
    """Scores of any number of images, `size` at a time: more is no faster an image, and would grow the buffers."""
    parts = [engine.run(images[start : start + size], shared=shared) for start in range(0, len(images), size)]
    return Scores(*(np.concatenate([getattr(part, name) for part in parts]) for name in Scores.__annotations__))


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Whole CPUs that this process may use: its affinity, and its container's quota where one is set; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()  # cgroup v2
    except OSError:
        try:  # cgroup v1
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{part}_us").read_text(encoding="ascii") for part in ("quota", "period")
            )
        except OSError:
            return allowed
    if quota == "max" or int(quota) <= 0:
        return allowed
    return max(1, min(allowed, int(quota) // int(period)))


def _step_back():
    if sys.platform == "linux":  # elsewhere priority is of the process
        thread = os.PRIO_PROCESS, threading.get_native_id()
        try:
            os.setpriority(*thread, min(19, os.getpriority(*thread) + NICENESS))  # 19 is the last
        except OSError as error:  # a sandbox may forbid it
            log.warning("threads cannot step back here (%s); under overload, refusals come a little later", error)


def _compiled_precision(compiled):
    precisions = set()
    for operation in compiled.get_runtime_model().get_ops():
        notes = operation.get_rt_info()
        if notes["layerType"].get() in ("Convolution", "FullyConnected", "MatMul"):
            precision = notes["runtimePrecision"].get()
            precisions.add("int8" if precision in ("i8", "u8") else precision)
    return "+".join(sorted(precisions)) or "none"
