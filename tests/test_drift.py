"""helpers/drift.py: quiet on the same kind of images, loud on others, silent on too few."""

import json

import numpy as np
import pytest

from helpers.drift import MIN_SAMPLES, SCORES, compare_scores, score_images
from helpers.synthetic import draw_images


def scores(count, seed, **shifts):
    """Scores as of images of one kind; `shifts` moves some of them."""
    random = np.random.default_rng(seed)
    return {name: (random.normal(size=count) + shifts.get(name, 0)).astype(np.float32) for name in SCORES}


@pytest.fixture(scope="module")
def reference():
    return scores(2000, seed=10**6)


@pytest.mark.parametrize(("samples", "needed"), [(0, 50), (1, 49), (49, 1)])
def test_too_few_images_give_no_verdict_and_say_how_many_more(reference, samples, needed):
    report = compare_scores(reference, scores(samples, seed=0, brightness=100))

    assert (report.verdict, report.samples, report.needed) == ("not enough data", samples, needed)
    assert (report.p_values, report.drifted) == ({}, ())


def test_enough_images_give_a_verdict(reference):
    report = compare_scores(reference, scores(MIN_SAMPLES, seed=0))

    assert (report.verdict, report.needed, set(report.p_values)) == ("stable", 0, set(SCORES))


@pytest.mark.parametrize(("level", "most"), [(0.01, 10), (0.05, 29)])
def test_false_alarms_are_no_more_frequent_than_the_level(reference, level, most):
    alarms = sum(compare_scores(reference, scores(100, seed), level).verdict == "drift" for seed in range(300))

    assert alarms <= most  # 3 and 15 expected at most; what is beyond has less than 1 chance in 1,000


def test_the_level_is_used_and_not_just_undercut(reference):
    alarms = sum(compare_scores(reference, scores(100, seed), 0.5).verdict == "drift" for seed in range(100))

    assert 20 <= alarms <= 60  # five scores at 0.1 each, independent here: 41 expected, less for ties


@pytest.mark.parametrize("name", SCORES)
def test_a_shift_of_any_one_score_is_drift_of_that_score(reference, name):
    report = compare_scores(reference, scores(200, seed=1, **{name: 0.7}))

    assert (report.verdict, report.drifted) == ("drift", (name,))


def test_drifted_scores_come_most_clearly_first(reference):
    report = compare_scores(reference, scores(300, seed=1, contrast=0.6, energy=1.5))

    assert report.drifted == ("energy", "contrast")


@pytest.mark.parametrize("level", [0, 1, -0.1, float("nan")])
def test_a_level_must_be_a_chance(reference, level):
    with pytest.raises(ValueError, match=f"level must be above 0 and below 1, got {level}"):
        compare_scores(reference, reference, level)


def answers(count, seed=0):
    logits = np.random.default_rng(seed).normal(size=(count, 100))
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True), logits


def plain_scores(image, probabilities, logits):
    pixels = image.astype(float) / 255
    brightness = [sum(pixel) / 3 for pixel in pixels.reshape(-1, 3)]
    saturation = [max(pixel) - min(pixel) for pixel in pixels.reshape(-1, 3)]
    return [
        max(probabilities),
        -np.log(np.exp(logits).sum()),
        np.mean(brightness),
        np.std(brightness),
        np.mean(saturation),
    ]


def test_scores_are_those_of_the_plain_formulas():
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    probabilities, logits = answers(5)

    found = score_images(images, probabilities, logits)

    expected = [plain_scores(*row) for row in zip(images, probabilities, logits, strict=True)]
    assert tuple(found) == SCORES
    np.testing.assert_allclose(np.stack(list(found.values()), 1), expected, rtol=1e-4)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_grey_has_no_saturation_and_one_colour_no_contrast():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, :16] = 255
    images[1] = (255, 0, 0)

    found = score_images(images, *answers(2))

    assert found["saturation"].tolist() == [0, 1]
    assert found["brightness"] == pytest.approx([0.5, 1 / 3])
    assert found["contrast"] == pytest.approx([0.5, 0], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "score"),
    [
        (lambda images: images // 2, "brightness"),
        (lambda images: np.clip(images.astype(int) + 60, 0, 255).astype(np.uint8), "brightness"),
        (lambda images: np.repeat(images.mean(-1, keepdims=True), 3, -1).astype(np.uint8), "saturation"),
        (lambda images: images // 3 + 85, "contrast"),
    ],
    ids=["darker", "brighter", "grey", "hazy"],
)
def test_changed_images_are_drift_and_unchanged_ones_are_not(change, score):
    labels = np.arange(100)
    before = score_images(draw_images(np.tile(labels, 5), seed=1), *answers(500, 1))
    images = draw_images(labels, seed=2)

    assert compare_scores(before, score_images(images, *answers(100, 2))).verdict == "stable"
    assert score in compare_scores(before, score_images(change(images), *answers(100, 2))).drifted


def test_a_report_is_json(reference):
    value = json.loads(json.dumps(compare_scores(reference, scores(100, seed=2, energy=3)).as_dict()))

    assert (value["verdict"], value["drifted"]) == ("drift", ["energy"])
