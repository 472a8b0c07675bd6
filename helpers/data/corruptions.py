"""Fifteen common corruptions of 32x32 images at five severities (NumPy, SciPy, Pillow).

The families are those of Hendrycks & Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations". Strengths and code are ours, chosen for 32x32, and snow, frost and fog are drawn, without
photographed textures. So results compare in kind with those on the official CIFAR-100-C files, not in number.

Inside, images are float32 (n, 3, 32, 32), 0 to 1: planes first, since most of this is done plane by plane.
"""

import io
from difflib import get_close_matches

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

SIZE = 32
_CHUNK = 1000  # images at once: bounds the memory
_PIXELS = np.arange(SIZE)


def corrupt(images: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """`images`, uint8 (n, 32, 32, 3) RGB, with the corruption `name` at `severity`: uint8 (n, 32, 32, 3).

    The same for the same seed. Severities share their random patterns, so that they differ in strength alone.

    Raises:
        ValueError: if there is no such corruption, `severity` is not 1 to 5, or `images` has another shape or dtype.
    """
    if name not in CORRUPTIONS:
        hint = get_close_matches(str(name), CORRUPTIONS, n=1, cutoff=0)[0]
        raise ValueError(f"name must be one of {', '.join(CORRUPTIONS)}, got {name!r}; did you mean {hint!r}?")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(f"images must be uint8 (n, 32, 32, 3), got {images.dtype} {images.shape}")
    change, strengths = _CORRUPTIONS[name]
    random = np.random.default_rng([seed, CORRUPTIONS.index(name)])
    changed = np.empty_like(images)
    for start in range(0, len(images), _CHUNK):
        planes = images[start : start + _CHUNK].transpose(0, 3, 1, 2).astype(np.float32) / 255
        values = change(planes, random, *strengths[severity - 1])
        changed[start : start + _CHUNK] = (values.clip(0, 1) * 255).round().transpose(0, 2, 3, 1)
    return changed


def _gaussian_noise(x, random, deviation):
    return x + deviation * random.standard_normal(x.shape, np.float32)


def _shot_noise(x, random, photons):
    return random.poisson(x * photons) / photons


def _impulse_noise(x, random, share):
    chance = random.random(x.shape, np.float32)
    return np.where(chance < share / 2, 0, np.where(chance > 1 - share / 2, 1, x))


def _defocus_blur(x, random, radius):
    reach = np.arange(-int(radius + 1), int(radius + 1) + 1)
    disc = np.clip(radius + 0.5 - np.hypot(reach[:, None], reach), 0, 1)  # a soft edge: radii between whole pixels
    return _filter(x, disc / disc.sum())


def _glass_blur(x, random, deviation, share, reach):
    x = gaussian_filter(x, (0, 0, deviation, deviation))
    shift = random.integers(-reach, reach + 1, (2, len(x), SIZE, SIZE))
    moved = random.random((len(x), SIZE, SIZE)) < share  # these pixels show a neighbour
    x = _gather(x, *(_grid(len(x)) + moved * shift).clip(0, SIZE - 1))
    return gaussian_filter(x, (0, 0, deviation, deviation))


def _motion_blur(x, random, length):
    angles = np.arange(12) * np.pi / 12  # twelve directions: one filter for all images that share one
    direction, blurred = random.integers(0, len(angles), len(x)), np.empty_like(x)
    for index, angle in enumerate(angles):
        blurred[direction == index] = _filter(x[direction == index], _line(length, angle))
    return blurred


def _zoom_blur(x, random, largest):
    zooms = np.linspace(1, largest, 8)
    centre = (SIZE - 1) / 2
    return sum(_resample(x, _interpolation(centre + (_PIXELS - centre) / zoom, SIZE)) for zoom in zooms) / len(zooms)


def _snow(x, random, share, length, haze):
    noise = gaussian_filter(random.standard_normal((len(x), 1, SIZE, SIZE), np.float32), (0, 0, 0.6, 0.6))
    limit = np.quantile(noise, 1 - share, axis=(2, 3), keepdims=True)
    flakes = _motion_blur(np.where(noise > limit, np.float32(1.2), 0), random, length)
    grey = x.mean(axis=1, keepdims=True)
    return x + haze * (0.5 + 0.5 * grey - x) + flakes  # daylight in snow is pale, too


def _frost(x, random, cover):
    ridges = (1 - np.abs(2 * _plasma(len(x), random, 0.75) - 1)) ** 3  # thin bright lines, as of crystals
    rim = np.hypot(_PIXELS[:, None] - 15.5, _PIXELS - 15.5).astype(np.float32) / 22  # panes freeze from the rim
    ice = np.clip(cover * (0.25 + ridges + 0.75 * rim), 0, 0.95)
    return x + ice * (np.array([0.8, 0.9, 1], np.float32)[:, None, None] - x)


def _fog(x, random, density):
    return x + density * (0.4 + 0.6 * _plasma(len(x), random, 0.5)) * (0.85 - x)


def _brightness(x, random, gain):
    value = x.max(axis=1, keepdims=True)  # V of HSV; hue and saturation stay
    return np.where(value > 0, x / np.maximum(value, 1 / 255), 1) * np.minimum(value + gain, 1)


def _contrast(x, random, factor):
    mean = x.mean(axis=(2, 3), keepdims=True)
    return mean + factor * (x - mean)


def _elastic_transform(x, random, amplitude):
    shift = gaussian_filter(random.standard_normal((2, len(x), SIZE, SIZE), np.float32), (0, 0, 3, 3))
    shift *= amplitude / shift.std()
    places = (_grid(len(x)) + shift).clip(0, SIZE - 1.001)
    (top, left), (down, right) = places.astype(int), np.expand_dims(places % 1, 2)
    upper = (1 - right) * _gather(x, top, left) + right * _gather(x, top, left + 1)
    lower = (1 - right) * _gather(x, top + 1, left) + right * _gather(x, top + 1, left + 1)
    return (1 - down) * upper + down * lower


def _pixelate(x, random, size):
    edges = np.linspace(0, SIZE, size + 1)[:, None]
    overlap = np.clip(np.minimum(_PIXELS + 1, edges[1:]) - np.maximum(_PIXELS, edges[:-1]), 0, 1)
    areas = overlap / overlap.sum(axis=1, keepdims=True)  # means over blocks, which need not be whole pixels
    return _resample(x, areas[(_PIXELS * size + size // 2) // SIZE])


def _jpeg_compression(x, random, quality):
    decoded = []
    for pixels in (x.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8):
        Image.fromarray(pixels).save(file := io.BytesIO(), "JPEG", quality=quality)
        decoded.append(np.asarray(Image.open(file)))
    return np.stack(decoded).transpose(0, 3, 1, 2) / np.float32(255)


_CORRUPTIONS = {  # name: the function and its strengths, severities 1 to 5
    "gaussian_noise": (_gaussian_noise, ((0.03,), (0.06,), (0.09,), (0.12,), (0.16,))),
    "shot_noise": (_shot_noise, ((400,), (150,), (75,), (40,), (20,))),
    "impulse_noise": (_impulse_noise, ((0.01,), (0.03,), (0.06,), (0.1,), (0.16,))),
    "defocus_blur": (_defocus_blur, ((0.7,), (1.0,), (1.4,), (1.8,), (2.4,))),
    "glass_blur": (_glass_blur, ((0.3, 0.3, 1), (0.35, 0.6, 1), (0.4, 1, 1), (0.45, 1, 2), (0.5, 1, 3))),
    "motion_blur": (_motion_blur, ((2,), (3,), (4.5,), (6,), (8,))),
    "zoom_blur": (_zoom_blur, ((1.06,), (1.12,), (1.18,), (1.26,), (1.35,))),
    "snow": (_snow, ((0.02, 2, 0.1), (0.04, 2, 0.2), (0.06, 3, 0.3), (0.09, 3, 0.4), (0.12, 4, 0.5))),
    "frost": (_frost, ((0.12,), (0.2,), (0.3,), (0.4,), (0.5,))),
    "fog": (_fog, ((0.25,), (0.4,), (0.55,), (0.7,), (0.85,))),
    "brightness": (_brightness, ((0.08,), (0.16,), (0.24,), (0.32,), (0.42,))),
    "contrast": (_contrast, ((0.75,), (0.55,), (0.4,), (0.28,), (0.18,))),
    "elastic_transform": (_elastic_transform, ((0.5,), (0.8,), (1.1,), (1.5,), (2.0,))),
    "pixelate": (_pixelate, ((26,), (22,), (18,), (14,), (10,))),
    "jpeg_compression": (_jpeg_compression, ((60,), (40,), (28,), (18,), (10,))),
}
CORRUPTIONS = tuple(_CORRUPTIONS)


def _filter(x, kernel):
    """Each plane correlated with a (k, k) kernel, k odd; edges are continued."""
    reach = len(kernel) // 2
    padded, total = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), "edge"), np.zeros_like(x)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        total += np.float32(kernel[row, column]) * padded[..., row : row + SIZE, column : column + SIZE]
    return total


def _line(length, angle):
    reach = int(length / 2 + 1)
    kernel, steps = np.zeros((2 * reach + 1, 2 * reach + 1)), np.linspace(-length / 2, length / 2, 4 * reach + 1)
    rows, columns = reach + steps * np.sin(angle), reach + steps * np.cos(angle)
    np.add.at(kernel, (rows.round().astype(int), columns.round().astype(int)), 1 / len(steps))
    return kernel


def _interpolation(places, size):
    """Matrix that takes `size` values to linearly interpolated ones at `places`, 0 to size - 1."""
    return np.clip(1 - np.abs(np.asarray(places)[:, None] - np.arange(size)), 0, 1)


def _resample(x, matrix):
    matrix = matrix.astype(np.float32)
    return matrix @ x @ matrix.T


def _plasma(count, random, persistence):
    """Cloud-like noise, float32 (count, 1, 32, 32), 0 to 1: random grids from coarse to fine, summed."""
    total = np.zeros((count, 1, SIZE, SIZE), np.float32)
    for octave, size in enumerate((3, 5, 9, 17, 32)):
        grid = random.random((count, 1, size, size), np.float32)
        total += persistence**octave * _resample(grid, _interpolation(np.linspace(0, size - 1, SIZE), size))
    low, high = total.min(axis=(2, 3), keepdims=True), total.max(axis=(2, 3), keepdims=True)
    return (total - low) / (high - low)


def _grid(count):
    rows, columns = np.broadcast_arrays(_PIXELS[:, None], _PIXELS)
    return np.stack([rows, columns])[:, None].repeat(count, axis=1)


def _gather(x, rows, columns):
    """The pixels of x at `rows` and `columns`, int (n, 32, 32)."""
    images = np.arange(len(x))[:, None, None]
    return np.moveaxis(x[images, :, rows, columns], -1, 1)
