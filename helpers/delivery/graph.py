"""The trained network as one ONNX file: what serving runs, and where its weights are kept.

The same file holds the weights that training starts from, so that the served and the stored weights cannot differ.
Kernels are kept in half precision (30 MB for VGG16 instead of 60), everything else in single precision.
"""

from pathlib import Path

import numpy as np

OPSET = 17
INPUT = "images"
OUTPUTS = ("probabilities", "logits", "features")
EPSILON = 1e-3  # of batch normalisation, Keras' default


class GraphError(ValueError):
    """An ONNX file that does not hold what this suite writes."""


def write_onnx(path: Path, weights: dict[str, np.ndarray], config: dict, temperature: float = 1.0) -> None:
    """Writes VGG16 as an ONNX graph.

    Args:
        path: the file to write.
        weights: arrays by ``layer/variable``, as `training.model.get_weights` gives them (Keras layouts: kernels HWIO).
        config: the arguments of `training.model.build_vgg16`; ``mean`` and ``std`` (0 to 255) go into the graph.
        temperature: divides the logits before the softmax (Guo et al. 2017, "On Calibration of Modern Neural
            Networks"); above 0.

    The graph takes ``images``, uint8 (N, 32, 32, 3) RGB with N free, and gives ``probabilities`` and ``logits``,
    float32 (N, classes), and ``features``, float32 (N, units before the last layer).
    """
    import onnx
    from onnx import TensorProto, helper

    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    graph = _Graph(weights)
    x = graph.add("Cast", INPUT, to=TensorProto.FLOAT)
    x = graph.add("Sub", x, graph.constant("mean", config["mean"]))
    x = graph.add("Div", x, graph.constant("std", config["std"]))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    for layer in (name.removesuffix("/kernel") for name in weights if name.endswith("/kernel")):
        if "_conv" in layer:
            x = graph.add("Conv", x, graph.kernel(layer), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            x = graph.normalise_and_activate(x, layer.replace("conv", "bn"))
            if layer in _LAST_OF_BLOCK:
                x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            if layer == _LAST_OF_BLOCK[-1]:
                x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
        elif layer != "logits":
            x = graph.normalise_and_activate(graph.add("MatMul", x, graph.kernel(layer)), f"{layer}_bn")
    graph.add("Identity", x, output="features")
    graph.add("Gemm", x, graph.kernel("logits"), graph.variable("logits/bias"), output="logits")
    scaled = graph.add("Div", "logits", graph.constant("temperature", [temperature]))
    graph.add("Softmax", scaled, output="probabilities", axis=-1)

    classes, units = weights["logits/kernel"].shape[1], weights["logits/kernel"].shape[0]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vgg16",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", 32, 32, 3])],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
                for name, size in zip(OUTPUTS, (classes, classes, units), strict=True)
            ],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    Path(path).write_bytes(model.SerializeToString())


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """The weights in an ONNX file that `write_onnx` wrote: float32 by ``layer/variable``, in Keras' layouts.

    Raises:
        GraphError: if the file is not ONNX, holds no weights, or keeps tensors outside itself.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import TensorProto, numpy_helper

    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise GraphError(f"{path} is not an ONNX file: {error}") from error
    weights = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise GraphError(f"{path} keeps {tensor.name!r} in another file; only self-contained files are read")
        if "/" in tensor.name:  # constants of the graph have plain names
            try:
                array = numpy_helper.to_array(tensor).astype(np.float32)
            except (ValueError, TypeError, KeyError) as error:
                raise GraphError(
                    f"{path} holds {tensor.name!r} with other data than its shape needs: {error}"
                ) from error
            weights[tensor.name] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if not weights:
        raise GraphError(f"{path} holds no weights by layer/variable; it was not written by this suite")
    return weights


_LAST_OF_BLOCK = ("block1_conv2", "block2_conv2", "block3_conv3", "block4_conv3", "block5_conv3")


class _Graph:
    """Nodes and initializers in the making; each method returns the name of what it adds."""

    def __init__(self, weights):
        self.weights, self.nodes, self.initializers = weights, [], []

    def add(self, operator, *inputs, output=None, **attributes):
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, name, value, dtype=np.float32):
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def variable(self, name):
        return self.constant(name, self.weights[name])

    def kernel(self, layer):
        from onnx import TensorProto

        name, value = f"{layer}/kernel", self.weights[f"{layer}/kernel"]
        self.constant(name, value.transpose(3, 2, 0, 1) if value.ndim == 4 else value, np.float16)
        return self.add("Cast", name, to=TensorProto.FLOAT)

    def normalise_and_activate(self, x, layer):
        names = [self.variable(f"{layer}/{part}") for part in ("gamma", "beta", "moving_mean", "moving_variance")]
        return self.add("Relu", self.add("BatchNormalization", x, *names, epsilon=EPSILON))
