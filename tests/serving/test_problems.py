import pytest

from helpers.serving.problems import without_paths


@pytest.mark.parametrize(
    ("sentence", "shown"),
    [
        ("/srv/cache/a/model.onnx has 3 bytes, its manifest says 4", "model.onnx has 3 bytes, its manifest says 4"),
        ("absent in file:///home/jo/store; publish it first", "absent in store; publish it first"),
        ("gs://bucket/models/a is damaged", "gs://bucket/models/a is damaged"),
        (
            "must be models/<name>/aliases/<alias>, got '/etc/passwd'",
            "must be models/<name>/aliases/<alias>, got '/etc/passwd'",
        ),
    ],
)
def test_paths_of_this_machine_do_not_go_out(sentence, shown):
    assert without_paths(sentence) == shown
