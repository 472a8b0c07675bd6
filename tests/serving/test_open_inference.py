"""serving/open_inference.py: requests of the protocol, and what is refused before it reaches a model."""

import json
import tracemalloc

import numpy as np
import pytest

from helpers.serving.open_inference import InvalidTensor, read_request

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def request(**changes):
    tensor = {"name": "images", "datatype": "UINT8", "shape": [2, 32, 32, 3], "data": IMAGES.ravel().tolist()}
    return json.dumps({"inputs": [tensor | changes]}).encode()


@pytest.mark.parametrize("data", [IMAGES.ravel().tolist(), IMAGES.tolist()])
def test_data_may_be_flat_or_nested(data):
    images, identity, outputs = read_request(request(data=data))

    np.testing.assert_array_equal(images, IMAGES)
    assert images.dtype == np.uint8
    assert identity is None
    assert outputs == []


@pytest.mark.parametrize("data", [IMAGES[0].ravel().tolist(), IMAGES[0].tolist(), IMAGES[:1].tolist()])
def test_one_image_may_be_nested_with_or_without_the_list_around_it(data):
    np.testing.assert_array_equal(read_request(request(shape=[1, 32, 32, 3], data=data))[0], IMAGES[:1])


def nested(*shape):
    return np.zeros(shape, int).tolist()


def ragged(longer, shorter):
    data = nested(2, 32, 32, 3)
    data[longer][5][7].append(0)
    data[shorter][5][7].pop()
    return data


@pytest.mark.parametrize(
    ("count", "data", "found"),
    [
        (1, nested(1, 3, 32, 32), r"got \[1, 3, 32, 32\]"),
        (1, nested(3, 32, 32), r"got \[3, 32, 32\]"),
        (1, nested(1, 3072), r"got \[1, 3072\]"),
        (1, nested(1, 1, 32, 32, 3), r"got \[1, 1, 32, 32, 3\]"),
        (2, nested(2, 3, 32, 32), r"got \[2, 3, 32, 32\]"),
        (2, nested(2, 3072), r"got \[2, 3072\]"),
        (2, nested(64, 32, 3), r"got \[64, 32, 3\]"),
        (2, nested(6143), r"got \[6143\]"),
        (2, [], r"got \[0\]"),
        (2, [[]], r"got \[1, 0\]"),
        (2, 7, "got 7"),
        (2, "7" * 6144, "got '7777"),
        (2, {"0": 7}, "got {'0': 7}"),
        (2, [[1], [2, 3]], r"got \[2, 1\]"),
        (2, ragged(0, 1), r"got lists of different length or depth"),
        (2, ragged(1, 0), r"got lists of different length or depth"),
        (2, [*nested(1, 32, 32, 3), 0], "got lists of different length or depth"),
        (2, [*nested(1, 32, 32, 3), "x" * 32], "got lists of different length or depth"),
        (2, [nested(32, 32, 3), [*nested(31, 32, 3), {"0": 1}]], "got lists of different length or depth"),
    ],
)
def test_data_that_is_not_nested_as_its_shape_says_is_refused(count, data, found):
    wanted = rf"{count * 3072} numbers, flat or nested as \[{count}, 32, 32, 3\]"
    with pytest.raises(InvalidTensor, match=f"^data must be {wanted}, {found}"):
        read_request(request(shape=[count, 32, 32, 3], data=data))


@pytest.mark.parametrize(
    ("leaf", "shown"),
    [(True, "True"), (False, "False"), (0.5, "0.5"), (1.0, "1.0"), ("a", "'a'"), (None, "None"), ([1], r"\[1\]")],
)
def test_one_value_that_is_no_whole_number_is_refused(leaf, shown):
    flat, deep = IMAGES.ravel().tolist(), IMAGES.tolist()
    flat[-1], deep[1][31][31][2] = leaf, leaf
    for data in (flat, deep):
        with pytest.raises(InvalidTensor, match=f"^data must be 6144 whole numbers, as the shape says, got {shown}"):
            read_request(request(data=data))


@pytest.mark.parametrize(
    "value",
    [-1, 256, 2**63, -(2**63) - 1, 2**64, 10**30, 10**4000],
    ids=lambda value: str(value)[:24],
)
def test_one_value_out_of_range_is_refused_however_large_it_is(value):
    data = IMAGES.ravel().tolist()
    data[-1] = value
    with pytest.raises(InvalidTensor, match=r"^data must be from 0 to 255, got -?\d+") as caught:
        read_request(request(data=data))
    assert str(value)[:10] in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "data",
    [["x" * 1000] + [""] * 200_000, [["x" * 1000] + [""] * 200_000], [[0]] * 200_000, [[[[0] * 3] * 32] * 32] * 256],
)
def test_memory_stays_in_proportion_to_the_body_whatever_data_is(data):
    body = request(data=data)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidTensor, match=r"^data must be 6144 numbers, flat or nested as \[2, 32, 32, 3\], got"):
            read_request(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(body)


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
        (request(name="x"), "the input must be images of UINT8, got 'x' of 'UINT8'"),
        (request(datatype="FP32"), "the input must be images of UINT8, got 'images' of 'FP32'"),
        (
            request(shape=[2, 3, 32, 32]),
            r"the shape must be \[n, 32, 32, 3\] with n from 1 to 256, got \[2, 3, 32, 32\]",
        ),
        (request(shape=[-1, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[257, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[True, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\] with n from 1 to 256, got \[True, 32"),
        (request(shape=[2.0, 32, 32, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[2, 32, 32.0, 3]), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape="2"), r"the shape must be \[n, 32, 32, 3\]"),
        (request(shape=[1, 32, 32, 3]), r"data must be 3072 numbers, flat or nested as \[1, 32, 32, 3\], got \[6144\]"),
        (request(data=[0.5] * 6144), "data must be 6144 whole numbers, as the shape says"),
        (request(data=["a"] * 6144), "data must be 6144 whole numbers, as the shape says"),
        (request(data=[256] * 6144), "data must be from 0 to 255, got 256"),
        (request(data=[-1] * 6144), "data must be from 0 to 255, got -1"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(body, sentence):
    with pytest.raises(InvalidTensor, match=f"^{sentence}"):
        read_request(body)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": "\ud800"}, r"the id must be text that UTF-8 can hold, got '\\ud800'; send another or none"),
        ({"id": "42\udfff" * 1000}, r"the id must be text that UTF-8 can hold, got '42\\udfff"),
        ({"id": 42}, "id and the names of outputs must be strings"),
        ({"outputs": [{"name": 42}]}, "id and the names of outputs must be strings"),
        ({"outputs": [{"name": "class"}] * 2}, "outputs must name each output once; take out what is there twice"),
    ],
)
def test_an_id_that_could_not_be_sent_back_is_refused(changes, sentence):
    body = json.dumps(json.loads(request()) | changes).encode()
    with pytest.raises(InvalidTensor, match=f"^{sentence}") as caught:
        read_request(body)
    assert len(str(caught.value).encode()) < 200
