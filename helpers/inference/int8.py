"""Makes convolutions of a float network 8-bit while it is loaded: a few nodes more, which OpenVINO's plugin folds.

Weights become signed, symmetric, with a scale for each output channel; their inputs, which are never negative behind
a ReLU, unsigned with one range a layer (Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient
inference"). Sums are exact, in 32 bits.
"""

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from openvino import Model, Node, Output

KERNEL = "/kernel"
LEVELS = 256


def is_faster_here() -> bool:
    """Whether this processor is one on which 8 bits were measured to be faster than floats.

    They were two to five times as fast as float32 with every instruction set from SSE4.2 to AVX-512, and 1.5 to 2
    times as fast as bfloat16 with AMX, with the same accuracy. On others nothing was measured.
    """
    return platform.machine().lower() in ("x86_64", "amd64")


def find_convolutions(network: "Model") -> "dict[str, Node]":
    """The convolutions of `network` behind a ReLU, by name, e.g. "block3_conv2", in their order."""
    found = {}
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Convolution" and _rectified(node).get_node().get_type_name() == "Relu":
            name = _kernel(node).get_friendly_name()
            if name.endswith(KERNEL):
                found[name.removesuffix(KERNEL)] = node
    return found


def quantise(network: "Model", ranges: Mapping[str, float]) -> None:
    """Makes the convolutions of `network` that `ranges` names compute in 8 bits.

    Args:
        ranges: upper end of each one's input, above 0; what lies above is cut.

    Raises:
        ValueError: if it names what is no convolution behind a ReLU.
    """
    from openvino import opset15 as opset

    convolutions = find_convolutions(network)
    if unknown := sorted(ranges.keys() - convolutions.keys()):
        raise ValueError(f"ranges must name convolutions behind a ReLU; {unknown[0]!r} is none in this network")
    for name, high in ranges.items():
        convolution = convolutions[name]
        source = _rectified(convolution)
        consumers = source.get_target_inputs()
        low, high = (opset.constant(np.float32(value)) for value in (0, high))
        rounded = opset.fake_quantize(source, low, high, low, high, LEVELS)
        for consumer in consumers:
            consumer.replace_source_output(rounded.output(0))
        kernel = _kernel(convolution).data.astype(np.float32)
        scale = np.abs(kernel).max(axis=(1, 2, 3), keepdims=True) / 127
        scale[scale == 0] = 1
        levels = opset.convert(opset.constant(np.rint(kernel / scale).astype(np.int8)), "f32")
        convolution.input(1).replace_source_output(opset.multiply(levels, opset.constant(scale)).output(0))


def rectified_inputs(network: "Model") -> "dict[str, Output]":
    """Where the input of each of `find_convolutions` leaves its ReLU, before any pooling."""
    return {name: _rectified(node) for name, node in find_convolutions(network).items()}


def _rectified(convolution):
    output = convolution.input(0).get_source_output()
    while output.get_node().get_type_name() == "MaxPool":  # rounding before it is the same, and pools bytes
        output = output.get_node().input(0).get_source_output()
    return output


def _kernel(convolution):
    node = convolution.input(1).get_source_output().get_node()
    return node.input(0).get_source_output().get_node() if node.get_type_name() == "Convert" else node
