"""training/evaluation.py: against values counted by hand and second, plainer implementations."""

import json
import math

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest

from helpers.data.labels import Labels
from helpers.training.evaluation import (
    bootstrap_interval,
    confusion_matrix,
    confusion_pairs,
    evaluate,
    exact_calibration_error,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    paired_difference,
    reliability,
    top_k_accuracy,
)

LABELS = Labels(("a", "b", "c", "d", "e", "f"), ("s", "t"), (0, 0, 0, 1, 1, 1))


def one_hot(answers, classes=6, height=5.0):
    return height * np.eye(classes)[answers]


def planted(count=20_000, classes=10, temperature=1.0, seed=0):
    """Logits, and targets drawn from the probabilities that the logits say after division by `temperature`."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(count, classes))
    weights = np.exp(logits / temperature)
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    targets = (probabilities.cumsum(axis=1) < random.random((count, 1))).sum(axis=1)
    return logits, targets, probabilities


def test_an_evaluation_is_what_one_counts_by_hand():
    targets = np.array([0, 1, 2, 3, 4, 5, 0, 3])
    answers = np.array([0, 1, 0, 3, 0, 4, 1, 3])  # right: 0, 1, 3, 3; right superclass: all but the 0 for class 4

    found = evaluate(one_hot(answers), targets, LABELS)

    assert found.samples == 8
    assert found.top1 == 4 / 8
    assert found.superclass_top1 == 7 / 8
    assert found.per_class == {"a": 0.5, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.0, "f": 0.0}
    assert found.per_superclass == {"s": 2 / 4, "t": 2 / 4}
    assert found.confusions == (("a", "b", 1), ("c", "a", 1), ("e", "a", 1), ("f", "e", 1))
    low, high = found.top1_interval
    assert 0 <= low < 0.5 < high <= 1


def test_the_temperature_is_in_likelihood_and_calibration_and_not_in_the_answers():
    targets, answers = np.arange(6), np.array([0, 1, 2, 3, 0, 1])  # 4 of 6 right, all equally sure
    confidence = {t: math.exp(5 / t) / (math.exp(5 / t) + 5) for t in (1.0, 2.0)}

    found = evaluate(one_hot(answers), targets, LABELS, temperature=2.0)

    assert found.top1 == pytest.approx(4 / 6)
    assert found.temperature == 2.0
    assert found.calibration_error_raw == pytest.approx(confidence[1.0] - 4 / 6)
    assert found.calibration_error == pytest.approx(abs(confidence[2.0] - 4 / 6))
    wrong = (1 - confidence[2.0]) / 5
    assert found.nll == pytest.approx(-(4 * math.log(confidence[2.0]) + 2 * math.log(wrong)) / 6)


def test_an_evaluation_is_json():
    value = json.loads(json.dumps(evaluate(one_hot(np.arange(6)), np.arange(6), LABELS).as_dict()))

    assert value["top1"] == 1.0
    assert value["confusions"] == []


def test_every_class_must_occur():
    with pytest.raises(ValueError, match="targets must hold every class; 4 does not occur"):
        evaluate(one_hot(np.array([0, 1, 2, 3, 5])), np.array([0, 1, 2, 3, 5]), LABELS)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_top_k_is_the_rank_of_the_target(k):
    logits, targets, _ = planted(500)

    ranks = [(row > row[target]).sum() for row, target in zip(logits, targets, strict=True)]

    assert top_k_accuracy(logits, targets, k) == np.mean([rank < k for rank in ranks])


@pytest.mark.parametrize("k", [0, 7])
def test_k_must_be_a_number_of_classes(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to 6, got {k}"):
        top_k_accuracy(one_hot(np.arange(6)), np.arange(6), k)


def test_likelihood_is_that_of_the_plain_formula_and_survives_large_logits():
    logits, targets, probabilities = planted(300)
    plain = -np.mean([math.log(row[target]) for row, target in zip(probabilities, targets, strict=True)])

    assert negative_log_likelihood(logits, targets) == pytest.approx(plain)
    assert negative_log_likelihood(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def plain_calibration_error(probabilities, targets, bins):
    total = 0.0
    for low in range(bins):
        rows = [
            (row.max(), row.argmax() == target)
            for row, target in zip(probabilities, targets, strict=True)
            if low / bins <= row.max() < (low + 1) / bins or (row.max() == 1 and low == bins - 1)
        ]
        if rows:
            confidence, correct = zip(*rows, strict=True)
            total += len(rows) / len(targets) * abs(np.mean(confidence) - np.mean(correct))
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_calibration_error_is_that_of_the_plain_formula(bins):
    _, targets, probabilities = planted(400, temperature=2.0)

    found = expected_calibration_error(probabilities**2 / (probabilities**2).sum(1, keepdims=True), targets, bins)

    expected = plain_calibration_error(probabilities**2 / (probabilities**2).sum(1, keepdims=True), targets, bins)
    assert found == pytest.approx(expected)
    assert found > 0.02


def test_what_is_calibrated_has_nearly_no_calibration_error_and_what_is_too_sure_has():
    logits, targets, probabilities = planted(temperature=1.0)
    too_sure = np.exp(3 * logits) / np.exp(3 * logits).sum(1, keepdims=True)

    assert expected_calibration_error(probabilities, targets) < 0.012
    assert expected_calibration_error(too_sure, targets) > 0.1


def test_what_exactly_calibrated_confidences_show_is_what_targets_drawn_from_them_show():
    _, _, probabilities = planted(2000)
    errors = [expected_calibration_error(*planted(2000, seed=seed)[:0:-1]) for seed in range(1, 41)]

    mean, low, high = exact_calibration_error(probabilities)

    assert mean == pytest.approx(np.mean(errors), rel=0.1)
    assert low < mean < high
    assert 34 <= sum(low <= error <= high for error in errors) <= 40
    assert exact_calibration_error(np.tile(probabilities, (4, 1)))[0] == pytest.approx(mean / 2, rel=0.1)
    assert exact_calibration_error(np.eye(3)) == (0, 0, 0)


def test_certain_and_wrong_is_the_largest_calibration_error():
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 4), np.array([1, 1, 1, 1])) == 1.0
    assert expected_calibration_error(np.array([[1.0, 0.0]] * 4), np.array([0, 0, 0, 0])) == 0.0


def test_reliability_counts_every_image_once_and_gives_empty_ranges_0():
    probabilities = np.array([[0.55, 0.45], [0.58, 0.42], [1.0, 0.0]])

    rows = reliability(probabilities, np.array([0, 1, 0]), bins=10)

    assert rows[:, 0].tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    np.testing.assert_allclose(rows[5], [2, 0.565, 0.5])
    np.testing.assert_allclose(rows[9], [1, 1, 1])
    assert not rows[:5].any()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_a_planted_temperature_is_found(temperature):
    logits, targets, _ = planted(temperature=temperature)

    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_with_the_temperature_mean_confidence_is_the_accuracy_also_where_logits_are_bent(smoothing):
    logits, targets, _ = planted(2000, temperature=1.7)
    logits = np.log((1 - smoothing) * softmax(logits, axis=1) + smoothing / logits.shape[1])

    confidence = softmax(logits / fit_temperature(logits, targets), axis=1).max(axis=1)

    assert confidence.mean() == pytest.approx(np.mean(logits.argmax(axis=1) == targets), abs=1e-4)


@pytest.mark.parametrize(("targets", "bound"), [(np.arange(6), 0.05), ((np.arange(6) + 1) % 6, 20.0)])
def test_the_temperature_stays_in_its_bounds(targets, bound):
    assert fit_temperature(one_hot(np.arange(6), height=1.0), targets) == pytest.approx(bound, rel=0.01)


def test_a_confusion_matrix_counts_pairs_by_true_class_and_answer():
    random = np.random.default_rng(0)
    targets, answers = random.integers(0, 4, (2, 200))
    expected = np.zeros((4, 4), int)
    for pair in zip(targets, answers, strict=True):
        expected[pair] += 1

    np.testing.assert_array_equal(confusion_matrix(targets, answers, 4), expected)


def test_the_most_frequent_confusions_come_first_without_right_answers_and_zeros():
    matrix = np.array([[90, 3, 0], [7, 80, 1], [0, 3, 70]])

    assert confusion_pairs(matrix) == [(1, 0, 7), (0, 1, 3), (2, 1, 3), (1, 2, 1)]
    assert confusion_pairs(matrix, limit=2) == [(1, 0, 7), (0, 1, 3)]
    assert confusion_pairs(np.diag([1, 2, 3])) == []


def test_a_bootstrap_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(3).random(2000) < 0.7

    low, high = bootstrap_interval(values)

    error = values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.2 * error)
    assert bootstrap_interval(values) == (low, high)


@pytest.mark.parametrize("mixed", [False, True], ids=["right and wrong", "many values"])
def test_an_interval_ends_where_other_resamples_of_whole_images_end(mixed):
    random = np.random.default_rng(8)
    values = (random.random(300) < 0.7) + mixed * random.random(300)
    means = values[random.integers(0, 300, (20_000, 300))].mean(axis=1)

    assert bootstrap_interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.004)
    assert bootstrap_interval(values, seed=1) == pytest.approx(bootstrap_interval(values), abs=0.004)


def test_an_interval_holds_the_truth_about_95_times_in_100():
    random = np.random.default_rng(4)
    intervals = [bootstrap_interval(random.random(60) < 0.6, seed) for seed in range(100)]

    assert 88 <= sum(low <= 0.6 <= high for low, high in intervals) <= 100


def test_a_paired_difference_is_sharper_than_its_parts():
    champion = np.random.default_rng(5).random(2000) < 0.6
    candidate = champion.copy()
    candidate[np.flatnonzero(~champion)[:40]] = True

    difference, low, high = paired_difference(candidate, champion)

    assert difference == pytest.approx(40 / 2000)
    assert 0 < low < difference < high < 0.03  # unpaired, the interval would be about 0.06 wide and hold 0


def test_a_model_that_answers_the_same_may_differ_by_what_so_many_images_do_not_show():
    for count in (20, 500):
        correct = np.random.default_rng(6).random(count) < 0.6
        difference, low, high = paired_difference(correct, correct)
        exact = binomtest(0, count).proportion_ci(method="exact")
        assert difference == 0
        assert -low == high == pytest.approx(exact.high)
