"""`images`: what is accepted, in which colours it arrives, and that nothing but ImageError comes out otherwise."""

import contextlib
import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.data.images import DamagedImage, ImageError, ImageTooLarge, UnsupportedImage, decode_image
from helpers.workspace import ROOT

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    pixels: np.ndarray, colour_type: int, bits: int, *, transparent: bytes = b"", interlaced: bool = False, header=None
) -> bytes:
    """A PNG of `pixels` (height, width, channels), written by hand: Pillow writes neither 16-bit colour nor Adam7."""

    def rows(block: np.ndarray) -> bytes:
        if bits == 16:
            return b"".join(b"\0" + row.astype(">u2").tobytes() for row in block)
        if bits == 8:
            return b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in block)
        samples = ((block[:, :, :1] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)
        return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in samples)

    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [pixels]
    height, width = header or pixels.shape[:2]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, int(interlaced)))
        + (chunk(b"tRNS", transparent) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(map(rows, passes)), 9))
        + chunk(b"IEND", b"")
    )


def flat(*samples: int) -> np.ndarray:
    return np.full((32, 32, len(samples)), samples, np.int64)


def palette_image(transparency=None) -> bytes:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([255, 0, 0, 10, 200, 30])
    return saved(image, **({} if transparency is None else {"transparency": transparency}))


COLOURS = {
    "1-bit black": (saved(Image.new("1", (32, 32), 0)), (0, 0, 0)),
    "1-bit white": (saved(Image.new("1", (32, 32), 1)), (255, 255, 255)),
    "1-bit transparent black": (png(flat(0), 0, 1, transparent=b"\0\0"), (255, 255, 255)),
    "2-bit grey": (png(flat(1), 0, 2), (85, 85, 85)),
    "2-bit transparent grey": (png(flat(1), 0, 2, transparent=b"\0\1"), (255, 255, 255)),
    "4-bit grey, another one transparent": (png(flat(3), 0, 4, transparent=b"\0\x04"), (51, 51, 51)),
    "4-bit transparent grey": (png(flat(3), 0, 4, transparent=b"\0\x03"), (255, 255, 255)),
    "8-bit grey": (saved(Image.new("L", (32, 32), 77)), (77, 77, 77)),
    "8-bit transparent grey": (png(flat(77), 0, 8, transparent=b"\0\x4d"), (255, 255, 255)),
    "grey with alpha": (saved(Image.new("LA", (32, 32), (55, 51))), (215, 215, 215)),
    "16-bit grey 30000": (png(flat(30000), 0, 16), (117, 117, 117)),
    "16-bit grey 65535": (png(flat(65535), 0, 16), (255, 255, 255)),
    "16-bit grey 255": (png(flat(255), 0, 16), (0, 0, 0)),
    "16-bit transparent grey": (png(flat(30000), 0, 16, transparent=struct.pack(">H", 30000)), (255, 255, 255)),
    "16-bit grey, another one transparent": (png(flat(30000), 0, 16, transparent=b"\0\1"), (117, 117, 117)),
    "16-bit grey with alpha": (png(flat(0, 51 << 8), 4, 16), (204, 204, 204)),
    "Pillow's mode I": (saved(Image.fromarray(np.full((32, 32), 30000, np.uint16))), (117, 117, 117)),
    "16-bit colour": (png(flat(30000, 65535, 256), 2, 16), (117, 255, 1)),
    "16-bit transparent colour": (
        png(flat(30000, 65535, 256), 2, 16, transparent=struct.pack(">HHH", 30000, 65535, 256)),
        (255, 255, 255),
    ),
    "16-bit colour with alpha": (png(flat(30000, 0, 0, 65535), 6, 16), (117, 0, 0)),
    "palette": (palette_image(), (10, 200, 30)),
    "palette, this entry transparent": (palette_image(1), (255, 255, 255)),
    "palette, another entry transparent": (palette_image(0), (10, 200, 30)),
    "palette with alpha": (palette_image(bytes([0, 51])), (206, 244, 210)),
    "colour": (saved(Image.new("RGB", (32, 32), (10, 200, 30))), (10, 200, 30)),
    "transparent colour": (png(flat(10, 200, 30), 2, 8, transparent=struct.pack(">HHH", 10, 200, 30)), (255, 255, 255)),
    "colour with alpha": (saved(Image.new("RGBA", (32, 32), (10, 200, 30, 51))), (206, 244, 210)),
    "fully transparent": (saved(Image.new("RGBA", (32, 32), (10, 200, 30, 0))), (255, 255, 255)),
}


@pytest.mark.parametrize("case", COLOURS)
def test_every_kind_of_png_gives_the_colour_it_shows_on_white(case):
    data, colour = COLOURS[case]
    decoded = decode_image(data)
    assert decoded.shape == (32, 32, 3)
    assert decoded.dtype == np.uint8
    assert np.unique(decoded.reshape(-1, 3), axis=0).tolist() == [list(colour)]


