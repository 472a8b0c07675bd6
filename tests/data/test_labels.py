"""data/labels.py: names that fit each other."""

import pytest

from helpers.data.labels import Labels


def test_labels_hold_names_in_index_order():
    labels = Labels(("apple", "wolf", "pear"), ("fruit", "animal"), (0, 1, 0))

    assert labels.superclasses[labels.superclass_of[labels.fine.index("wolf")]] == "animal"


@pytest.mark.parametrize(
    ("superclass_of", "sentence"),
    [
        ((0,), "superclass_of must have one entry for each of 2 classes, got 1"),
        ((0, 1, 1), "superclass_of must have one entry for each of 2 classes, got 3"),
        ((0, 2), r"superclass_of must be from 0 to 1, got \[2\]"),
        ((-1, 0), r"superclass_of must be from 0 to 1, got \[-1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(superclass_of, sentence):
    with pytest.raises(ValueError, match=sentence):
        Labels(("apple", "wolf"), ("fruit", "animal"), superclass_of)
