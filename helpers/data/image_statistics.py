"""What a picture looks like, in four numbers."""

import numpy as np

_CHUNK = 32  # images at once: their planes stay in the processor's cache


def describe_images(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of uint8 (n, 32, 32, 3) `images`: float32 (n,) by name, in units of the pixel range.

    Brightness; contrast, the standard deviation of brightness; sharpness, the mean absolute Laplacian of brightness;
    saturation, the largest less the smallest channel.
    """
    parts = [_describe(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _describe(images):
    red, green, blue = (np.ascontiguousarray(images[..., channel]) for channel in range(3))
    grey = red.astype(np.float32)  # times three
    grey += green
    grey += blue
    edges = 4 * grey[:, 1:-1, 1:-1]
    for neighbour in (grey[:, :-2, 1:-1], grey[:, 2:, 1:-1], grey[:, 1:-1, :-2], grey[:, 1:-1, 2:]):
        edges -= neighbour
    colour = np.maximum(np.maximum(red, green), blue)
    colour -= np.minimum(np.minimum(red, green), blue)
    brightness = _mean(grey)
    grey -= brightness[:, None, None]
    found = {
        "brightness": brightness / 3,
        "contrast": np.sqrt(_mean(np.square(grey, out=grey))) / 3,
        "sharpness": _mean(np.abs(edges, out=edges)) / 3,
        "saturation": _mean(colour),
    }
    return {name: (values / 255).astype(np.float32) for name, values in found.items()}


def _mean(planes):
    return planes.reshape(len(planes), -1).mean(axis=1, dtype=np.float32)
