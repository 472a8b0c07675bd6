"""serving/open_inference.py: requests of the protocol, and what is refused before it reaches a model."""

import json

import numpy as np
import pytest

from helpers.serving.open_inference import InvalidTensor, read_request

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def request(**changes):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": IMAGES.ravel().tolist()}
    return json.dumps({"inputs": [tensor | changes]}).encode()


@pytest.mark.parametrize("data", [IMAGES.ravel().tolist(), IMAGES.tolist(), IMAGES.reshape(2, -1).tolist()])
def test_data_may_be_flat_or_nested(data):
    images, identity, outputs = read_request(request(data=data))

    np.testing.assert_array_equal(images, IMAGES)
    assert images.dtype == np.uint8
    assert identity is None
    assert outputs == []


def test_an_id_and_the_outputs_asked_for_are_read():
    body = json.loads(request()) | {"id": "42", "outputs": [{"name": "class"}, {"name": "probabilities"}]}

    assert read_request(json.dumps(body).encode())[1:] == ("42", ["class", "probabilities"])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body must be JSON like"),
        (b"\xff", "the body must be JSON like"),
        (b"[]", "the body must be JSON like"),
        (b'{"inputs": []}', "the body must be JSON like"),
        (b'{"inputs": [1, 2]}', "the body must be JSON like"),
        (b"[" * 100_000, "the body must be JSON like"),
        (request(data=[[1], [2, 3]]), "the body must be JSON like"),
        (request(name="x"), "the input must be images of UINT8, got 'x' of 'UINT8'"),
        (request(datatype="FP32"), "the input must be images of UINT8, got 'images' of 'FP32'"),
        (
            request(shape=[2, 3, 32, 32]),
            r"the shape must be \[n, 32, 32, 3\] with n from 1 to 256, got \[2, 3, 32, 32\]",
        ),
        (request(shape=[-1, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[257, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape="2"), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[1, 32, 32, 3]), "data must be 3072 whole numbers, as the shape says"),
        (request(data=[0.5] * 6144), "data must be 6144 whole numbers, as the shape says"),
        (request(data=["a"] * 6144), "data must be 6144 whole numbers, as the shape says"),
        (request(data=[256] * 6144), "data must be from 0 to 255, got 256 to 256"),
        (request(data=[-1] * 6144), "data must be from 0 to 255, got -1 to -1"),
        (request(data=[10**30] * 6144), "data must be"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(body, sentence):
    with pytest.raises(InvalidTensor, match=f"^{sentence}"):
        read_request(body)
