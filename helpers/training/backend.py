"""Keras, imported when first needed and without the chatter that TensorFlow writes to stderr as it starts."""

import os
import platform
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IWE]0000 .*(port|cudart_stub|cpu_feature_guard|cuda_platform|computation_placer)\.cc"
    rb"|To enable the following instructions"
)


def load_keras() -> ModuleType:
    """The module keras, its backend started and its devices listed; lines on stderr that are no chatter are kept."""
    if "keras" in sys.modules:
        return sys.modules["keras"]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what TensorFlow logs later
    # Keeps the memory of a step for the next one. Otherwise each asks the system for about 1 GB anew, and that takes a
    # third of the time (VGG16, 32 images a step, two cores).
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            import keras

            keras.distribution.list_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            log.seek(0)
            kept = b"".join(line for line in log if line.strip() and not _CHATTER.match(line))
            os.write(2, kept)
    return keras


def has_gpu() -> bool:
    """Whether Keras sees a GPU."""
    return bool(_gpus())


def describe_hardware() -> str:
    """The processor, its cores, and the GPUs that Keras sees, for people."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    gpus = _gpus()
    return f"{processor}, {os.cpu_count()} cores, {f'{len(gpus)} GPU' if gpus else 'no GPU'}"


def _gpus():
    # Not list_devices("gpu"): JAX without a GPU takes that for an error.
    return [device for device in load_keras().distribution.list_devices() if not device.lower().startswith("cpu")]
