"""What a run is asked to do: the parameters that notebooks declare, and the values that profiles and people give them.

A parameter is a line such as ``epochs: int = 2  # passes over the training images`` in the cell tagged ``parameters``.
papermill passes what it does not know with a mere warning, so everything is checked here, before a kernel starts.
"""

import ast
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papermill
import yaml

ALL, TIMEOUTS = "all", "timeouts"
OWN = ("run_id", "run_dir")  # the pipeline passes these two itself
PATHS = ("bucket", "log")  # parameters whose value may be a path
TYPES = {"int": int, "float": float, "str": str, "bool": bool}


class ProfileError(ValueError):
    """A profile or a ``-p`` names what is not there, or gives a value of the wrong type."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter: its type (``int``, ``float``, ``str`` or ``bool``), default and one line of help."""

    name: str
    type: str
    default: Any
    help: str


@dataclass(frozen=True)
class Settings:
    """What each stage runs with: all parameters but the pipeline's own, and a timeout in seconds, None for no limit."""

    parameters: dict[str, dict[str, Any]]
    timeouts: dict[str, float | None]


def declared_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters that a notebook declares, in its order, the pipeline's own two included.

    Raises:
        ProfileError: if there is no such notebook, or a declaration that people could not set.
    """
    if not notebook.is_file():
        raise ProfileError(f"there is no notebook {notebook}")
    found = papermill.inspect_notebook(str(notebook).replace("{", "{{").replace("}", "}}"))
    parameters = {}
    for name, item in found.items():
        try:
            default = ast.literal_eval(item["default"])
        except (ValueError, SyntaxError):
            raise ProfileError(f"{notebook}: {name} must have a plain literal, got {item['default']}") from None
        kind = item["inferred_type_name"] if item["inferred_type_name"] != "None" else type(default).__name__
        if kind not in TYPES:
            raise ProfileError(f"{notebook}: {name} must be int, float, str or bool, got {kind}")
        parameters[name] = Parameter(name, kind, default, item["help"])
    for name in OWN:
        if name not in parameters:
            raise ProfileError(f'{notebook}: the parameters cell must declare {name}: str = ""')
    return parameters


class _Loader(yaml.SafeLoader):
    """YAML without repeated keys, of which PyYAML keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_profile(path: Path) -> dict[str, dict[str, Any]]:
    """A profile's sections: ``all``, ``timeouts`` and the stages, each a mapping from names to plain values.

    Raises:
        ProfileError: if there is no such file (naming the nearest), or it is no YAML mapping of mappings.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        others = [str(other) for other in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ProfileError(f"cannot read {path} ({error.strerror}){_nearest(str(path), others)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    sections = {} if value is None else value
    if not isinstance(sections, dict):
        raise ProfileError(f"{path}: must hold sections such as 'train:', got {sections!r}")
    sections = {name: {} if values is None else values for name, values in sections.items()}
    for name, values in sections.items():
        if not isinstance(values, dict):
            raise ProfileError(f"{path}: {name} must be a section of NAME: VALUE lines, got {values!r}")
    return sections


def settings(
    declared: Mapping[str, Mapping[str, Parameter]],
    sections: Mapping[str, Mapping[str, Any]],
    overrides: Sequence[str] = (),
    origin: str = "profile",
    swept: Sequence[str] = (),
) -> Settings:
    """The final values: notebook default, then profile ``all``, profile stage, ``-p all.X``, ``-p STAGE.X``.

    `declared` maps stages to their parameters, `sections` is a profile (`origin` names it in errors) and `overrides`
    are ``SECTION.NAME=VALUE`` texts, as are the `swept` values of a sweep's member, which go above all. A relative path
    means one in the current folder in such a text, and one in the repository in a profile.

    Raises:
        ProfileError: for the first unknown section, unknown parameter (naming the nearest) or wrong value.
    """
    values = {s: {n: p.default for n, p in ps.items() if n not in OWN} for s, ps in declared.items()}
    timeouts: dict[str, float | None] = dict.fromkeys(declared)
    given = [(s, n, v, f"{origin}: {s}.{n}") for s, items in sections.items() for n, v in items.items()]
    given.sort(key=lambda item: item[0] != ALL)  # what is said of one stage goes before what is said of all
    chosen = [(*_split(text, "-p"), f"-p {text}") for text in overrides]
    chosen.sort(key=lambda item: item[0] != ALL)
    chosen += [(*_split(text, "--sweep"), f"--sweep {text}") for text in swept]
    for section in sections:
        _known_section(section, declared, origin)
    for section, name, value, where in given + chosen:
        _known_section(section, declared, where)
        if name in OWN:
            raise ProfileError(f"{where}: {name} is set by the pipeline itself; leave it out")
        if section == TIMEOUTS:
            known(name, declared, where, f"{TIMEOUTS} has no stage {name!r}")
            timeouts[name] = _convert(value, "float", where)
            if timeouts[name] <= 0:
                raise ProfileError(f"{where}: must be more than 0 seconds, got {timeouts[name]:g}")
            continue
        stages = [stage for stage in declared if section in (ALL, stage) and name in declared[stage]]
        if not stages:
            raise ProfileError(f"{where}: {_unknown_parameter(section, str(name), declared)}")
        for stage in stages:
            final = _convert(value, declared[stage][name].type, where)
            typed = isinstance(value, _Text) and name in PATHS
            values[stage][name] = absolute_path(final) if typed else final
    return Settings(values, timeouts)


def absolute_path(place: str) -> str:
    """`place` from the root on, if it is a path; urls such as ``gs://bucket``, and the empty text, as they are."""
    return place if not place or re.match(r"[\w+.-]+:", place) else os.path.abspath(os.path.expanduser(place))


