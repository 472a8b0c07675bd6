"""monitoring/drift.py: quiet on images of the same kind, loud on others, and what it says of them."""

import json
import pickle

import numpy as np
import pytest
from conftest import draw_reference, draw_rows

from helpers.data.corruptions import CORRUPTIONS
from helpers.inference.engine import Scores
from helpers.monitoring.drift import POINTS, DriftDetector, images_to_see
from helpers.monitoring.drift_reference import TESTS
from helpers.monitoring.scores import NAMES


@pytest.fixture(scope="module")
def reference():
    return draw_reference(np.random.default_rng(10**6), count=2000)


def feed(detector, count, seed, **shifts):
    """Feeds scores of images of one kind; `shifts` moves some of them."""
    rows = draw_rows(np.random.default_rng(seed), count)
    for name, shift in shifts.items():
        rows[:, NAMES.index(name)] += shift
    detector.update_rows(rows, np.clip(rows[:, 0], 0, 99).astype(int))
    return detector


def answers(count, units=32, seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(count, 100)).astype(np.float32)
    weights = np.exp(logits)
    return Scores(weights / weights.sum(1, keepdims=True), logits, random.random((count, units), np.float32))


def draw_images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("images", [0, 1, 50])
def test_too_few_images_give_no_verdict_and_say_how_many_more(reference, images):
    report = feed(DriftDetector(reference), images, seed=0).report()

    assert (report.verdict, report.images) == ("not enough data", images)
    assert report.needed == images_to_see(0.01) - images > 0
    assert (report.scores, report.effects, report.since, report.resembles) == ((), {}, None, None)


def test_enough_images_of_the_same_kind_are_stable(reference):
    report = feed(DriftDetector(reference), images_to_see(0.01), seed=0).report()

    assert (report.verdict, report.needed, report.alarm) == ("stable", 0, None)


def test_the_images_needed_are_enough_to_see_the_stated_shift_nine_times_in_ten(reference):
    count = images_to_see(0.01)

    seen = sum(
        feed(DriftDetector(reference), count, seed, contrast=0.7).report().verdict == "drift" for seed in range(40)
    )

    assert seen >= 32  # 36 expected; less than 32 has about 1 chance in 60 at 90 %


def test_clean_streams_raise_no_more_alarms_than_stated():
    alarms = 0
    for seed in range(100):
        detector = DriftDetector(draw_reference(np.random.default_rng(seed), count=200), alpha=0.1)
        alarms += feed(detector, 200, seed + 10**4).report().verdict == "drift"

    assert alarms <= 20  # 10 expected at most; more has less than 1 chance in 1,000


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_shift_of_any_one_score_is_drift_of_that_score_and_dated(reference, name):
    detector = feed(DriftDetector(reference), 300, seed=1)
    assert detector.report().verdict == "stable"

    report = feed(detector, 60, seed=2, **{name: 1.5}).report()

    assert (report.verdict, [score for score in report.scores if score in NAMES]) == ("drift", [name])
    assert 290 <= report.since <= 312
    assert 300 < report.alarm <= 345
    assert 0.2 < report.effects[name] < 0.5
    assert report.log10_capital[name] > np.log10(len(TESTS) / 0.01)


def test_scores_come_most_clearly_first_and_the_verdict_stays(reference):
    detector = feed(DriftDetector(reference), 100, seed=1, contrast=-1, energy=-2.5)
    first = detector.report()

    later = feed(detector, 3000, seed=2).report()

    assert first.scores == ("energy", "contrast")
    assert (later.verdict, later.since, later.alarm) == ("drift", first.since, first.alarm)


@pytest.mark.parametrize(("name", "row"), [("brightness", 0), ("sharpness", 1)])
def test_the_nearest_known_corruption_is_named(reference, name, row):
    found = feed(DriftDetector(reference), 100, seed=1, **{name: 1.2}).report().resembles

    assert (found["corruption"], found["severity"]) == (CORRUPTIONS[row], 3)  # a mean rank of 0.80, 3/11 above 0.5
    assert found["distance"] < 0.2


def test_a_drift_unlike_all_known_ones_is_not_given_a_name(reference):
    assert feed(DriftDetector(reference), 100, seed=1, brightness=-1.5).report().resembles is None


