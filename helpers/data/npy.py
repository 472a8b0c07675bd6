"""Untrusted bytes in NumPy's .npy format to images, or one clear error."""

import re
import struct

import numpy as np

from helpers.data.images import SIZE, DamagedImage, ImageTooLarge, UnsupportedImage

_LENGTHS = {b"\x93NUMPY\x01\x00": "<H", b"\x93NUMPY\x02\x00": "<I"}
_MAX_HEADER = 10_000  # as numpy has it
_ENTRY = re.compile(
    rb"""\s*['"](?:
        descr['"]\s*:\s*( ['"](?:uint8|[<>|=]?[biufcmMOSUV][0-9]{0,9}(?:\[\w{1,9}\])?)['"] | \[[^][]*\] )
        | fortran_order['"]\s*:\s*( True | False )
        | shape['"]\s*:\s*( \(\s*(?:[0-9]{1,18}L?\s*,\s*)*(?:[0-9]{1,18}L?\s*)?\) )  # L: as Python 2 wrote it
    )\s*(?:,|(?=\}))""",
    re.VERBOSE,
)
_HEADER = re.compile(rb"\s*\{(?:" + _ENTRY.pattern + rb")*\s*\}\s*", re.VERBOSE)
_DIGITS = re.compile(rb"[0-9]+")


def decode_npy(data: bytes, most: int) -> np.ndarray:
    """Read `data` in NumPy's .npy format: an array (n, 32, 32, 3) uint8, RGB, n from 1 to `most`.

    Raises:
        UnsupportedImage, DamagedImage, ImageTooLarge: all of them ImageError.
    """
    dtype, fortran_order, shape, start = _read_header(data)
    if dtype != np.uint8 or fortran_order or shape[1:] != (SIZE, SIZE, 3) or len(shape) != 4 or shape[0] < 1:
        order = " in Fortran order" if fortran_order else ""
        raise UnsupportedImage(f"the array must be uint8 (n, 32, 32, 3) in C order, got {dtype} {shape}{order}")
    if shape[0] > most:
        raise ImageTooLarge(f"the array has {shape[0]} images, at most {most} are taken; send fewer at a time")
    pixels = np.frombuffer(data, np.uint8, offset=start)
    if pixels.size != np.prod(shape):
        raise DamagedImage(f"the array says {np.prod(shape)} bytes and has {pixels.size}; send the whole file again")
    return pixels.reshape(shape)


def _read_header(data):
    """Type, whether in Fortran order, shape, and where the pixels start.

    numpy's own reader has Python parse the text, which answers a stranger's with many kinds of exception and warning.
    """
    try:
        (length,) = struct.unpack_from(_LENGTHS[data[:8]], data, 8)
        start = 8 + struct.calcsize(_LENGTHS[data[:8]])
        end = start + length
        if length > _MAX_HEADER or end > len(data) or not _HEADER.fullmatch(data, start, end):
            raise ValueError("not a header")
        columns = zip(*_ENTRY.findall(data, start, end), strict=True)
        (descr,), (order,), (shape,) = ([value for value in column if value] for column in columns)
        text = descr.decode("ascii")
        dtype = text[:50] if text.startswith("[") else np.dtype(text[1:-1])
    except (KeyError, struct.error, ValueError, TypeError) as error:
        raise UnsupportedImage("the body is no array in the .npy format; write it with numpy.save") from error
    return dtype, order == b"True", tuple(map(int, _DIGITS.findall(shape))), end
