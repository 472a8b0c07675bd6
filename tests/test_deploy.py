"""The definitions in deploy/ and .github/workflows/: what they call exists, and takes what it is given."""

import importlib
import re
import shlex

import pytest
import yaml

import run_pipeline
from helpers.workspace import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
README = (ROOT / "deploy" / "README.md").read_text()
SERVICE = yaml.safe_load((ROOT / "deploy" / "service.yaml").read_text())
BUILD = yaml.safe_load((ROOT / "deploy" / "cloudbuild.yaml").read_text())
RETRAIN = yaml.safe_load((ROOT / ".github" / "workflows" / "retrain.yml").read_text())
OTHERS = {"gcloud", "rm", "envsubst", "export"}  # which no test can run here


def steps(workflow: dict) -> list[dict]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def commands() -> list[str]:
    """All that workflows and the README of deploy/ run, with a word for each variable and expression."""
    blocks = [step["run"] for step in steps(RETRAIN) if "run" in step]
    blocks += re.findall(r"```bash\n(.*?)```", README, re.S)
    blocks += [text for text in re.findall(r"`([^`\n]+)`", README) if text.startswith(("python -m", "make "))]
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    return [part.strip() for line in lines for part in re.split(r"&&", line)]


def words(command: str) -> list[str]:
    command = command.replace("$PARAMS", "params/cloud.yaml").replace("...", "X")
    return shlex.split(re.sub(r"\$\{?[A-Z_]+\}?", "X", re.split(r" >>? ", command)[0]))


MODULES = [command for command in commands() if re.match(r"(\.venv/bin/)?python -m helpers", command)]


@pytest.mark.parametrize("command", MODULES)
def test_a_module_takes_the_arguments_that_it_is_given(command):
    module, *arguments = words(command)[2:]
    assert importlib.import_module(module)._parser().parse_args(arguments)


def test_the_workflow_uses_the_commands_that_it_is_there_for():
    called = {words(command)[2] for command in MODULES}
    assert called == {"helpers.registry", "helpers.smoke", "helpers.release", "helpers.pipeline.summary"}


def test_all_other_commands_are_known():
    for command in [command for command in commands() if command not in MODULES]:
        first, *rest = words(command)
        if first == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert rest[0] in targets, command
        elif first == "python":
            assert rest == ["-m", "pip", "install", "--require-hashes", "-r", "requirements/serve.lock"]
        else:
            assert first in OTHERS, command


def test_the_training_is_one_that_the_pipeline_takes():
    (training,) = [words(command) for command in commands() if command.startswith("make run")]
    given = dict(word.split("=", 1) for word in training[2:])
    arguments = ["--params", str(ROOT / given["PARAMS"]), *given["ARGS"].split(), "--dry-run"]
    assert run_pipeline.main(arguments) == 0


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_few_rights_and_pins_its_actions(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"]["contents"] == "read"
    assert set(workflow["permissions"]) <= {"contents", "id-token"}
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"(actions|google-github-actions)/[\w-]+@v\d+", step["uses"])
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_puts_no_expression_into_a_shell_and_shows_no_secret(path):
    for step in steps(yaml.safe_load(path.read_text())):
        assert "${{" not in step.get("run", ""), "hand it over in env: a payload is somebody else's text"
        assert not re.search(r"\b(echo|printf|env|printenv|set -x)\b", step.get("run", ""))
        for name, value in {**step.get("env", {}), **step.get("with", {})}.items():
            if "secrets." in str(value):
                assert value == f"${{{{ secrets.{name} }}}}"


def test_retraining_starts_weekly_by_hand_and_on_drift():
    started = RETRAIN[True]  # YAML 1.1 reads the key "on" so
    assert started["repository_dispatch"] == {"types": ["drift"]}
    assert len(started["schedule"]) == 1
    assert "workflow_dispatch" in started


