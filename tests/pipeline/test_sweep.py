"""pipeline/sweep.py: which runs a sweep is made of, and how one of them went."""

import json

import pytest

from helpers.pipeline.journal import Journal
from helpers.pipeline.profile import ProfileError, Settings
from helpers.pipeline.sweep import FILE, Member, Record, members, read_outcome, set_apart
from helpers.receipts import start_stage


def test_the_members_are_the_product_in_order_with_a_folder_name_each():
    found = members(["train.epochs=1, 2", "train.start_from=scratch,models/a"])
    assert [member.name for member in found] == [
        "1-epochs-1-start-from-scratch",
        "2-epochs-1-start-from-models-a",
        "3-epochs-2-start-from-scratch",
        "4-epochs-2-start-from-models-a",
    ]
    assert found[1].overrides == ["train.epochs=1", "train.start_from=models/a"]
    assert [member.name[:2] for member in members(["all.seed=" + ",".join(map(str, range(12)))])][:2] == ["01", "02"]


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["train.epochs"], "--sweep train.epochs: must be STAGE.NAME=VALUE,VALUE,..., for example train.epochs=1,2,4"),
        (
            ["train.epochs="],
            "--sweep train.epochs=: must be STAGE.NAME=VALUE,VALUE,..., for example train.epochs=1,2,4",
        ),
        (["train.epochs=1,2,1"], "--sweep train.epochs=1,2,1: '1' stands there twice"),
        (["a.b=1", "a.b=2"], "--sweep a.b=2: a.b is swept already; name all its values at once"),
        (
            [f"a.{name}=" + ",".join(map(str, range(11))) for name in "bcd"],
            "--sweep: these are more than 1000 runs; name fewer values",
        ),
    ],
)
def test_what_is_no_sweep_is_refused_in_one_sentence(texts, sentence):
    with pytest.raises(ProfileError) as error:
        members(texts)
    assert str(error.value) == sentence


def settings(**changes):
    parameters = {"train": {"model_name": "vgg"}, "deploy": {"model_name": "vgg", "port": 0, "model_dir": ""} | changes}
    return Settings(parameters, {})


def test_members_that_train_have_a_model_name_of_their_own():
    member = Member("07-epochs-1", (("train.epochs", "1"),))
    found = set_apart(settings(), "20261125-120000-abcd", member, ["train", "deploy"]).parameters
    assert found["train"]["model_name"] == found["deploy"]["model_name"] == "vgg-20261125-120000-abcd-07"
    assert set_apart(settings(), "s", member, ["deploy"]).parameters["deploy"]["model_name"] == "vgg"


def test_a_port_for_all_is_refused_and_one_for_each_is_not():
    with pytest.raises(ProfileError, match=r"deploy\.port is 8000 for all; leave it 0, which takes a free one"):
        set_apart(settings(port=8000), "s", Member("1", (("train.epochs", "1"),)), ["deploy"])
    assert set_apart(settings(port=8000), "s", Member("1", (("train.epochs", "1"),)), ["train"])
    assert set_apart(settings(port=8000), "s", Member("1", (("deploy.port", "8000"),)), ["deploy"])


@pytest.fixture
def trained(tmp_path):
    """The folder of a member whose one stage is done."""
    directory = tmp_path / "1-epochs-1"
    directory.mkdir()
    book = Journal(directory, {}, {"train": {"notebook": "n.ipynb", "parameters": {}, "timeout": None}})
    book.begin("train", "inputs")
    start_stage("train", directory, directory.name, {}).finish(
        data={"source": "drawn", "fingerprint": "f", "synthetic": True},
        results={"top1": 0.5, "calibration_error": 0.01, "gate": {"passed": False}},
    )
    book.finish("train")
    book.close("done")
    return directory


def test_a_member_is_done_by_its_receipts_and_has_their_figures(trained):
    found = read_outcome(trained, 0)
    assert (found["state"], found["top1"], found["calibration_error"], found["gate"], found["error"]) == (
        *("done", 0.5, 0.01, "refused", None),
    )
    assert found["seconds"] >= 0
    assert found["warning"].startswith("SYNTHETIC DATA in train")


def test_neither_an_exit_status_nor_a_record_alone_makes_a_member_done(trained):
    found = read_outcome(trained, -9)
    assert (found["state"], found["error"]) == ("failed", "ended with status -9; 1-epochs-1/output.log says why")
    (trained / "train.receipt.json").write_text("{}")
    assert read_outcome(trained, 0)["state"] == "failed"
    (trained / "run.json").unlink()
    assert read_outcome(trained, 0)["error"].startswith("there is no run '1-epochs-1'")
    assert read_outcome(trained, 130)["state"] == "failed"


def test_a_sweep_is_no_better_than_its_worst_member(tmp_path):
    names = ["1-a", "2-a"]
    record = Record.begin(tmp_path, [Member(name, (("t.a", name),)) for name in names])
    for states, sweep in {
        ("done", "done"): "done",
        ("failed", "done"): "failed",
        ("done", "pending"): "interrupted",
    }.items():
        for name, state in zip(names, states, strict=True):
            record.value["members"][name]["state"] = state
        assert record.close() == sweep == json.loads((tmp_path / FILE).read_text())["state"]
    assert list(Record.go_on(tmp_path).value["members"]) == names
