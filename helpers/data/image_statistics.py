"""What a picture looks like, in four numbers."""

import numpy as np

_CHUNK = 32  # images at once: their planes stay in the processor's cache


def describe_images(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of uint8 (n, 32, 32, 3) `images`: float32 (n,) by name, in units of the pixel range.

    Brightness; contrast, the standard deviation of brightness; sharpness, the mean absolute Laplacian of brightness;
    saturation, the largest less the smallest channel. They are sums of whole numbers: an image has the same ones alone
    and among others.
    """
    if len(images) <= _CHUNK:
        return _describe(images)
    parts = [_describe(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _describe(images):
    count = len(images)
    channels = np.ascontiguousarray(images.reshape(-1, 3).T)
    grey = np.add.reduce(channels, 0, np.int32).reshape(count, 1024)  # times three
    total = np.add.reduce(grey, 1)
    squares = np.einsum("ij,ij->i", grey, grey).astype(np.int64)
    edges = 4 * grey[:, 32:-32]  # of whole rows: what wraps round at their ends is left out of the sum
    for neighbour in (grey[:, :-64], grey[:, 64:], grey[:, 31:-33], grey[:, 33:-31]):
        edges -= neighbour
    edges = np.abs(edges, out=edges).reshape(count, 30, 32)[:, :, 1:-1]
    colour = np.maximum.reduce(channels) - np.minimum.reduce(channels)
    found = {
        "brightness": total / (3 * 1024 * 255),
        "contrast": np.sqrt(1024 * squares - total.astype(np.int64) ** 2) / (3 * 1024 * 255),
        "sharpness": edges.sum(axis=(1, 2)) / (3 * 900 * 255),
        "saturation": np.add.reduce(colour.reshape(count, 1024), 1, np.int32) / (1024 * 255),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}
