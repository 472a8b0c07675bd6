"""Whether a network may serve in 8 bits, and with which ranges: found when it is published, on images it learned from.

Ranges are the largest inputs that calibration images give, plain and under every known corruption: chosen for the
least error on plain images they cut what unusual images are made of, and the network is then sure of wrong answers.
The widest are those of the first convolutions, in which 256 levels are few; these stay as they are.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from helpers.data.corruptions import CORRUPTIONS, corrupt
from helpers.data.dataset import Split, choose_per_class
from helpers.delivery.quantisation import Quantisation
from helpers.inference.engine import OpenVinoEngine, available_cpus, run_batches
from helpers.inference.int8 import is_faster_here, rectified_inputs
from helpers.inference.loader import GOLDEN_TOLERANCE
from helpers.training.evaluation import fit_temperature, paired_difference, softmax

TOLERANCE = 0.003  # loss of top-1, 0 to 1
KEPT = ("block1_conv2", "block2_conv1")  # a sixth of the products; without them the error of probabilities halves
PER_CLASS = 3  # calibration images
CORRUPTED = 32  # of them, by each corruption
WORST = 5  # severity


@dataclass(frozen=True)
class Choice:
    """How a network will be served.

    Attributes:
        engine: with it.
        quantisation: how it becomes 8-bit; None where it stays as it is.
        reason: one sentence.
    """

    engine: OpenVinoEngine
    quantisation: Quantisation | None
    reason: str


def choose_engine(
    model_path: Path,
    training: Split,
    validation: Split,
    golden: np.ndarray,
    *,
    int8: bool = True,
    temperature: float | None = None,
) -> Choice:
    """The engine of a network that was just exported: in 8 bits if that loses at most `TOLERANCE` of top-1.

    Args:
        model_path: ONNX file of `delivery.graph.write_onnx`.
        training: some of its images give the ranges.
        validation: both are compared on these, image by image.
        golden: uint8 (n, 32, 32, 3), for which both must answer nearly the same, as at every load.
        int8: False keeps the network as it is.
        temperature: that it will be published with; None is the one that the validation images ask for.
    """
    plain = OpenVinoEngine(model_path, available_cpus())
    if not int8:
        return Choice(plain, None, f"8 bits were not asked for; {plain.precision} serves")
    if not is_faster_here():
        return Choice(plain, None, f"8 bits are not known to be faster on this processor; {plain.precision} serves")
    chosen = training.images[choose_per_class(training.labels, PER_CLASS)]
    ranges = find_ranges(model_path, chosen)
    quantised = OpenVinoEngine(model_path, available_cpus(), ranges)
    logits = [run_batches(engine, validation.images).logits for engine in (quantised, plain)]
    right, before = (each.argmax(axis=1) == validation.labels for each in logits)
    difference, low, high = paired_difference(right, before)
    found = (
        f"8 bits change top-1 on {len(validation):,} validation images by {difference:+.4f} "
        f"(95 % interval {low:+.4f} to {high:+.4f})"
    )
    if difference < -TOLERANCE:
        return Choice(plain, None, f"{found}, more than {TOLERANCE:g} is lost; {plain.precision} serves")
    temperature = temperature or fit_temperature(logits[0], validation.labels)
    one, other = (softmax(engine.run(golden).logits / temperature, axis=1) for engine in (quantised, plain))
    distance = float(np.abs(one - other).max())
    if distance > GOLDEN_TOLERANCE / 2:  # the other half is for other processors
        return Choice(plain, None, f"8 bits move a golden probability by {distance:.3f}; {plain.precision} serves")
    quantisation = Quantisation(
        ranges=ranges,
        calibration_images=len(chosen),
        validation_images=len(validation),
        float_top1=before.mean(),
        int8_top1=right.mean(),
        difference=difference,
        interval=(low, high),
    )
    return Choice(quantised, quantisation, f"{found}, at most {TOLERANCE:g} is lost; {quantised.precision} serves")


def find_ranges(model_path: Path, images: np.ndarray) -> dict[str, float]:
    """The largest input of each convolution behind a ReLU but `KEPT`, by name, over uint8 (n, 32, 32, 3) `images`."""
    import openvino
    from openvino import opset15 as opset

    core = openvino.Core()
    network = core.read_model(model_path)
    ports = {name: port for name, port in rectified_inputs(network).items() if name not in KEPT}
    outputs = len(network.outputs)
    network.add_outputs([opset.reduce_max(port, np.arange(4)).output(0) for port in ports.values()])
    request = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    few = images[:CORRUPTED]
    largest = np.zeros(len(ports))
    for batch in (*np.split(images, range(32, len(images), 32)), *(corrupt(few, name, WORST) for name in CORRUPTIONS)):
        found = list(request.infer([batch]).values())[outputs:]
        largest = np.maximum(largest, np.ravel(found))
    largest[largest == 0] = 1  # nothing passes that ReLU
    return dict(zip(ports, largest.tolist(), strict=True))