def test_only_what_was_promoted_is_released():
    train, release = RETRAIN["jobs"]["train"], RETRAIN["jobs"]["release"]
    assert release["needs"] == "train"
    assert release["if"] == "${{ needs.train.outputs.promoted == 'true' }}"
    (gate,) = [step for step in train["steps"] if step.get("id") == "gate"]
    assert "$GITHUB_STEP_SUMMARY" in gate["run"]
    assert gate["if"] == "${{ !cancelled() }}"


def test_the_build_hands_the_dockerfile_what_it_asks_for():
    (step,) = BUILD["steps"]
    arguments = step["args"]
    assert (ROOT / arguments[arguments.index("--file") + 1]).is_file()
    name = arguments[arguments.index("--build-arg") + 1].split("=")[0]
    assert f"ARG {name}={BUILD['substitutions']['_BASE']}" in (ROOT / "Dockerfile").read_text().splitlines()
    assert arguments[arguments.index("--tag") + 1 :] == ["${_IMAGE}", "."]
    assert BUILD["images"] == ["${_IMAGE}"]
    assert BUILD["serviceAccount"].endswith("suite-build@${PROJECT_ID}.iam.gserviceaccount.com")


def container() -> dict:
    (found,) = SERVICE["spec"]["template"]["spec"]["containers"]
    return found


def test_the_service_is_probed_where_the_server_answers():
    service = (ROOT / "README.md").read_text()
    for probe, path in (("startupProbe", "/health/ready"), ("livenessProbe", "/health/live")):
        assert container()[probe]["httpGet"] == {"path": path, "port": 8080}
        assert path in service
    assert container()["ports"] == [{"containerPort": 8080}]
    assert "EXPOSE 8080" in (ROOT / "Dockerfile").read_text()


def test_the_service_takes_its_secrets_from_secret_manager_and_holds_none():
    for variable in container()["env"]:
        if re.search("TOKEN|SECRET|KEY|WEBHOOK", variable["name"]):
            assert set(variable) == {"name", "valueFrom"}
            assert set(variable["valueFrom"]["secretKeyRef"]) == {"name", "key"}


def test_the_service_has_its_own_account_limits_and_one_place_to_write_to():
    template = SERVICE["spec"]["template"]
    assert template["spec"]["serviceAccountName"].startswith("suite-server@")
    scale = template["metadata"]["annotations"]
    assert 0 < int(scale["autoscaling.knative.dev/minScale"]) <= int(scale["autoscaling.knative.dev/maxScale"])
    assert template["spec"]["containerConcurrency"] > 0
    assert [mount["mountPath"] for mount in container()["volumeMounts"]] == ["/tmp"]
    assert template["spec"]["volumes"][0]["emptyDir"]["medium"] == "Memory"


def test_the_environment_that_the_definitions_set_is_read_by_the_suite():
    code = "".join(path.read_text() for path in (ROOT / "helpers").rglob("*.py"))
    texts = "".join(path.read_text() for path in (ROOT / "deploy").glob("*.*")) + str(RETRAIN)
    variables = set(re.findall(r"\bSUITE_[A-Z_]+\b", texts)) - {"SUITE_PARAMS", "SUITE_RUNNER"}  # the workflow's own
    assert variables >= {"SUITE_BUCKET", "SUITE_ADMIN_TOKEN"}
    assert [name for name in sorted(variables) if name not in code] == []


def test_the_readme_names_the_accounts_variables_and_files_that_there_are():
    assert [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not (ROOT / "deploy" / link).exists()] == []
    for name in set(re.findall(r"\b(?:vars|secrets)\.(\w+)", str(RETRAIN))):
        assert f"`{name}`" in README
    for account in ("suite-server", "suite-build", "suite-release"):
        assert f"| `{account}` |" in README
    for variable in re.findall(r"\$\{(\w+)\}", (ROOT / "deploy" / "service.yaml").read_text()):
        assert re.search(rf"\b{variable}=", README), f"envsubst needs {variable}"
