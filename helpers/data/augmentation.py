"""Changes training images, uint8 (n, side, side, 3): what shows the same class, mixtures of two, and other sizes.

Whatever is random comes from the generator that is given: the same generator, the same images.
"""

import numpy as np
from PIL import Image

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601


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


def vary_images(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Does one of `OPERATIONS` or nothing to each image, each as likely, at random strength.

    After TrivialAugment (Müller & Hutter 2021), with the operations that NumPy does to many images at once.
    """
    chosen = random.integers(0, len(OPERATIONS) + 1, len(images))  # the last number is nothing
    amounts = random.uniform(-1, 1, (len(images), 1, 1, 1)).astype(np.float32)
    varied = images.copy()
    for number, operation in enumerate(OPERATIONS.values()):
        these = chosen == number
        varied[these] = operation(images[these], amounts[these])
    return varied


def cut_out(images: np.ndarray, random: np.random.Generator, size: int) -> np.ndarray:
    """Paints a square of `size` pixels in each image with the mean colour of them all (DeVries & Taylor 2017).

    Its centre may be any pixel, so that part of the square may lie outside the image.
    """
    count, side = images.shape[:2]
    starts = random.integers(0, side, (2, count, 1)) - size // 2
    rows, columns = (starts <= np.arange(side)) & (np.arange(side) < starts + size)
    erased = images.copy()
    erased[rows[:, :, None] & columns[:, None, :]] = np.rint(images.mean(axis=(0, 1, 2)))
    return erased


def mix_images(
    images: np.ndarray, targets: np.ndarray, random: np.random.Generator, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes a batch with a permutation of itself, by one of two ways or, where that one is off, not at all.

    Args:
        targets: float (n, classes), the share of each class in each image.
        mixup: weighted means of pixels (Zhang et al. 2018), for half of the batches; they are rounded.
        cutmix: a rectangle of the other image (Yun et al. 2019), for the other half of the batches.
            Both are the parameter of the Beta distribution of the first image's share; 0 is off.

    Returns:
        Images, uint8, and targets mixed by the same shares.
    """
    use_mixup = random.random() < 0.5
    alpha = mixup if use_mixup else cutmix
    if not alpha:
        return images, targets
    share, other = random.beta(alpha, alpha), random.permutation(len(images))
    if use_mixup:
        mixed = np.rint(np.float32(share) * images + np.float32(1 - share) * images[other]).astype(np.uint8)
    else:
        side = images.shape[1]
        reach = round(side * np.sqrt(1 - share)) / 2
        starts = random.integers(0, side, 2) + 0.5 - reach
        top, left = np.rint(starts).astype(int).clip(0)
        bottom, right = np.rint(starts + 2 * reach).astype(int).clip(0, side)
        mixed = images.copy()
        mixed[:, top:bottom, left:right] = images[other, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / side**2  # what the border left of it
    return mixed, (share * targets + (1 - share) * targets[other]).astype(targets.dtype)


def resize_images(images: np.ndarray, side: int) -> np.ndarray:
    """`images`, uint8 (n, 32, 32, 3), at `side` pixels, each the mean of those with their centres in its area."""
    if images.shape[1] == side:
        return images
    resampling = Image.Resampling.BOX if 32 % side == 0 else Image.Resampling.HAMMING
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), resampling)) for image in images])


# --- operations on uint8 images, by amounts (n, 1, 1, 1) from -1 to 1, of which 0 changes nothing


def _brightness(images, amounts):
    return _blend(images, np.float32(0), amounts)


def _contrast(images, amounts):
    return _blend(images, (images @ LUMA).mean(axis=(1, 2))[:, None, None, None], amounts)


def _saturation(images, amounts):
    return _blend(images, (images @ LUMA)[..., None], amounts)


def _posterize(images, amounts):
    bits = np.rint(4 * np.abs(amounts)).astype(np.uint8)  # that go; four or more of eight stay
    return images >> bits << bits


def _solarize(images, amounts):
    return np.where(images >= 256 * (1 - np.abs(amounts)), 255 - images, images)


def _shear_rows(images, amounts):
    return _move(images, right=0.3 * amounts[..., 0] * _from_centre(images)[:, None])


def _shear_columns(images, amounts):
    return _move(images, down=0.3 * amounts[..., 0] * _from_centre(images))


def _translate_rows(images, amounts):
    return _move(images, right=10 / 32 * images.shape[1] * amounts[..., 0])


def _translate_columns(images, amounts):
    return _move(images, down=10 / 32 * images.shape[1] * amounts[..., 0])


def _blend(images, base, amounts):
    """Away from `base` or towards it, by a factor of 0.1 to 1.9."""
    return np.rint(base + (1 + 0.9 * amounts) * (images - base)).clip(0, 255).astype(np.uint8)


def _move(images, down=0, right=0):
    """Takes each pixel from so many whole pixels further down and right; beyond the border, images are mirrored."""
    last, places = images.shape[1] - 1, np.arange(images.shape[1])
    rows = last - np.abs(last - np.abs(places[:, None] + np.rint(down).astype(int)))
    columns = last - np.abs(last - np.abs(places + np.rint(right).astype(int)))
    return images[np.arange(len(images))[:, None, None], rows, columns]


def _from_centre(images):
    return np.arange(images.shape[1]) - (images.shape[1] - 1) / 2


OPERATIONS = {  # ranges: those that the paper takes over from RandAugment (Cubuk et al. 2020)
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "posterize": _posterize,
    "solarize": _solarize,
    "shear rows": _shear_rows,
    "shear columns": _shear_columns,
    "translate rows": _translate_rows,
    "translate columns": _translate_columns,
}
