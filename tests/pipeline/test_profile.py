"""pipeline/profile.py: what may be set, what is meant, and one sentence for everything else."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from helpers.pipeline.profile import Parameter, ProfileError, declared_parameters, read_profile, settings

DECLARED = {
    "explore": {name: Parameter(name, kind, default, "") for name, kind, default in [
        ("seed", "int", 1), ("label", "str", "a"), ("run_id", "str", ""),
    ]},
    "train": {name: Parameter(name, kind, default, "") for name, kind, default in [
        ("seed", "int", 1), ("epochs", "int", 2), ("rate", "float", 0.1), ("fast", "bool", True), ("run_id", "str", ""),
    ]},
}  # fmt: skip


def test_nothing_given_leaves_the_defaults_without_the_pipelines_own():
    found = settings(DECLARED, {})
    assert found.parameters["train"] == {"seed": 1, "epochs": 2, "rate": 0.1, "fast": True}
    assert found.timeouts == {"explore": None, "train": None}


def test_a_stage_goes_before_all_and_the_command_line_before_the_profile():
    sections = {"train": {"seed": 3, "epochs": 5}, "all": {"seed": 2}}
    assert [v["seed"] for v in settings(DECLARED, sections).parameters.values()] == [2, 3]
    found = settings(DECLARED, sections, ["train.seed=9", "all.seed=8"]).parameters
    assert [values["seed"] for values in found.values()] == [8, 9]
    assert found["train"]["epochs"] == 5
    assert "epochs" not in found["explore"]


def test_timeouts_are_seconds_of_a_stage():
    found = settings(DECLARED, {"timeouts": {"train": 90}}, ["timeouts.explore=0.5"])
    assert found.timeouts == {"explore": 0.5, "train": 90.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("store-full", "{here}/store-full"),
        ("../store", "{here.parent}/store"),
        ("~/store", "{home}/store"),
        ("/data/store", "/data/store"),
        ("gs://bucket/key", "gs://bucket/key"),
        ("file:///data/store", "file:///data/store"),
        ("s3:bucket", "s3:bucket"),
        ("", ""),
    ],
)
def test_a_path_on_the_command_line_means_one_in_the_current_folder(tmp_path, monkeypatch, text, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    declared = {"deploy": {name: Parameter(name, "str", "", "") for name in ("bucket", "model_dir")}}
    typed = settings(declared, {}, [f"deploy.bucket={text}", f"deploy.model_dir={text}"]).parameters["deploy"]
    assert typed["bucket"] == value.format(here=tmp_path, home=tmp_path / "home")
    assert typed["model_dir"] == text, "a place in the bucket, not a path"
    assert settings(declared, {"deploy": {"bucket": text}}).parameters["deploy"]["bucket"] == text


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.epochs", "3", 3),
        ("train.rate", "3", 3.0),
        ("train.rate", "1e-3", 0.001),
        ("train.fast", "no", False),
        ("explore.label", "2026", "2026"),
        ("explore.label", "", ""),
        ("explore.label", "true", "true"),
        ("explore.label", "'quoted'", "quoted"),
        ("explore.label", "a=b: [c", "a=b: [c"),
        ("explore.label", "gs://bucket/key", "gs://bucket/key"),
    ],
)
def test_command_line_text_becomes_the_declared_type(name, text, value):
    stage, _, parameter = name.partition(".")
    found = settings(DECLARED, {}, [f"{name}={text}"]).parameters[stage][parameter]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"train": {"epoch": 1}}, "p.yaml: train.epoch: train has no parameter 'epoch'; did you mean epochs?"),
        (
            {"explore": {"epochs": 1}},
            "p.yaml: explore.epochs: explore has no parameter 'epochs'; did you mean train.epochs?",
        ),
        ({"explore": {"zzz": 1}}, "p.yaml: explore.zzz: explore has no parameter 'zzz'; there are label, seed"),
        ({"all": {"sed": 1}}, "p.yaml: all.sed: no stage has a parameter 'sed'; did you mean seed?"),
        ({"trian": {}}, "p.yaml: there is no stage 'trian'; did you mean train?"),
        ({"timeout": {}}, "p.yaml: there is no stage 'timeout'; did you mean timeouts?"),
        ({"timeouts": {"trian": 1}}, "p.yaml: timeouts.trian: timeouts has no stage 'trian'; did you mean train?"),
        ({"timeouts": {"train": 0}}, "p.yaml: timeouts.train: must be more than 0 seconds, got 0"),
        ({"timeouts": {"train": "1h"}}, "p.yaml: timeouts.train: must be a number (float), got '1h'"),
        ({"train": {"run_id": "x"}}, "p.yaml: train.run_id: run_id is set by the pipeline itself; leave it out"),
        ({"all": {"run_dir": "x"}}, "p.yaml: all.run_dir: run_dir is set by the pipeline itself; leave it out"),
        ({"train": {"epochs": True}}, "p.yaml: train.epochs: must be a whole number (int), got True"),
        ({"train": {"epochs": 2.0}}, "p.yaml: train.epochs: must be a whole number (int), got 2.0"),
        ({"train": {"epochs": "2"}}, "p.yaml: train.epochs: must be a whole number (int), got '2'"),
        ({"train": {"epochs": None}}, "p.yaml: train.epochs: must be a whole number (int), got None"),
        ({"train": {"rate": True}}, "p.yaml: train.rate: must be a number (float), got True"),
        ({"train": {"rate": float("nan")}}, "p.yaml: train.rate: must be a number (float), got nan"),
        ({"train": {"fast": 1}}, "p.yaml: train.fast: must be true or false (bool), got 1"),
        ({"explore": {"label": 5}}, "p.yaml: explore.label: must be text (str), got 5"),
        ({"explore": {"label": ["a"]}}, "p.yaml: explore.label: must be text (str), got ['a']"),
    ],
)
def test_what_a_profile_gets_wrong_is_named_with_the_nearest_right_one(sections, sentence):
    with pytest.raises(ProfileError) as caught:
        settings(DECLARED, sections, origin="p.yaml")
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epochs", "-p train.epochs: must be STAGE.NAME=VALUE, for example train.epochs=3"),
        ("epochs=3", "-p epochs=3: must be STAGE.NAME=VALUE, for example train.epochs=3"),
        (".epochs=3", "-p .epochs=3: must be STAGE.NAME=VALUE, for example train.epochs=3"),
        ("train.epochs=many", "-p train.epochs=many: must be a whole number (int), got 'many'"),
        ("train.rate=nan", "-p train.rate=nan: must be a number (float), got nan"),
        ("train.rate=.inf", "-p train.rate=.inf: must be a number (float), got inf"),
        ("train.epochs=[", "-p train.epochs=[: must be a whole number (int), got '['"),
        ("train.run_dir=x", "-p train.run_dir=x: run_dir is set by the pipeline itself; leave it out"),
    ],
)
def test_what_an_override_gets_wrong_is_named(override, sentence):
    with pytest.raises(ProfileError) as caught:
        settings(DECLARED, {}, [override])
    assert str(caught.value) == sentence


def test_a_profile_is_sections_of_plain_values(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("# a comment\nall:\ntrain: {epochs: 3}\n")
    assert read_profile(path) == {"all": {}, "train": {"epochs": 3}}
    path.write_text("# nothing but a comment\n")
    assert read_profile(path) == {}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n", "must hold sections such as 'train:', got ['a']"),
        ("train: 3\n", "train must be a section of NAME: VALUE lines, got 3"),
        ("train: [\n", "not YAML: "),
        ("train: {epochs: 1}\ntrain: {epochs: 2}\n", "not YAML: 'train' stands there twice"),
        ("train:\n  epochs: 1\n  epochs: 2\n", "not YAML: 'epochs' stands there twice"),
        ("train: !!python/object/apply:os.getcwd []\n", "not YAML: could not determine a constructor"),
        ("\udcff", "not YAML: "),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path, text, sentence):
    path = tmp_path / "p.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ProfileError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(f"{path}: {sentence}")


def test_an_absent_profile_names_the_nearest_one(tmp_path):
    (tmp_path / "full.yaml").touch()
    with pytest.raises(ProfileError) as caught:
        read_profile(tmp_path / "ful.yaml")
    wanted = f"cannot read {tmp_path / 'ful.yaml'} (No such file or directory); did you mean {tmp_path / 'full.yaml'}?"
    assert str(caught.value) == wanted


def write_notebook(path, source):
    cell = new_code_cell(source, metadata={"tags": ["parameters"]})
    metadata = {"kernelspec": {"name": "python3", "display_name": "p"}, "language_info": {"name": "python"}}
    nbformat.write(new_notebook(cells=[cell], metadata=metadata), path)
    return path


OWN = '\nrun_id: str = ""  # own\nrun_dir: str = ""  # own'


def test_a_notebooks_parameters_are_read_with_type_default_and_help(tmp_path):
    source = 'epochs: int = 2  # passes\nrate = 0.5  # speed\nword: str = "a # b"[0:]\n'
    path = write_notebook(tmp_path / "n {x}.ipynb", source.replace('"a # b"[0:]', "'a'  # letter") + OWN)
    found = declared_parameters(path)
    assert list(found) == ["epochs", "rate", "word", "run_id", "run_dir"]
    assert found["epochs"] == Parameter("epochs", "int", 2, "passes")
    assert found["rate"] == Parameter("rate", "float", 0.5, "speed")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("a: int = 1  # x", 'the parameters cell must declare run_id: str = ""'),
        ("a: list = [1]  # x" + OWN, "a must be int, float, str or bool, got list"),
        ("a: int = b + 1  # x" + OWN, "a must have a plain literal, got b + 1"),
    ],
)
def test_a_declaration_that_cannot_be_set_is_refused(tmp_path, source, sentence):
    path = write_notebook(tmp_path / "n.ipynb", source)
    with pytest.raises(ProfileError) as caught:
        declared_parameters(path)
    assert str(caught.value) == f"{path}: {sentence}"


def test_an_absent_notebook_is_named(tmp_path):
    with pytest.raises(ProfileError, match=r"there is no notebook .*n\.ipynb"):
        declared_parameters(tmp_path / "n.ipynb")
