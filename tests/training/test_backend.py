"""Keras starts quietly, and nothing but the known chatter is swallowed."""

import re
import subprocess
import sys

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
