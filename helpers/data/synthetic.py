"""A drawn stand-in for CIFAR-100, for machines that have neither the data nor a network.

It has the same shape, 100 classes in 20 superclasses of 32x32 colour images, and is no substitute: what is measured
on it says that the code works, nothing about CIFAR-100. A superclass is an outline and a fill, a class adds a hue;
place, size, turn, shade, background and noise vary from image to image.
"""

import colorsys

import numpy as np

from helpers.data.labels import Labels

OUTLINES = {"disc": 0, "bar": 2, "trefoil": 3, "cross": 4, "star": 5}  # name: lobes
FILLS = ("solid", "hollow", "striped", "dotted")
HUES = {"red": 0.0, "yellow": 0.16, "green": 0.36, "blue": 0.6, "pink": 0.86}
SIZE = 32
_CHUNK = 1000  # images drawn at once: bounds the memory


def synthetic_labels() -> Labels:
    """Names of the drawn classes ("red solid disc") and superclasses ("solid disc")."""
    superclasses = tuple(f"{fill} {outline}" for outline in OUTLINES for fill in FILLS)
    return Labels(
        fine=tuple(f"{hue} {superclass}" for superclass in superclasses for hue in HUES),
        superclasses=superclasses,
        superclass_of=tuple(index for index in range(len(superclasses)) for _ in HUES),
    )


def draw_images(labels: np.ndarray, seed: int) -> np.ndarray:
    """One image for each of `labels` (n,), 0 to 99: uint8 (n, 32, 32, 3), the same for the same seed."""
    random = np.random.default_rng(seed)
    chunks = [_draw(labels[start : start + _CHUNK], random) for start in range(0, len(labels), _CHUNK)]
    return np.concatenate(chunks)


def _draw(labels, random):
    def per_image(low, high):
        return random.uniform(low, high, (len(labels), 1, 1)).astype(np.float32)

    superclass, hue = np.divmod(labels, len(HUES))
    outline, fill = np.divmod(superclass, len(FILLS))
    lobes = np.array(list(OUTLINES.values()))[outline][:, None, None]
    fill = fill[:, None, None]

    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    x, y = axis[None, None, :] - per_image(-0.3, 0.3), axis[None, :, None] - per_image(-0.3, 0.3)
    turn = per_image(-np.pi, np.pi)
    radius, angle = np.hypot(x, y), np.arctan2(y, x) + turn
    edge = per_image(0.45, 0.7) * (1 + np.where(lobes > 0, 0.45, 0) * np.cos(lobes * angle))
    along = x * np.cos(turn) - y * np.sin(turn)
    across = x * np.sin(turn) + y * np.cos(turn)
    pattern = np.choose(
        fill,
        [
            np.ones_like(radius),
            radius > 0.6 * edge,
            np.sin(16 * along) > 0,
            (np.sin(14 * along) > -0.2) & (np.sin(14 * across) > -0.2),
        ],
    )
    inside = np.clip((edge - radius) * SIZE / 4, 0, 1) * pattern  # a soft edge, one or two pixels wide

    hues = np.array(list(HUES.values()))[hue] + random.uniform(-0.04, 0.04, len(labels))
    shades = zip(hues % 1, random.uniform(0.65, 1, len(labels)), random.uniform(0.65, 1, len(labels)), strict=True)
    foreground = np.array([colorsys.hsv_to_rgb(*shade) for shade in shades], np.float32)[:, None, None]
    background = random.uniform(0.05, 0.75, (len(labels), 1, 1, 3)).astype(np.float32)
    background = background + (per_image(-0.2, 0.2) * x + per_image(-0.2, 0.2) * y)[..., None]
    image = background + inside[..., None] * (foreground - background)
    image += random.normal(0, 0.04, image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