JPEGS = {
    "grey": (saved(Image.new("L", (32, 32), 77), "JPEG"), (77, 77, 77)),
    "colour": (saved(Image.new("RGB", (32, 32), (10, 200, 30)), "JPEG", quality=95), (10, 200, 30)),
    "CMYK": (saved(Image.new("CMYK", (32, 32), (255, 55, 0, 0)), "JPEG", quality=95), (0, 200, 255)),
    "progressive": (saved(Image.new("RGB", (32, 32), (9, 99, 199)), "JPEG", progressive=True), (9, 99, 199)),
}


@pytest.mark.parametrize("case", JPEGS)
def test_every_kind_of_jpeg_gives_its_colour(case):
    data, colour = JPEGS[case]
    assert np.abs(decode_image(data).astype(int) - colour).max() <= 3


def test_a_32x32_rgb_picture_passes_through_bit_identical():
    assert np.array_equal(decode_image(saved(Image.fromarray(PICTURE))), PICTURE)


@pytest.mark.parametrize(("colour_type", "bits", "scale"), [(2, 8, 1), (2, 16, 257)])
def test_an_interlaced_picture_equals_the_plain_one(colour_type, bits, scale):
    pixels = PICTURE.astype(np.int64) * scale
    assert np.array_equal(decode_image(png(pixels, colour_type, bits, interlaced=True)), PICTURE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(kind, orientation):
    quarters = np.zeros((32, 32, 3), np.uint8)
    quarters[:16, :16], quarters[:16, 16:], quarters[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    # How a camera held in this orientation stores the upright picture (EXIF 2.32, tag 0x0112).
    stored = {
        1: quarters,
        2: quarters[:, ::-1],
        3: quarters[::-1, ::-1],
        4: quarters[::-1],
        5: quarters.transpose(1, 0, 2),
        6: np.rot90(quarters, 1),
        7: np.rot90(quarters, 2).transpose(1, 0, 2),
        8: np.rot90(quarters, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif} | ({"quality": 95, "subsampling": 0} if kind == "JPEG" else {})
    decoded = decode_image(saved(Image.fromarray(np.ascontiguousarray(stored)), kind, **options))
    assert np.abs(decoded.astype(int) - quarters).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's word on what the test sends
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"])
def test_a_broken_exif_block_does_not_spoil_the_picture(exif):
    assert np.array_equal(decode_image(saved(Image.fromarray(PICTURE), exif=exif)), PICTURE)


def test_of_an_animated_png_the_first_frame_counts():
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = saved(frames[0], save_all=True, append_images=frames[1:])
    assert np.unique(decode_image(data).reshape(-1, 3), axis=0).tolist() == [[255, 0, 0]]


def test_a_wide_picture_is_cropped_to_its_centre_square():
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = PICTURE
    assert np.array_equal(decode_image(saved(Image.fromarray(wide))), PICTURE)


def test_a_fine_pattern_shrinks_to_its_mean_and_not_to_stripes():
    stripes = np.zeros((320, 320), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(decode_image(saved(Image.fromarray(stripes))).astype(int) - 127).max() <= 8


def test_a_large_jpeg_decoded_at_reduced_scale_equals_the_full_one():
    x, y = np.meshgrid(np.arange(1200), np.arange(1200))
    picture = np.stack([x * 255 // 1199, y * 255 // 1199, (x + y) * 255 // 2398], axis=-1).astype(np.uint8)
    full = decode_image(saved(Image.fromarray(picture)))
    reduced = decode_image(saved(Image.fromarray(picture), "JPEG", quality=95))
    assert np.abs(full.astype(int) - reduced).max() <= 4


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (31, 33)])
def test_any_size_is_brought_to_32x32(size):
    assert np.unique(decode_image(saved(Image.new("RGB", size, (1, 2, 3)))).reshape(-1, 3), axis=0).tolist() == [
        [1, 2, 3]
    ]


REFUSED = {
    "nothing": (b"", "got no bytes at all; "),
    "text": (b"hello, world", "got 12 bytes that start with b'hello, w'; "),
    "GIF": (saved(Image.new("P", (32, 32)), "GIF"), "that start with b'GIF8"),
    "BMP": (saved(Image.new("RGB", (32, 32)), "BMP"), "that start with b'BM"),
    "WEBP": (saved(Image.new("RGB", (32, 32)), "WEBP"), "that start with b'RIFF"),
    "TIFF": (saved(Image.new("RGB", (32, 32)), "TIFF"), "that start with b'II"),
    "EPS, which would start Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "that start with b'%!PS-Ado'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_neither_png_nor_jpeg_is_called_unsupported(case):
    data, words = REFUSED[case]
    with pytest.raises(UnsupportedImage) as caught:
        decode_image(data)
    assert str(caught.value).startswith("the file must be a PNG or a JPEG image, got ")
    assert words in str(caught.value)
    assert str(caught.value).endswith("; convert it and send it again")


HUGE = {
    "20000 x 20000": png(flat(0), 0, 1, header=(20000, 20000)),
    "12000 x 12000, where Pillow only warns": png(flat(0), 0, 1, header=(12000, 12000)),
    "9000 x 9000, fully there in 76 KiB": png(np.zeros((9000, 9000, 1), np.uint8), 0, 8),
    "65535 x 65535 in a JPEG header": JPEGS["colour"][0].replace(b"\x08\0\x20\0\x20", b"\x08\xff\xff\xff\xff"),
    "4097 x 4096": png(flat(0), 0, 8, header=(4096, 4097)),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_bomb_is_refused_by_its_header_quickly(case):
    started = time.perf_counter()
    with pytest.raises(ImageTooLarge, match=r"at most 16777216 .*; send a smaller one$"):
        decode_image(HUGE[case])
    assert time.perf_counter() - started < 0.5


def test_refusing_a_bomb_takes_no_memory_from_the_process(tmp_path):
    """In a fresh process, because Pillow's pixels lie outside what tracemalloc sees."""
    (tmp_path / "bomb.png").write_bytes(HUGE["9000 x 9000, fully there in 76 KiB"])
    (tmp_path / "small.png").write_bytes(WHOLE["PNG"])
    program = (
        "import resource, sys; from helpers.data.images import ImageTooLarge, decode_image\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode_image(open(sys.argv[1], 'rb').read()); before = peak()\n"
        "try: decode_image(open(sys.argv[2], 'rb').read())\n"
        "except ImageTooLarge: print(peak() - before)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "small.png"), str(tmp_path / "bomb.png")]
    grown = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 10_000  # KiB; the decoded picture would take 79,000


def test_the_limit_is_the_callers_and_the_sentence_names_both_sizes():
    data = saved(Image.new("RGB", (40, 30)))
    with pytest.raises(ImageTooLarge) as caught:
        decode_image(data, max_pixels=1199)
    assert str(caught.value) == "the image has 40 x 30 pixels, at most 1199 in all are accepted; send a smaller one"
    assert decode_image(data, max_pixels=1200).shape == (32, 32, 3)


def test_a_jpeg_with_thousands_of_scans_is_refused_before_it_is_decoded():
    data = saved(Image.fromarray(PICTURE), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageTooLarge, match=r"^the JPEG image has \d+ scans, at most 100 are accepted; save it again$"):
        decode_image(data[:last] + data[last:-2] * 1000 + b"\xff\xd9")


exif_with_thumbnail = Image.Exif()
exif_with_thumbnail[0x010E] = "x" * 50
WHOLE = {
    "PNG": saved(Image.fromarray(PICTURE[:8, :8])),
    "interlaced PNG": png(PICTURE[:8, :8].astype(np.int64), 2, 8, interlaced=True),
    "animated PNG": saved(
        Image.new("RGB", (8, 8), "red"), save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
    ),
    "JPEG": saved(Image.fromarray(PICTURE), "JPEG"),
    "progressive JPEG": saved(Image.fromarray(PICTURE), "JPEG", progressive=True),
    "JPEG with EXIF": saved(Image.fromarray(PICTURE), "JPEG", exif=exif_with_thumbnail),
    "JPEG with a JPEG in its EXIF": saved(
        Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0" + saved(Image.new("L", (8, 8)), "JPEG")
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on an APNG or EXIF block cut in two
@pytest.mark.parametrize("case", WHOLE)
def test_a_file_cut_at_any_byte_is_refused_as_an_image_error(case):
    data = WHOLE[case]
    assert decode_image(data).shape == (32, 32, 3)
    for length in range(len(data)):
        with pytest.raises(ImageError, match=r"; [a-z ]+$"):
            decode_image(data[:length])


def test_a_cut_file_says_so_in_one_sentence():
    with pytest.raises(DamagedImage) as caught:
        decode_image(WHOLE["PNG"][:-1])
    assert str(caught.value) == (
        f"the PNG image is cut off after {len(WHOLE['PNG']) - 1} bytes; send the whole file again"
    )


def test_a_broken_header_is_explained_without_pythons_words():
    with pytest.raises(DamagedImage) as caught:
        decode_image(b"\x89PNG\r\n\x1a\n" + b"rubbish")
    assert "0x" not in str(caught.value)
    assert str(caught.value).startswith("the PNG image cannot be decoded (")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words on broken APNG, EXIF and MPO blocks
@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    inserted=st.binary(max_size=12),
    at=st.floats(0, 1),
)
def test_mutated_files_give_an_image_or_an_image_error_and_nothing_else(case, changes, inserted, at):
    data = bytearray(WHOLE[case])
    for place, value in changes:
        data[int(place * len(data))] = value
    data[int(at * len(data)) : int(at * len(data))] = inserted
    decoded = None
    with contextlib.suppress(ImageError):
        decoded = decode_image(bytes(data))
    assert decoded is None or (decoded.shape == (32, 32, 3) and decoded.dtype == np.uint8)
