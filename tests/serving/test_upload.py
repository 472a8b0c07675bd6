"""serving/upload.py: the files of a form, however it is written, and one clear error where there are none."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.serving.upload import MalformedUpload, UploadError, UploadTooLarge, read_files

TYPE = "multipart/form-data; boundary=x"


def form(*parts, boundary="x"):
    """A body of (header lines, content) parts."""
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    return body + f"--{boundary}--\r\n".encode()


def file(content, name="file", filename="a.png"):
    return f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: image/png', content


def test_the_file_is_found_among_other_fields():
    text = 'Content-Disposition: form-data; name="file"', b"text"
    body = form(text, file(b"other", name="picture"), file(b"the file"), text)

    assert read_files(TYPE, body) == [b"the file"]


@pytest.mark.parametrize("content", [b"", b"\r\n", b"--x", b"\r\n--", b"\r\n--y\r\n", bytes(range(256)) * 5000])
def test_a_file_may_hold_any_bytes(content):
    assert read_files(TYPE, form(file(content))) == [content]


@pytest.mark.parametrize(
    "quoted", ['multipart/form-data; boundary="x"', "Multipart/Form-Data;charset=utf-8;boundary=x"]
)
def test_the_header_may_be_written_in_several_ways(quoted):
    assert read_files(quoted, form(file(b"1"))) == [b"1"]


@pytest.mark.parametrize("name", [b"\xe4\xff.png", "\u00fc\U0001f34e.png".encode(), b"\x85 \xa0"])
def test_the_name_of_a_file_may_be_in_any_encoding(name):
    assert read_files(TYPE, form(file(b"1", filename="NAME")).replace(b"NAME", name)) == [b"1"]


def test_several_files_keep_their_order_and_may_be_no_more_than_asked_for():
    body = form(*(file(bytes([number])) for number in range(5)))

    assert read_files(TYPE, body, most=5) == [bytes([number]) for number in range(5)]
    with pytest.raises(UploadTooLarge, match="the form has 5 files, at most 4 are taken; send fewer"):
        read_files(TYPE, body, most=4)


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "sentence"),
    [
        ("", b"", UploadError, "send multipart/form-data with the image as a file in a field named file"),
        ("application/json", b"{}", UploadError, "send multipart/form-data with the image as a file"),
        (TYPE, form(file(b"1", name="image")), UploadError, "send multipart/form-data with the image as a file"),
        (TYPE, form(('Content-Disposition: form-data; name="file"', b"1")), UploadError, "send multipart/form-data"),
        ("multipart/form-data", b"", MalformedUpload, "the header Content-Type names no boundary"),
        (TYPE, b"", MalformedUpload, "the body is not what its Content-Type says"),
        (TYPE, b"no form", MalformedUpload, "the body is not what its Content-Type says"),
        (TYPE, form(file(b"1"))[:-6], MalformedUpload, "the body is not what its Content-Type says"),
        (TYPE, form(("Content-Type: image/png", b"1")), MalformedUpload, "the body is not what its Content-Type says"),
        (TYPE, form(*[file(b"", name="n")] * 5000), UploadTooLarge, "the form has more than 17 parts; send 1 at most"),
        (TYPE, form(("A: b\r\n" * 5000 + file(b"")[0], b"")), UploadTooLarge, "a part of the form has more than 8"),
        (TYPE, form((file(b"")[0] + "x" * 10000, b"")), UploadTooLarge, "a header of the form has more than 4224"),
        (TYPE, form(file(b"", filename="x" * 5000)), UploadTooLarge, "a header of the form has more than 4224 b"),
    ],
)
def test_what_is_no_form_with_a_file_is_refused_in_a_sentence(content_type, body, kind, sentence):
    with pytest.raises(UploadError, match=f"^{sentence}") as caught:
        read_files(content_type, body)

    assert type(caught.value) is kind


@given(st.text(max_size=60), st.binary(max_size=300))
def test_any_bytes_give_files_or_an_upload_error(content_type, body):
    for header in (content_type, TYPE):
        with contextlib.suppress(UploadError):
            assert read_files(header, body, most=3)
