"""The model card says what was measured, on what, and warns where it was the stand-in."""

import numpy as np
import pytest

from helpers.data.labels import Labels
from helpers.training.card import write_card
from helpers.training.evaluation import evaluate

LABELS = Labels(("cat", "dog", "car", "bus"), ("animals", "vehicles"), (0, 0, 1, 1))


@pytest.fixture
def result():
    targets = np.repeat(np.arange(4), 10)
    logits = 3.0 * np.eye(4)[targets]
    logits[0] = [0, 3, 0, 0]  # one cat taken for a dog
    logits = np.pad(logits, ((0, 0), (0, 2)), constant_values=-9)[:, :5]  # top-5 needs five classes
    labels = Labels((*LABELS.fine, "tram"), LABELS.superclasses, (*LABELS.superclass_of, 1))
    return evaluate(np.vstack([logits, [0, 0, 0, 0, 3]]), np.append(targets, 4), labels)


def card(result, synthetic):
    return write_card(
        name="tiny",
        data={"source": "somewhere", "fingerprint": "f" * 64, "synthetic": synthetic},
        evaluation=result,
        config={"width": 0.5, "num_classes": 5},
        training={"epochs": 7},
        start="scratch",
        hardware="one abacus",
    )


def test_the_card_states_results_data_recipe_and_hardware(result):
    text = card(result, synthetic=False)
    for part in (
        "# tiny",
        "| images | 41 |",
        "97.56%",
        "f" * 64,
        "| epochs | 7 |",
        "Started from: scratch",
        "one abacus",
    ):
        assert part in text
    assert "stand-in" not in text


def test_the_card_of_a_model_of_the_stand_in_opens_with_a_warning(result):
    assert (
        card(result, synthetic=True)
        .splitlines()[2]
        .startswith("> **Trained on the drawn stand-in, not on CIFAR-100.**")
    )
