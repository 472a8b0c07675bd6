"""monitoring/drift_reference.py: a reference comes back as it went in, or one error says what is wrong."""

import numpy as np
import pytest
from conftest import draw_reference, make_bundle

from helpers.monitoring.drift_reference import DriftReferenceError, read_reference

RANDOM = np.random.default_rng(0)


def test_a_reference_comes_back_as_it_was_written(tmp_path):
    written = draw_reference(RANDOM)

    read = read_reference(make_bundle(tmp_path, reference=written.as_arrays()))

    assert (read.labels, read.count, read.temperature) == (written.labels, written.count, written.temperature)
    for name, array in written.as_arrays().items():
        np.testing.assert_array_equal(getattr(read, name), array)


def test_classes_are_ordered_by_superclass():
    order, groups = draw_reference(RANDOM).class_order, np.array(draw_reference(RANDOM).labels.superclass_of)

    assert sorted(order) == list(range(100))
    assert (np.diff(groups[np.argsort(order)]) >= 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("edges"), "does not hold edges; train and publish the model again"),
        (
            lambda a: a.update(count=np.array(50)),
            "count must be at least 100 reference images, got 50; validate on more",
        ),
        (
            lambda a: a.update(edges=a["edges"][:, 1:]),
            r"edges must be finite numbers \(23, 99\), got float64 \(23, 98\)",
        ),
        (lambda a: a.update(edges=a["edges"][:, ::-1]), "edges must not fall"),
        (lambda a: a.pop("weights"), "does not hold weights; train and publish the model again"),
        (lambda a: a.update(cuts=a["cuts"][:, 1:]), r"cuts must be finite numbers \(8, 15\), got float32 \(8, 14\)"),
        (lambda a: a.update(accuracy=np.array(np.nan)), r"accuracy must be finite numbers \(\)"),
        (lambda a: a.update(losses=np.full((15, 5), "x")), r"losses must be finite numbers \(15, 5\), got <U1"),
        (lambda a: a.update(class_means=a["class_means"][:10]), r"class_means must be finite numbers \(100, 32\)"),
        (lambda a: a.update(temperature=np.array(2.5)), "is the reference of another model: its temperature is 2.5, "),
    ],
)
def test_what_does_not_hold_is_one_clear_error(tmp_path, change, message):
    arrays = draw_reference(RANDOM).as_arrays()
    change(arrays)

    with pytest.raises(DriftReferenceError, match=message):
        read_reference(make_bundle(tmp_path, reference=arrays))
