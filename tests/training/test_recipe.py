"""training/recipe.py: what cannot work is refused in one sentence, before training."""

import pytest

from helpers.training.recipe import Recipe, RecipeError, choose_precision


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be above 0, got inf"),
        ({"momentum": 1}, "momentum must be from 0 to below 1, got 1"),
        ({"weight_decay": -0.1}, "weight_decay must be from 0 to below 1, got -0.1"),
        ({"label_smoothing": 1}, "label_smoothing must be from 0 to below 1, got 1"),
        ({"policy": "auto"}, "policy must be none or trivial, got auto"),
        ({"cutout": -1}, "cutout must be from 0 to 32, got -1"),
        ({"cutout": 33}, "cutout must be from 0 to 32, got 33"),
        ({"mixup": -0.1}, "mixup must be from 0 to 100, got -0.1"),
        ({"mixup": float("nan")}, "mixup must be from 0 to 100, got nan"),
        ({"cutmix": float("inf")}, "cutmix must be from 0 to 100, got inf"),
        ({"cutmix": float("nan")}, "cutmix must be from 0 to 100, got nan"),
        ({"average": 1.0}, "average must be from 0 to below 1, got 1.0"),
        ({"average": -0.5}, "average must be from 0 to below 1, got -0.5"),
        ({"average": float("nan")}, "average must be from 0 to below 1, got nan"),
        ({"warmup": 1}, "warmup must be from 0 to below 1, got 1"),
        ({"warmup": -0.5}, "warmup must be from 0 to below 1, got -0.5"),
        ({"seed": -1}, "seed must be from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be from 0 to 4294967295, got 4294967296"),
        ({"resolutions": ""}, "resolutions must be sides from 16 to 32, such as '16 24 32', got ''"),
        ({"resolutions": "8 32"}, "resolutions must be sides from 16 to 32, .* got '8 32'"),
        ({"resolutions": "16,32"}, "resolutions must be sides from 16 to 32, .* got '16,32'"),
        ({"resolutions": "32 64"}, "resolutions must be sides from 16 to 32, .* got '32 64'"),
        ({"resolutions": "32 16", "epochs": 2}, "resolutions must end with 32, what is served, got '32 16'"),
        (
            {"resolutions": "16 24 32", "epochs": 2},
            r"resolutions must be at most as many as epochs \(2\), got '16 24 32'",
        ),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(changes, sentence):
    with pytest.raises(RecipeError, match=f"^{sentence}$"):
        Recipe(**changes)


@pytest.mark.parametrize(
    ("epochs", "resolutions", "sides"),
    [
        (1, "32", [32]),
        (4, "16 32", [16, 16, 32, 32]),
        (6, "16 24 32", [16, 16, 24, 24, 32, 32]),
        (5, "16 24 32", [16, 16, 24, 24, 32]),
        (3, "16 24 32", [16, 24, 32]),
    ],
)
def test_resolutions_are_phases_and_the_last_epoch_is_at_32(epochs, resolutions, sides):
    recipe = Recipe(epochs=epochs, resolutions=resolutions)

    assert [recipe.resolution(epoch) for epoch in range(epochs)] == sides


def test_a_precision_is_taken_at_its_word_or_chosen():
    assert choose_precision("float32") == "float32"
    assert choose_precision("mixed_bfloat16") == "mixed_bfloat16"
    assert choose_precision("auto") in ("float32", "mixed_bfloat16")
    with pytest.raises(RecipeError, match="precision must be auto, float32 or mixed_bfloat16, got 'float16'"):
        choose_precision("float16")
