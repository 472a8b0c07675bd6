"""data/npy.py: arrays that numpy.save wrote, and all that only looks like one."""

import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.data.images import ImageError, UnsupportedImage
from helpers.data.npy import decode_npy

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def npy(header: str | bytes, pixels: bytes = IMAGES.tobytes(), version: int = 1) -> bytes:
    """An array file with `header` as it stands, for numpy.save writes only good ones."""
    header = header.encode("latin1") if isinstance(header, str) else header
    return (
        b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + pixels
    )


def npy_header(descr="'|u1'", order="False", shape="(2, 32, 32, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def saved_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


GOOD_HEADERS = {
    "as numpy writes it": npy_header() + " " * 50 + "\n",
    "as Python 2 wrote it": npy_header(shape="(2L, 32L, 32L, 3L)"),
    "another spelling of the type": npy_header(descr="'<u1'"),
    "the type by its name": npy_header(descr="'uint8'"),
    "no sign before the type": npy_header(descr="'u1'"),
    "another order, and no comma at the end": "{'shape': (2, 32, 32, 3), 'fortran_order': False, 'descr': '|u1'}",
    "no spaces": "{'descr':'|u1','fortran_order':False,'shape':(2,32,32,3)}",
    "more spaces": " { 'descr' : '|u1' ,\n 'fortran_order' : False , 'shape' : ( 2 , 32 , 32 , 3 , ) , } ",
    "double quotes": npy_header().replace("'", '"'),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", GOOD_HEADERS)
def test_an_array_is_read_however_its_header_is_written(case, version):
    assert np.array_equal(decode_npy(npy(GOOD_HEADERS[case], version=version), 2), IMAGES)


def test_an_array_that_numpy_saved_is_read():
    assert np.array_equal(decode_npy(saved_npy(IMAGES), 2), IMAGES)


BROKEN_HEADERS = {
    "nothing": "",
    "a brace": "{",
    "spaces": " " * 9000,
    "a cut key": "{'descr'",
    "an open string": "{'a': '''",
    "a cut shape": "(1, 32, 32, 3L",
    "many parentheses": "(" * 3000,
    "many signs": "-" * 3000 + "1",
    "many brackets": "[" * 9000,
    "a list as key": "{[]:1}",
    "a set": "{1, 2}",
    "no keys": "{}",
    "a missing key": "{'descr': '|u1', 'shape': (2, 32, 32, 3)}",
    "a key too many": npy_header()[:-1] + "'more': 1}",
    "a key twice": npy_header()[:-1] + "'descr': '|u1'}",
    "a key twice for another": "{'descr': '|u1', 'descr': '|u1', 'shape': (2, 32, 32, 3)}",
    "no comma": npy_header().replace(",", "", 1),
    "text behind": npy_header() + "x",
    "a tuple as type": npy_header(descr="('|u1',)"),
    "no type at all": npy_header(descr="'zzz,,,'"),
    "a type of no such size": npy_header(descr="'f3'"),
    "a type of endless size": npy_header(descr="'V" + "9" * 5000 + "'"),
    "a type that numpy will drop": npy_header(descr="'a3'"),
    "a list of no types": npy_header(descr="[" * 3000 + "]" * 3000),
    "an escape that Python warns of": npy_header(descr="'\\d'"),
    "a number that Python warns of": npy_header(order="1if 1else 0"),
    "a number as order": npy_header(order="0"),
    "true in the shape": npy_header(shape="(True, 32, 32, 3)"),
    "a fraction in the shape": npy_header(shape="(2.0, 32, 32, 3)"),
    "a minus in the shape": npy_header(shape="(-2, 32, 32, 3)"),
    "a list as shape": npy_header(shape="[2, 32, 32, 3]"),
    "a number as shape": npy_header(shape="2"),
    "a very long number in the shape": npy_header(shape="(" + "9" * 5000 + ", 32, 32, 3)"),
    "a digit of another script": npy_header(shape="(\xb2, 32, 32, 3)"),
    "too long": npy_header() + " " * 10_000,
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", BROKEN_HEADERS)
def test_a_broken_array_header_is_told_in_one_sentence_and_without_a_warning(case, version):
    with pytest.raises(UnsupportedImage) as caught:
        decode_npy(npy(BROKEN_HEADERS[case], version=version), 2)
    assert str(caught.value) == "the body is no array in the .npy format; write it with numpy.save"


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"\x93NUMPY\1\0\1", npy(npy_header(), version=3), npy("")[:9]])
def test_what_only_starts_like_an_array_is_none(data):
    with pytest.raises(
        UnsupportedImage, match=r"^the body is no array in the \.npy format; write it with numpy\.save$"
    ):
        decode_npy(data, 2)


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (IMAGES.astype(np.float32), "float32 (2, 32, 32, 3)"),
        (IMAGES.astype(">i2"), ">i2 (2, 32, 32, 3)"),
        (IMAGES > 9, "bool (2, 32, 32, 3)"),
        (np.array(["a cat"]), "<U5 (1,)"),
        (np.zeros(2, "M8[ns]"), "datetime64[ns] (2,)"),
        (np.zeros(2, [("red", "u1"), ("green", "<f4", (2,))]), "[('red', '|u1'), ('green', '<f4', (2,))] (2,)"),
        (IMAGES[0], "uint8 (32, 32, 3)"),
        (np.uint8(7), "uint8 ()"),
        (IMAGES[:0], "uint8 (0, 32, 32, 3)"),
        (np.asfortranarray(IMAGES), "uint8 (2, 32, 32, 3) in Fortran order"),
    ],
)
def test_an_array_of_something_else_is_named(array, got):
    with pytest.raises(UnsupportedImage) as caught:
        decode_npy(saved_npy(array), 2)
    assert str(caught.value) == f"the array must be uint8 (n, 32, 32, 3) in C order, got {got}"


def test_an_array_cut_at_any_byte_is_refused_as_an_image_error():
    data = saved_npy(IMAGES[:1])
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode_npy(data[:length], 2)


@settings(max_examples=300, deadline=None)
@given(
    header=st.sampled_from(sorted(GOOD_HEADERS.values())),
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(b"'\"\\,:(){}[]-0129LuifOSUVMmx \n\0|<>\xff")),
        max_size=6,
    ),
    cut=st.floats(0, 1),
)
def test_mutated_array_headers_give_the_images_or_an_image_error_and_nothing_else(header, changes, cut):
    data = bytearray(header, "latin1")
    for place, value in changes:
        data[int(place * len(data))] = value
    decoded = None
    with contextlib.suppress(ImageError):
        decoded = decode_npy(npy(bytes(data[: max(1, int(cut * 2 * len(data)))])), 2)
    assert decoded is None or np.array_equal(decoded, IMAGES)
