"""Untrusted bytes to a 32x32 RGB image, or one clear error.

What is accepted: PNG and JPEG, told by their content and never by a file name. How the many kinds become RGB:

- transparency (alpha channel, palette entry or transparent colour) is laid on white;
- 16-bit samples keep their high byte (30000 becomes 117), in greyscale as in colour;
- CMYK is converted without a colour profile; embedded profiles and gamma are ignored, as in CIFAR-100 itself;
- the EXIF orientation is applied; of an animation the first frame counts;
- a picture that is not square is cropped to its centre square, then resized with antialiasing (bicubic).

A 32x32 RGB picture without any of these passes through bit-identical.
"""

import io
import struct

import numpy as np
from PIL import Image, ImageOps

SIZE = 32
MAX_PIXELS = 4096 * 4096
MAX_SCANS = 100

_ACCEPTED = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow stretches 2- and 4-bit grey to 8 bits and cuts 16-bit colour to 8, but leaves the transparent colour as stored.
_STORED_TO_8_BITS = {"L;2": lambda v: v * 85, "L;4": lambda v: v * 17, "RGB;16B": lambda v: v >> 8}


class ImageError(ValueError):
    """The bytes do not give an image. The message is one sentence, fit to be shown to whoever sent them."""


class UnsupportedImage(ImageError):
    """Neither a PNG nor a JPEG (HTTP 415)."""


class DamagedImage(ImageError):
    """A PNG or JPEG that is cut off, corrupt or of a kind that cannot be decoded (HTTP 400)."""


class ImageTooLarge(ImageError):
    """More pixels, or more JPEG scans, than are worth decoding (HTTP 413)."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode `data` to an array (32, 32, 3) uint8, RGB, 0 to 255.

    Size is read from the header and checked before any pixel is decoded, so that memory stays bounded by `max_pixels`
    (about 12 bytes each) whatever the file claims.

    Raises:
        UnsupportedImage, DamagedImage, ImageTooLarge: all of them ImageError; never another exception for any bytes.
    """
    kind = next((name for magic, name in _ACCEPTED.items() if data.startswith(magic)), "")
    if not kind:
        start = f"{len(data)} bytes that start with {bytes(data[:8])!r}" if data else "no bytes at all"
        raise UnsupportedImage(f"the file must be a PNG or a JPEG image, got {start}; convert it and send it again")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            _check_size(image, max_pixels)
            if kind == "PNG":
                complete = _PNG_END in data
            else:
                _check_scans(data)
                complete = (
                    data.find(_JPEG_END, image.fp.tell()) >= 0
                )  # from the first scan: past an EXIF thumbnail's end
            if not complete:  # Pillow forgives this when only the last bytes are missing
                raise DamagedImage(f"the {kind} image is cut off after {len(data)} bytes; send the whole file again")
            image.draft(None, (4 * SIZE, 4 * SIZE))  # large JPEGs: decode at 1/2 to 1/8, at no visible loss
            rgb = _to_rgb(image)
            if (turn := _UPRIGHT.get(_orientation(image))) is not None:
                rgb = rgb.transpose(turn)
            if rgb.size != (SIZE, SIZE):
                rgb = ImageOps.fit(rgb, (SIZE, SIZE), method=Image.Resampling.BICUBIC)
            return np.asarray(rgb)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"the image is too large, at most {max_pixels} pixels are accepted; send a smaller one"
        ) from error
    except Exception as error:  # Pillow's plugins raise a dozen types on malformed files, none of them documented
        detail = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if "cannot identify" in detail:  # Pillow names its buffer object here, which says nothing to the sender
            detail = "its header is not valid"
        raise DamagedImage(
            f"the {kind} image cannot be decoded ({detail}); check the file and send it again"
        ) from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, at most {max_pixels} in all are accepted; send a smaller one"
        )


def _check_scans(data: bytes) -> None:
    # Each scan of a progressive JPEG goes over every pixel and may take only a dozen bytes; encoders write about ten.
    # Inside compressed data 0xFF is always followed by 0x00, so that the count finds scans and nothing else.
    if (scans := data.count(_JPEG_SCAN)) > MAX_SCANS:
        raise ImageTooLarge(f"the JPEG image has {scans} scans, at most {MAX_SCANS} are accepted; save it again")


def _to_rgb(image: Image.Image) -> Image.Image:
    stored = image.tile[0].args if image.tile else ""
    image.load()
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey: convert("RGB") would clip everything above 255 to white
        levels = np.asarray(image)
        grey = Image.fromarray((np.clip(levels, 0, 65535) >> 8).astype(np.uint8))
        if key is not None:
            grey.putalpha(Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
        image = grey
    elif key is not None and isinstance(stored, str) and stored in _STORED_TO_8_BITS:
        scale = _STORED_TO_8_BITS[stored]
        image.info["transparency"] = tuple(map(scale, key)) if isinstance(key, tuple) else scale(key)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except (SyntaxError, ValueError, struct.error):  # a broken EXIF block: the picture itself may still be whole
        return 1
