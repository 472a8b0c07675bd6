"""pyproject.toml, the locks and environment.yml say the same, and the pins are not known to be unsafe."""

import os
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers.workspace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("run", "test", "gpu", "ray")  # of the dependencies and an extra; the server's own is in test_image.py
PYTHONS = ("3.11", "3.12", "3.13")
# The first versions without a known hole that matters here (loading models, parsing uploads, decoding images).
SAFE = {"keras": "3.15.1", "starlette": "1.3.1", "multipart": "1.3.1", "pillow": "12.3"}


def lines_of(lock: str) -> list[str]:
    """One requirement a line, hashes included."""
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def requirements_of(lock: str) -> list[Requirement]:
    return [Requirement(line.split(" --hash")[0]) for line in lines_of(lock)]


def pins_of(lock: str) -> dict[str, str]:
    return {canonicalize_name(item.name): str(item.specifier) for item in requirements_of(lock)}


def asked_of(lock: str) -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    return [Requirement(text) for text in PROJECT["project"]["dependencies"] + extras.get(lock, [])]


@pytest.mark.parametrize("lock", [*LOCKS, "serve"])
def test_each_package_has_one_exact_pin_and_its_hashes(lock):
    names = [canonicalize_name(item.name) for item in requirements_of(lock)]
    assert sorted(names) == sorted(set(names))
    for line, item in zip(lines_of(lock), requirements_of(lock), strict=True):
        assert re.fullmatch(r"==[^,*]+", str(item.specifier)), line[:80]
        assert item.url is None
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line[:80]


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_holds_what_pyproject_asks_for(lock):
    pins = pins_of(lock)
    for asked in asked_of(lock):
        version = pins[canonicalize_name(asked.name)].removeprefix("==")
        assert asked.specifier.contains(version, prereleases=True), f"{asked} is pinned to {version}; run: make lock"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_what_pyproject_asks_for_is_installed_on_each_python(lock, python):
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    installed = {
        canonicalize_name(item.name)
        for item in requirements_of(lock)
        if item.marker is None or item.marker.evaluate(environment)
    }
    assert {canonicalize_name(item.name) for item in asked_of(lock)} <= installed


@pytest.mark.parametrize("lock", ["test", "gpu", "ray"])
def test_the_larger_locks_hold_the_run_lock_line_by_line(lock):
    assert set(pins_of("run").items()) <= set(pins_of(lock).items())


def test_only_the_gpu_lock_brings_cuda():
    assert any(name.startswith("nvidia-cudnn") for name in pins_of("gpu"))
    assert not [name for lock in ("run", "test", "ray") for name in pins_of(lock) if name.startswith("nvidia")]


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize(("name", "safe"), SAFE.items())
def test_no_pin_is_older_than_the_first_safe_version(lock, name, safe):
    assert Version(pins_of(lock)[name].removeprefix("==")) >= Version(safe)


@pytest.mark.parametrize("lock", [*LOCKS, "serve"])
def test_no_lock_names_a_host_or_a_path(lock):
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    assert not re.search(
        r"://|^\s*-[ief]|--(index|extra-index|find-links|trusted)|file:|[\w-]\.(org|com|io|net)\b", text, re.M
    )


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    python, pip, packages = environment["dependencies"]
    assert python == f"python {PROJECT['project']['requires-python']}"
    assert pip == "pip"
    assert packages == {"pip": ["-r requirements/run.lock"]}


def test_the_names_of_project_and_environment_agree():
    assert yaml.safe_load((ROOT / "environment.yml").read_text())["name"] == PROJECT["project"]["name"]
    assert f"## [{PROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_continuous_integration_tests_the_pythons_that_pyproject_allows():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    allowed = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert [allowed.contains(f"3.{minor}") for minor in (10, 11, 12, 13, 14)] == [False, True, True, True, False]
    steps = workflow["jobs"]["test"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]
    assert [step["if"] for step in steps if "upload-artifact" in step.get("uses", "")] == ["${{ always() }}"]


def make(*arguments: str, **changes: str) -> subprocess.CompletedProcess:
    """Another make, which knows nothing of the one that may have started these tests."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "PYTHON"}
    environment = {name: value for name, value in os.environ.items() if name not in outer} | changes
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_make_alone_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", text, re.M)).split())
    assert targets == {"help", "run", "test", "lab", "serve", "evaluate", "lock", "lint", "format", "clean"} | {
        "bench-training",
        "bench-ablation",
        "bench-serving",
        "bench-drift",
        "test-gcs",
        "test-long",
        "image",
        "test-image",
    }
    assert {line.split()[1] for line in make().stdout.splitlines()} == targets


def test_a_wrong_python_is_refused_in_one_sentence(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.18\nexit 1\n')
    old.chmod(0o755)
    result = make(f"VENV={tmp_path}/venv", f"PYTHON={old}", "run")
    assert result.returncode == 2
    assert result.stderr.splitlines()[0] == (
        f"needs Python 3.11, 3.12 or 3.13, and {old} is Python 3.9.18; name another: make PYTHON=python3.12 run"
    )
    assert not (tmp_path / "venv").exists()


def test_another_python_is_found_when_python3_will_not_do(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3.12").write_text(f'#!/bin/sh\n[ "$1" = -c ] || echo "$@" > {tmp_path}/made\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    result = make(f"VENV={tmp_path}/venv", f"{tmp_path}/venv/bin/python", PATH=f"{tools}:/usr/bin:/bin")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "made").read_text() == f"-m venv --clear {tmp_path}/venv\n"
