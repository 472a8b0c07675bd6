"""The images: what their files say, and with ``--long`` (``make test-image``) a server built, started and asked."""

import ast
import fnmatch
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from contextlib import contextmanager
from importlib.metadata import packages_distributions

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_imports import imports_in, reached_from, tree_of

from helpers.client import Client, encode_png
from helpers.delivery.bundle import read_bundle
from helpers.serving.options import parse
from helpers.workspace import ROOT

DOCKERFILES = ["Dockerfile", "deploy/lab.Dockerfile"]
LIMIT_MB = 600
# Of what the server may import: the Keras engine, a notebook's loop, exports for analysts, and the export of models.
NOT_IN_IMAGE = {"keras", "tensorflow", "nest_asyncio", "pyarrow", "onnx"}


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what follows it."""
    text = re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def values(name: str, instruction: str) -> list[str]:
    return [rest for found, rest in instructions(name) if found == instruction]


def lock_names(lock: str) -> set[str]:
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}


def copied(name: str) -> list[str]:
    """The sources, in the repository, of all COPY of a Dockerfile."""
    return [source for rest in values(name, "COPY") if "--from" not in rest for source in rest.split()[:-1]]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_stage_begins_at_a_base_that_can_be_named(name):
    assert values(name, "ARG") == ["BASE=python:3.12-slim"]
    assert {rest.split(" AS ")[0] for rest in values(name, "FROM")} == {"${BASE}"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there_and_let_in(name):
    patterns = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert copied(name)
    for source in copied(name):
        assert (ROOT / source).exists(), source
        assert source.rstrip("/") in let_in


def test_nothing_else_is_let_in():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    let_in = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert patterns[0] == "*"
    assert let_in == {source.rstrip("/") for name in DOCKERFILES for source in copied(name)}
    for unwanted in ("tests", "runs", "store", ".git", ".venv", "benchmarks"):
        assert not [pattern for pattern in let_in if fnmatch.fnmatch(unwanted, pattern)]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_it_runs_as_a_numbered_user_who_is_not_root_and_says_how_it_is(name):
    names = [instruction for instruction, _ in instructions(name)]
    user, group = map(int, values(name, "USER")[-1].split(":"))
    assert user > 0
    assert group > 0
    assert names.index("USER") > max(index for index, found in enumerate(names) if found in ("RUN", "COPY"))
    check = json.loads(values(name, "HEALTHCHECK")[0].split("CMD", 1)[1])
    assert check[:2] == ["python", "-c"]
    compile(check[2], "HEALTHCHECK", "exec")
    assert "curl" not in (ROOT / name).read_text()


@pytest.mark.parametrize(("name", "lock"), [*zip(DOCKERFILES, ("serve", "gpu"), strict=True)])
def test_packages_are_installed_from_a_lock_with_hashes_alone(name, lock):
    pip = [command for rest in values(name, "RUN") for command in rest.split("&&") if "pip install" in command]
    assert len(pip) == 1
    assert {"--require-hashes", "--no-cache-dir", "--only-binary", "-r", f"/{lock}.lock"} <= set(pip[0].split())
    assert f"requirements/{lock}.lock" in copied(name)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_no_secret_is_set_in_it(name):
    kept = " ".join(values(name, "ENV") + values(name, "ARG") + values(name, "RUN"))
    assert not re.search(r"(?i)token|secret|password|api_key", kept)


def test_the_command_of_the_server_is_one_that_it_takes():
    command = json.loads(values("Dockerfile", "CMD")[0])
    assert command[:3] == ["python", "-m", "helpers.hosting"]
    arguments = parse(command[3:])
    assert (arguments.host, arguments.port, arguments.watch) == ("0.0.0.0", 8080, 1.0)
    assert values("Dockerfile", "EXPOSE") == ["8080"]
    assert ":8080/health/ready" in values("Dockerfile", "HEALTHCHECK")[0]


def test_the_lock_of_the_server_is_a_part_of_the_run_lock():
    serve, run = ((ROOT / "requirements" / f"{name}.lock").read_text().splitlines() for name in ("serve", "run"))
    assert set(serve) <= set(run)


def test_the_lock_of_the_server_holds_no_training_and_no_notebooks():
    assert not lock_names("serve") & {
        canonicalize_name(name) for name in NOT_IN_IMAGE | {"jupyterlab", "papermill", "pandas", "wandb"}
    }


def test_the_group_of_the_server_asks_for_what_the_suite_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = project["dependency-groups"]["serve"]
    assert set(asked) <= set(project["project"]["dependencies"])
    assert {canonicalize_name(Requirement(text).name) for text in asked} <= lock_names("serve")


def test_all_that_the_server_and_a_release_import_is_in_the_lock_or_known_to_be_left_out():
    provided = packages_distributions()
    nodes = [node for name in reached_from("hosting", "release") for node in ast.walk(tree_of(name))]
    packages = {item.split(".")[0] for item in imports_in(nodes)} - set(sys.stdlib_module_names) - {"helpers"}
    assert packages > NOT_IN_IMAGE
    for package in packages - NOT_IN_IMAGE:
        assert {canonicalize_name(item) for item in provided[package]} & lock_names("serve"), package


# Building it


@pytest.fixture(scope="module")
def builder(request):
    """The command of the first builder that works here; only with ``--long``."""
    if not request.config.getoption("--long"):
        pytest.skip("builds an image, some minutes; run: make test-image")
    for name in ("docker", "podman", "buildah"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, check=False).returncode == 0:
            return name
    pytest.skip("none of docker, podman and buildah works here")


@pytest.fixture(scope="module")
def image(builder):
    """The name of the server's image, freshly built; SUITE_IMAGE_BASE and SUITE_IMAGE_ARGS go to ``make image``."""
    base, arguments = os.environ.get("SUITE_IMAGE_BASE", ""), os.environ.get("SUITE_IMAGE_ARGS", "")
    name = "localhost/cifar100-suite-test"
    command = ["make", "image", f"IMAGE={name}", f"BASE={base}", f"ARGS={arguments}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    if not base and re.search(r"(?i)no such host|dial tcp|registr", result.stderr) and result.returncode:
        pytest.skip(f"the base image cannot be had here, name another in SUITE_IMAGE_BASE: {result.stderr[-300:]}")
    assert result.returncode == 0, result.stderr[-2000:]
    return name


@contextmanager
def running(builder, image, port):
    """The server of the image at `port` of this machine; ``inside(*command)`` runs a command beside it."""
    settings = ["--env", "SUITE_ADMIN_TOKEN=a token of the tests"]
    command = [part.replace("8080", str(port)) for part in json.loads(values("Dockerfile", "CMD")[0])]
    if builder == "buildah":  # no engine: it runs in a working container, in the network of this machine
        name = output("buildah", "from", "--pull-never", image)
        start, inside = ["buildah", "run", *settings, name, "--", *command], ["buildah", "run", name, "--"]
    else:
        name = f"suite-test-{port}"
        shared = ["--read-only", "--tmpfs", "/tmp", "--network", "host"]
        start = [builder, "run", "--rm", "--name", name, *shared, *settings, image, *command]
        inside = [builder, "exec", name]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, lambda *part: subprocess.run([*inside, *part], capture_output=True, text=True, check=False)
    finally:
        process.terminate()
        process.communicate(timeout=30)
        if builder == "buildah":
            output("buildah", "rm", name)


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def size_of(builder, image):
    """Of the image, uncompressed, in MB of a million bytes."""
    if builder != "buildah":
        return int(output(builder, "image", "inspect", "--format", "{{.Size}}", image)) / 1e6
    name = output("buildah", "from", "--pull-never", image)
    try:
        files = output("du", "--summarize", "--bytes", "--one-file-system", output("buildah", "mount", name))
        return int(files.split()[0]) / 1e6
    finally:
        output("buildah", "rm", name)


def test_the_image_is_small(builder, image):
    assert size_of(builder, image) <= LIMIT_MB


def test_a_server_in_the_image_is_ready_answers_and_cannot_write_its_own_files(builder, image):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    bundle = read_bundle(ROOT / "model")
    images, expected = bundle.golden()
    with running(builder, image, port) as (process, inside):
        client = Client(f"http://127.0.0.1:{port}", patience=30)
        deadline = time.monotonic() + 60
        while client.get("/health/ready").status != 200:
            assert process.poll() is None
            assert time.monotonic() < deadline
        assert client.get("/model").body["version"] == bundle.version
        answer = client.predict_single(encode_png(np.asarray(images[0])))
        assert (answer.status, answer.body) == (200, bundle.labels.fine[expected[0].argmax()])

        check = json.loads(values("Dockerfile", "HEALTHCHECK")[0].split("CMD", 1)[1])
        assert inside(*(part.replace("8080", str(port)) for part in check)).returncode == 0
        assert inside(*(part.replace("8080", "9") for part in check)).returncode != 0
        assert inside("python", "-c", "import os; print(os.getuid())").stdout.strip() == "65532"
        assert re.search("denied|Read-only", inside("python", "-c", "open('/app/x', 'w')").stderr)
        assert "No module" in inside("python", "-c", "import tensorflow").stderr
        client.close()
