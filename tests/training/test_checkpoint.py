"""training/checkpoint.py: the newest whole state of the same recipe, however the writer ended."""

import numpy as np
import pytest

from helpers.training import checkpoint as module
from helpers.training.checkpoint import latest_checkpoint, save_checkpoint

RECIPE = {"epochs": 9, "learning_rate": 0.1}


def make_model(units=4):
    import keras

    network = keras.Sequential([keras.Input((3,)), keras.layers.Dense(units), keras.layers.Dropout(0.5)])
    network.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    return network


def state(network):
    return [np.asarray(variable) for variable in [*network.variables, *network.optimizer.variables]]


def fill(network, value):
    network.optimizer.build(network.trainable_variables)
    for variable in [*network.variables, *network.optimizer.variables]:
        variable.assign(np.full(variable.shape, value, variable.dtype))


def results(epochs):
    return [{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, epochs + 1)]


def save(folder, epoch, recipe=RECIPE, units=4):
    """A checkpoint after `epoch` epochs whose every value is `epoch`."""
    network = make_model(units)
    fill(network, epoch)
    return save_checkpoint(folder, network, recipe, results(epoch))


def resume(folder, recipe=RECIPE, units=4):
    """What is found in `folder`, and the one value that every variable then has."""
    network = make_model(units)
    fill(network, 77)
    found = latest_checkpoint(folder, network, recipe)
    (value,) = {float(number) for array in state(network) for number in np.ravel(array)}
    return found, value


def test_the_whole_state_comes_back(tmp_path):
    network, other = make_model(), make_model()
    network.fit(np.ones((8, 3)), np.ones((8, 4)), verbose=0)  # momentum, step and dropout's state are no longer 0
    path = save_checkpoint(tmp_path / "new" / "folder", network, RECIPE, results(1))

    found = latest_checkpoint(path.parent, other, RECIPE)

    assert found == results(1)
    for ours, theirs in zip(state(other), state(network), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(other.optimizer.iterations) == 1
    assert any(np.abs(array).max() > 0 for array in map(np.asarray, other.optimizer.variables[2:]))


def test_an_absent_folder_holds_no_checkpoint(tmp_path):
    assert resume(tmp_path / "nowhere") == (None, 77)


def test_the_newest_is_taken_and_only_two_are_kept(tmp_path):
    for epoch in range(1, 12):
        save(tmp_path, epoch)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0010.npz", "epoch-0011.npz"]
    assert resume(tmp_path) == (results(11), 11)


@pytest.mark.parametrize("recipe", [RECIPE | {"epochs": 10}, RECIPE | {"seed": 1}, {}])
def test_the_checkpoint_of_another_recipe_is_ignored(tmp_path, recipe):
    save(tmp_path, 3)

    assert resume(tmp_path, recipe) == (None, 77)


def test_the_checkpoint_of_another_network_is_ignored(tmp_path):
    save(tmp_path, 3, units=5)

    assert resume(tmp_path) == (None, 77)


def test_the_checkpoints_of_a_longer_run_of_another_recipe_do_not_displace_new_ones(tmp_path):
    save(tmp_path, 29, recipe={})
    save(tmp_path, 30, recipe={})

    path = save(tmp_path, 1)

    assert path.exists()
    assert resume(tmp_path) == (results(1), 1)


def damage(data, how):
    return {
        "empty": b"",
        "half": data[: len(data) // 2],
        "less a byte": data[:-1],
        "garbage": b"garbage" * 100,
        "a bit flipped": data[:200] + bytes([data[200] ^ 1]) + data[201:],
    }[how]


@pytest.mark.parametrize("how", ["empty", "half", "less a byte", "garbage", "a bit flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_warning(tmp_path, how):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    newest.write_bytes(damage(newest.read_bytes(), how))

    with pytest.warns(RuntimeWarning, match=r"checkpoint .*epoch-0002.npz is damaged \(.*\); trying the one before"):
        assert resume(tmp_path) == (results(1), 1)


@pytest.mark.filterwarnings("ignore:checkpoint .* is damaged:RuntimeWarning")  # each flip may or may not be damage
def test_no_flipped_bit_gives_another_state(tmp_path):
    path = save(tmp_path, 2)
    whole, random, network = path.read_bytes(), np.random.default_rng(0), make_model()
    passed_over = 0

    for place in random.permutation(len(whole))[:300]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << random.integers(8)
        path.write_bytes(flipped)
        fill(network, 77)
        found = latest_checkpoint(tmp_path, network, RECIPE)
        assert found in (None, results(2))
        assert {float(number) for array in state(network) for number in np.ravel(array)} == {
            77.0 if found is None else 2.0
        }
        passed_over += found is None
    assert passed_over > 100


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before the arrays", "amid the arrays", "before the rename"])
def test_a_writer_killed_leaves_the_checkpoint_before(tmp_path, monkeypatch, moment):
    save(tmp_path, 1)
    savez = np.savez

    def savez_half(file, **arrays):
        if moment == "amid the arrays":
            savez(file, **dict(list(arrays.items())[:2]))
        raise Killed

    def replace(*_):
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "before the rename":
            patch.setattr(module.os, "replace", replace)
        else:
            patch.setattr(module.np, "savez", savez_half)
        with pytest.raises(Killed):
            save(tmp_path, 2)

    assert resume(tmp_path) == (results(1), 1)
    save(tmp_path, 2)  # what was left behind is in nobody's way
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001.npz", "epoch-0002.npz"]
    assert resume(tmp_path) == (results(2), 2)