@dataclass(frozen=True)
class _Text:
    """A value from the command line, whose type the parameter decides."""

    text: str


def _split(override: str, option: str) -> tuple[str, str, _Text]:
    target, equals, text = override.partition("=")
    section, dot, name = target.partition(".")
    if not (equals and dot and section and name):
        raise ProfileError(f"{option} {override}: must be STAGE.NAME=VALUE, for example train.epochs=3")
    return section, name, _Text(text)


def _convert(value: Any, kind: str, where: str) -> Any:
    """`value` as an int, float, str or bool; only int to float is converted (and command-line text, which is YAML)."""
    if isinstance(value, _Text):
        text = value.text
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if kind == "str" and not isinstance(value, str):
            value = text  # -p train.name=2026 is the text "2026"
    if kind == "float" and isinstance(value, str):
        value = _number(value)  # YAML 1.1 takes 1e-3 for a string
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not TYPES[kind] or (kind == "float" and not math.isfinite(value)):
        what = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}[kind]
        raise ProfileError(f"{where}: must be {what} ({kind}), got {value!r}")
    return value


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _known_section(section: Any, declared: Iterable[str], where: str) -> None:
    known(section, [ALL, *declared, TIMEOUTS], where, f"there is no stage {section!r}")


def known(name: Any, names: Iterable[str], where: str, problem: str) -> None:
    """Raise `ProfileError`, naming the nearest of `names`, unless `name` is one of them."""
    if name not in (names := list(names)):
        raise ProfileError(f"{where}: {problem}{_nearest(str(name), names) or '; there are ' + ', '.join(names)}")


def _unknown_parameter(section: str, name: str, declared: Mapping[str, Mapping[str, Parameter]]) -> str:
    mine = {n for s, ps in declared.items() if section in (ALL, s) for n in ps if n not in OWN}
    problem = "no stage has a parameter" if section == ALL else f"{section} has no parameter"
    elsewhere = [f"{s}.{name}" for s, ps in declared.items() if name in ps]
    hint = _nearest(name, mine) or (f"; did you mean {elsewhere[0]}?" if elsewhere else "")
    return f"{problem} {name!r}{hint or '; there are ' + ', '.join(sorted(mine))}"


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
