"""Keras starts quietly, and nothing but the known chatter is swallowed."""

import re
import subprocess
import sys

import keras
import pytest

from helpers.training.backend import describe_hardware

CODE = """
import os, sys
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
from helpers.training.backend import load_keras
assert "keras" not in sys.modules
keras = load_keras()
assert keras is load_keras() and keras.__name__ == "keras"
os.write(2, b"later words\\n")
"""


def test_keras_starts_without_a_word_and_stderr_works_afterwards():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == ""
    assert result.stderr == "later words\n"


STEPS = """
import resource
from helpers.training.backend import load_keras
load_keras()
import tensorflow as tf
numbers = tf.zeros((2**24,))  # 64 MB: more than the C library keeps
numbers + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    numbers + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="its memory is TensorFlow's")
def test_the_memory_of_a_step_is_kept_for_the_next():
    result = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=120, check=True)
    assert int(result.stdout) < 1000, "pages that the system had to give; 16,384 a step if it is asked anew"


def test_a_failing_import_says_why(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os\nos.write(2, b'words of its own\\n')\nraise RuntimeError('no backend')\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from helpers.training.backend import load_keras\nload_keras()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 1
    assert "words of its own" in result.stderr
    assert result.stderr.endswith("RuntimeError: no backend\n")


def test_the_hardware_is_named_for_people():
    assert re.fullmatch(r".+, \d+ cores, (no|\d+) GPU", describe_hardware())
