"""monitoring/scores.py: what the plain formulas give, in any batch."""

import numpy as np
import pytest

from helpers.inference.engine import Scores
from helpers.monitoring.scores import NAMES, score_images

RANDOM = np.random.default_rng(0)
MEANS, ORDER = RANDOM.random((10, 7), np.float32), RANDOM.permutation(10)


def answers(count):
    logits = RANDOM.normal(size=(count, 10)).astype(np.float32)
    weights = np.exp(logits)
    return Scores(weights / weights.sum(1, keepdims=True), logits, RANDOM.random((count, 7), np.float32))


def plain_scores(image, probabilities, logits, features):
    pixels = image.astype(float) / 255
    grey = pixels.mean(axis=-1)
    laplacian = [
        abs(4 * grey[y, x] - grey[y - 1, x] - grey[y + 1, x] - grey[y, x - 1] - grey[y, x + 1])
        for y in range(1, 31)
        for x in range(1, 31)
    ]
    answer = int(np.argmax(logits))
    return [
        ORDER[answer],
        max(probabilities),
        -np.log(np.exp(logits).sum()),
        np.linalg.norm(features - MEANS[answer]),
        grey.mean(),
        grey.std(),
        np.mean(laplacian),
        np.mean(pixels.max(axis=-1) - pixels.min(axis=-1)),
    ]


def test_scores_are_those_of_the_plain_formulas():
    images, found = RANDOM.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8), answers(5)

    scored = score_images(images, found, MEANS, ORDER)

    rows = zip(images, found.probabilities, found.logits, found.features, strict=True)
    assert (scored.shape, scored.dtype) == ((5, len(NAMES)), np.float32)
    np.testing.assert_allclose(scored, [plain_scores(*row) for row in rows], rtol=1e-4)


def test_grey_has_no_saturation_and_one_colour_neither_contrast_nor_edges():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, :16] = 255
    images[1] = (255, 0, 0)

    found = dict(zip(NAMES, score_images(images, answers(2), MEANS, ORDER).T, strict=True))

    assert found["saturation"].tolist() == [0, 1]
    assert found["brightness"] == pytest.approx([0.5, 1 / 3])
    assert found["contrast"] == pytest.approx([0.5, 0], abs=1e-3)
    assert found["sharpness"] == pytest.approx([2 / 30, 0], abs=1e-6)


def test_an_image_scores_the_same_alone_and_among_others():
    images, found = RANDOM.integers(0, 256, (130, 32, 32, 3), dtype=np.uint8), answers(130)

    together = score_images(images, found, MEANS, ORDER)

    for place in (0, 63, 64, 129):
        one = Scores(*(array[place : place + 1] for array in vars(found).values()))
        alone = score_images(images[place : place + 1], one, MEANS, ORDER)
        assert alone[0] == pytest.approx(together[place], rel=1e-6)
