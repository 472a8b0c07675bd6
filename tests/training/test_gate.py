"""training/gate.py: a worse model does not pass, chance alone holds none back, and the decision says why."""

import json

import numpy as np
import pytest

from helpers.data.labels import Labels
from helpers.training.evaluation import evaluate
from helpers.training.gate import decide

LABELS = Labels(("a", "b", "c", "d"), ("s", "t"), (0, 0, 1, 1))
TARGETS = np.tile(np.arange(4), 1000)


def measure(*wrong):
    """Evaluation and correctness of a model that is wrong on the first so many images of each class."""
    answers = TARGETS.copy()
    for index, count in enumerate(wrong):
        places = np.flatnonzero(np.equal(TARGETS, index))
        answers[places[:count]] = (index + 1) % 4
    logits = 5.0 * np.eye(5)[answers]  # a fifth class that never occurs: top-5 needs five
    return evaluate(logits, TARGETS, LABELS), answers == TARGETS


def compare(candidate, champion, **arguments):
    evaluation, correct = candidate
    before, before_correct = champion
    return decide(
        evaluation,
        correct,
        champion="v1",
        champion_evaluation=before,
        champion_correct=before_correct,
        **{"floor": 0.1} | arguments,
    )


@pytest.mark.parametrize(("floor", "passed"), [(0.0, True), (0.75, True), (0.7501, False), (1.0, False)])
def test_without_a_champion_the_floor_decides(floor, passed):
    decision = decide(*measure(250, 250, 250, 250), floor=floor)

    assert decision.passed is passed
    verb = "reaches the floor of" if passed else "is below the floor of"
    assert decision.reason.startswith(f"top-1 0.7500 {verb} {floor:.4f}")
    assert (decision.champion, decision.difference, decision.interval, decision.regressions) == (None,) * 4


def test_a_candidate_below_the_floor_fails_even_if_it_beats_the_champion():
    decision = compare(measure(500, 500, 500, 500), measure(600, 600, 600, 600), floor=0.6)

    assert not decision.passed
    assert decision.reason == "top-1 0.5000 is below the floor of 0.6000"
    assert decision.champion == "v1"


BASE = measure(300, 300, 300, 300)
AGAINST_THE_CHAMPION = {
    "better": ((200, 200, 200, 200), True, 0.1),
    "the same": ((300, 300, 300, 300), True, 0.0),
    "worse within the tolerance": ((305, 305, 305, 305), True, -0.005),
    "worse by a little more": ((312, 312, 312, 312), False, -0.012),
    "much worse": ((400, 400, 400, 400), False, -0.1),
}


@pytest.mark.parametrize(("wrong", "passed", "difference"), AGAINST_THE_CHAMPION.values(), ids=AGAINST_THE_CHAMPION)
def test_a_candidate_passes_unless_it_loses_more_than_the_tolerance(wrong, passed, difference):
    decision = compare(measure(*wrong), BASE)

    assert decision.passed is passed
    assert decision.difference == pytest.approx(difference)
    low, high = decision.interval
    assert low <= decision.difference <= high
    assert passed is (low > -0.01)
    verdict = "is not below" if passed else "is below"
    assert (
        f"{verdict} the champion's by more than 0.0100: difference {difference:+.4f}, 95 % interval" in decision.reason
    )


def test_a_loss_that_may_be_more_than_the_tolerance_is_refused_though_it_was_measured_less():
    decision = compare(measure(308, 308, 308, 308), BASE)

    assert -0.01 < decision.difference < 0
    assert decision.interval[0] < -0.01
    assert not decision.passed
    assert "may be below the champion's by more than 0.0100" in decision.reason


def test_the_same_answers_on_too_few_images_do_not_pass():
    evaluation, correct = BASE
    for count, passed in ((360, False), (380, True)):
        few = np.resize(correct, count)
        decision = decide(
            evaluation, few, floor=0.1, champion="v1", champion_evaluation=evaluation, champion_correct=few
        )
        assert decision.passed is passed
        assert ("may be below" in decision.reason) is not passed


def test_the_tolerance_is_the_callers():
    candidate = measure(330, 330, 330, 330)

    assert not compare(candidate, BASE, tolerance=0.01).passed
    assert compare(candidate, BASE, tolerance=0.04).passed


def test_without_a_tolerance_a_candidate_must_gain():
    assert not compare(BASE, BASE, tolerance=0).passed
    assert compare(measure(299, 300, 300, 300), BASE, tolerance=0).interval[0] == 0
    assert not compare(measure(299, 300, 300, 300), BASE, tolerance=0).passed
    assert compare(measure(280, 300, 300, 300), BASE, tolerance=0).passed


def test_superclasses_that_lost_are_named_worst_first_even_if_the_whole_did_not_lose():
    decision = compare(measure(350, 350, 250, 250), BASE)

    assert decision.passed
    assert decision.difference == pytest.approx(0)
    assert decision.regressions == {"s": pytest.approx(-0.05)}

    both = compare(measure(320, 320, 390, 390), BASE, tolerance=0.01).regressions
    assert list(both.items()) == [("t", pytest.approx(-0.09)), ("s", pytest.approx(-0.02))]


def test_a_loss_within_the_tolerance_is_no_regression():
    assert compare(measure(305, 305, 300, 300), BASE, tolerance=0.01).regressions == {}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"floor": -0.1}, "floor must be from 0 to 1, got -0.1"),
        ({"floor": 60}, "floor must be from 0 to 1, got 60"),
        ({"floor": float("nan")}, "floor must be from 0 to 1, got nan"),
        ({"floor": 0.1, "tolerance": 2}, "tolerance must be from 0 to 1, got 2"),
    ],
)
def test_shares_that_are_none_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        decide(*BASE, **changes)


def test_a_decision_is_json():
    value = json.loads(json.dumps(compare(measure(400, 400, 400, 400), BASE).as_dict()))

    assert value["passed"] is False
    assert value["champion"] == "v1"
    assert len(value["interval"]) == 2