def test_superclasses_that_grew_and_shrank_are_named(reference):
    random = np.random.default_rng(0)
    rows = draw_rows(random, 800)
    rows[400:, 0] = random.choice([0, 1, 2, 3, 4, *range(10, 100)], 400, p=[0.1] * 5 + [0.5 / 90] * 90)
    detector = DriftDetector(reference)

    detector.update_rows(rows, rows[:, 0].astype(int))

    report = detector.report()
    assert (report.verdict, report.scores, report.grew) == ("drift", ("class",), ("superclass_00",))
    assert "superclass_01" in report.shrank


def test_one_by_one_and_in_batches_give_the_same(reference):
    images, scores = draw_images(40), answers(40)
    one, many = DriftDetector(reference), DriftDetector(reference)

    together = many.update(images, scores)
    for index in range(40):
        row = one.update(images[index : index + 1], Scores(*(a[index : index + 1] for a in vars(scores).values())))
        assert row["sharpness"][0] == pytest.approx(together["sharpness"][index], rel=1e-5)

    assert one.images == many.images == 40
    assert one.report().log10_capital == pytest.approx(many.report().log10_capital, abs=1e-6)


def test_it_is_all_the_same_how_often_one_asks(reference):
    rows = draw_rows(np.random.default_rng(1), 150)
    rows[70:, NAMES.index("energy")] += 1
    often, seldom = DriftDetector(reference), DriftDetector(reference)

    for row in rows:
        often.update_rows(row[None], row[:1].astype(int))
        often.report()
    seldom.update_rows(rows, rows[:, 0].astype(int))

    asked, unasked = often.report().as_dict(), seldom.report().as_dict()
    assert asked.pop("log10_capital") == pytest.approx(unasked.pop("log10_capital"))
    assert asked == unasked
    assert asked["verdict"] == "drift"


def test_images_that_wait_are_those_that_were_given(reference):
    rows = draw_rows(np.random.default_rng(1), 10)
    detector, expected = DriftDetector(reference), feed(DriftDetector(reference), 10, seed=1).report()

    detector.update_rows(rows, np.clip(rows[:, 0], 0, 99).astype(int))
    rows[:] = 1e6

    assert detector.report() == expected


def test_the_same_seed_gives_the_same_and_no_images_change_nothing(reference):
    first, second = (feed(DriftDetector(reference, seed=3), 200, seed=1) for _ in range(2))
    second.update(draw_images(0), answers(0))

    assert first.report() == second.report()


def test_memory_stays_flat_and_the_history_bounded(reference):
    """All that a detector holds, by its pickle: what else the process holds comes and goes."""
    rows = draw_rows(np.random.default_rng(0), 2000)
    detector, sizes = DriftDetector(reference), []
    fresh = len(pickle.dumps(detector))
    for _ in range(6):
        for start in range(0, 2000, 50):
            detector.update_rows(rows[start : start + 50], rows[start : start + 50, 0].astype(int))
        sizes.append(len(pickle.dumps(detector)) - fresh)

    assert max(sizes) - sizes[0] < 2**11  # half a byte an image would be more
    assert max(sizes) < 2**17
    images, capital = detector.history()
    assert len(images) == len(capital) <= POINTS + 1
    assert 11_000 < images[-1] <= 12_000


@pytest.mark.parametrize("alpha", [0, 1, -0.1, float("nan")])
def test_alpha_must_be_a_chance(reference, alpha):
    with pytest.raises(ValueError, match=f"alpha must be above 0 and below 1, got {alpha}"):
        DriftDetector(reference, alpha)


@pytest.mark.parametrize(
    ("images", "scores", "message"),
    [
        (draw_images(3)[0], answers(3), r"images must be uint8 \(n, 32, 32, 3\), got uint8 \(32, 32, 3\)"),
        (draw_images(3).astype(np.float32), answers(3), r"images must be uint8 .* got float32"),
        (
            draw_images(3),
            answers(2),
            r"probabilities must be \(3, 100\) as the images and the reference, got \(2, 100\)",
        ),
        (
            draw_images(3),
            answers(3, units=8),
            r"features must be \(3, 32\) as the images and the reference, got \(3, 8\)",
        ),
        (draw_images(1), Scores(*(a * np.nan for a in vars(answers(1)).values())), "scores must be finite; the model"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_taken_in(reference, images, scores, message):
    detector = DriftDetector(reference)

    with pytest.raises(ValueError, match=message):
        detector.update(images, scores)

    assert detector.images == 0


def test_a_report_is_json(reference):
    value = json.loads(json.dumps(feed(DriftDetector(reference), 100, seed=2, energy=3).report().as_dict()))

    assert (value["verdict"], value["scores"]) == ("drift", ["energy"])
