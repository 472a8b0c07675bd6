"""Changes images that leave their class the same, and their size."""

import numpy as np
from PIL import Image


def augment_images(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Flips each of `images` (n, side, side, 3) with probability one half, and shifts it by up to side / 8 pixels.

    Pixels that a shift uncovers mirror those inside.
    """
    count, side = images.shape[:2]
    reach = side // 8
    padded = np.pad(images, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shifts = random.integers(0, 2 * reach + 1, (2, count, 1))
    rows, columns = shifts + np.arange(side)
    columns = np.where(random.random((count, 1)) < 0.5, columns[:, ::-1], columns)
    return padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """`images`, uint8 (n, 32, 32, 3), at `side` pixels, each the mean of those with their centres in its area."""
    if images.shape[1] == side:
        return images
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images])
