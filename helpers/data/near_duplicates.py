"""Test images that have a near-duplicate in training: the same picture recoloured, recompressed, shifted or mirrored.

Accuracy on them is partly memory. Two steps: outlines, small grey images, pick for each test image the most similar
image of each block of the training split; then full-size detail decides.

The threshold comes from looking at pairs of CIFAR-100, 24 from each range of similarity: above 0.65 nearly all are the
same picture, or products that differ in print or colour; from 0.5 to 0.6 about half are; below 0.45 few. At 0.5 it
finds 646 of the 10,000 test images. Barz & Denzler 2020, "Do We Train on Test Data?", found 891 with a network's
features and a look at every pair. What is missing here was mostly turned, scaled, or shifted by more than a pixel or
two, and some 100 to 200 of the 646 are lookalikes (lawn mowers, apples, horizons).
"""

import numpy as np
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

THRESHOLD = 0.5
SHIFT = 3  # pixels, in each direction
_CANDIDATE = 0.5  # correlation of outlines
_SCALE, _FLOOR = 1.0, 4.0  # of detail: pixels, and grey levels that are noise
_TEST_BLOCK, _TRAIN_BLOCK = 2000, 5000  # 40 MB of correlations at a time


def find_near_duplicates(test_images: np.ndarray, train_images: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Which of `test_images` have a near-duplicate in `train_images`, both uint8 (n, 32, 32, 3): bool (n,)."""
    return match_training_images(test_images, train_images)[1] >= threshold


def match_training_images(test_images: np.ndarray, train_images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training image most similar to each test image, int64 (n,), and how similar it is, float32 (n,), 0 to 1.

    Both are uint8 (n, 32, 32, 3). Where nothing comes close, the similarity is 0 and the index means nothing.
    """
    for name, images in (("test_images", test_images), ("train_images", train_images)):
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or not len(images):
            raise ValueError(
                f"{name} must be uint8 (n, 32, 32, 3) with n at least 1, got {images.dtype} {images.shape}"
            )
    index, similarity = np.zeros(len(test_images), np.int64), np.zeros(len(test_images), np.float32)
    outlines = _outlines(train_images)
    for seen in (test_images, test_images[:, :, ::-1]):
        for start in range(0, len(seen), _TEST_BLOCK):
            block = _outlines(seen[start : start + _TEST_BLOCK])
            for first in range(0, len(outlines), _TRAIN_BLOCK):
                correlation = block @ outlines[first : first + _TRAIN_BLOCK].T
                nearest = correlation.argmax(axis=1)
                rows = np.flatnonzero(correlation[np.arange(len(block)), nearest] > _CANDIDATE)
                tests, trains = start + rows, first + nearest[rows]
                found = compare_detail(seen[tests], train_images[trains])
                better = found > similarity[tests]
                index[tests[better]], similarity[tests[better]] = trains[better], found[better]
    return index, similarity


def compare_detail(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Correlation of the fine grey structure of two images each, uint8 (n, 32, 32, 3), at the best shift: float32 (n,).

    Blur is taken off, and contrast evened out locally. Otherwise one strong edge decides: any two horizons, and any
    two bottles on white, would be duplicates. What differs by a change of colour or light has the same detail.
    """
    spectrum = rfft2(_detail(images)) * np.conj(rfft2(_detail(others)))
    shifts = np.arange(-SHIFT, SHIFT + 1)
    return irfft2(spectrum, s=(32, 32))[:, shifts[:, None], shifts].max(axis=(1, 2), initial=-1)


def _outlines(images):
    grey = images.reshape(len(images), 16, 2, 16, 2, 3).mean(axis=(2, 4, 5), dtype=np.float32)
    rows = (grey - gaussian_filter(grey, (0, 2, 2))).reshape(len(images), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)


def _detail(images):
    grey = images.mean(axis=-1, dtype=np.float32)
    fine = grey - gaussian_filter(grey, (0, _SCALE, _SCALE))
    fine /= np.sqrt(gaussian_filter(fine**2, (0, 2, 2)) + _FLOOR**2)
    rim = np.minimum(1, (0.5 + np.arange(32)) / 4).astype(np.float32)  # fades out, as shifted images differ there
    rim = np.minimum(rim, rim[::-1])
    fine *= rim[:, None] * rim
    return fine / np.maximum(np.sqrt((fine**2).sum(axis=(1, 2), keepdims=True)), 1)
