"""Imports point one way, and a server starts without the training wing. The sources are read, and one is run."""

import ast
import subprocess
import sys
from functools import cache

import pytest

from helpers import ORDER
from helpers.workspace import ROOT

# Heavy, or of services that may be absent: the serving wing imports them inside functions, if at all.
HEAVY = {"tensorflow", "keras", "google", "wandb", "pyngrok", "matplotlib", "seaborn", "pandas", "pyarrow"}

PACKAGES = {name.split(".")[0] for name in ORDER if "." in name}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / "helpers" / f"{name.replace('.', '/')}.py").read_text(), f"{name}.py")


def imports_in(nodes) -> set[str]:
    """The dotted names that these statements import; ``from helpers.data import x`` is ``helpers.data.x``."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here (from helpers.x import y)"
            within = node.module in {"helpers", *(f"helpers.{package}" for package in PACKAGES)}
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if within else {node.module}
    return names


def helpers_imported_by(name: str) -> set[str]:
    """Modules of this package that `name` imports anywhere, inside functions as well."""
    found = imports_in(ast.walk(tree_of(name)))
    return {item.removeprefix("helpers.") for item in found if item.startswith("helpers.")} - {"ORDER"}


def at_start_up(name: str) -> list[ast.stmt]:
    """All statements that run when a module is imported: those outside functions and ``if TYPE_CHECKING``."""
    found, todo = [], list(tree_of(name).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found.append(node)
        todo.extend(ast.iter_child_nodes(node))
    return found


def serving_wing() -> set[str]:
    """What a server needs: service, tunnel and hosting, and everything these import."""
    return reached_from("serving.service", "serving.tunnel", "hosting")


def reached_from(*names: str) -> set[str]:
    """These modules and all that they import, inside functions as well."""
    reached, todo = set(), list(names)
    while todo:
        if (name := todo.pop()) not in reached:
            reached.add(name)
            todo.extend(helpers_imported_by(name))
    return reached


def test_the_order_lists_every_module_once():
    files = [path.relative_to(ROOT / "helpers").with_suffix("") for path in (ROOT / "helpers").rglob("*.py")]
    assert sorted(ORDER) == sorted(".".join(file.parts) for file in files if file.name != "__init__")


def test_a_package_may_import_only_those_packages_that_begin_above_it():
    first = {package: next(i for i, name in enumerate(ORDER) if name.startswith(f"{package}.")) for package in PACKAGES}
    for name in ORDER:
        if "." in name:
            package = name.split(".")[0]
            others = {item.split(".")[0] for item in helpers_imported_by(name) if "." in item} - {package}
            assert all(first[other] < first[package] for other in others), f"{name} imports from {others}"


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_those_above_it(name):
    above = set(ORDER[: ORDER.index(name)])
    assert helpers_imported_by(name) <= above, f"helpers/__init__.py lists what {name} may import"


@pytest.mark.parametrize("name", ORDER)
def test_a_module_says_what_it_is_for(name):
    assert ast.get_docstring(tree_of(name))


def test_the_serving_wing_is_what_we_think_it_is():
    known = {"delivery.storage", "data.images", "delivery.bundle", "registry", "inference.predictor", "serving.service"}
    assert known <= serving_wing()
    assert not serving_wing() & {"data.dataset", "training.loop", "figures", "pipeline.execution", "pipeline.report"}


@pytest.mark.parametrize("name", sorted({*serving_wing(), "monitoring.wandb_sink", "monitoring.drift"}))
def test_the_serving_wing_imports_nothing_heavy_at_start_up(name):
    top = {item.split(".")[0] for item in imports_in(at_start_up(name))}
    assert not top & HEAVY


@pytest.mark.parametrize("module", ["helpers.serving.service", "helpers.hosting"])
def test_importing_the_server_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert not set(result.stdout.split()) & (HEAVY - {"google"})


def test_the_pipeline_starts_without_what_takes_longer_to_import_than_all_the_rest():
    code = "import sys, run_pipeline; print(sys.modules['rfc3987_syntax'], 'jsonschema._format' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "None True\n", result.stderr
