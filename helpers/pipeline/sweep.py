"""A pipeline run for each combination of some parameters' values: which they are, and in ``sweep.json`` how they went.

A member is a run like any other, in a folder of its own under that of the sweep. Members that train publish under a
model name of their own: none moves the alias that another, or a server, goes by.
"""

import itertools
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from helpers.pipeline.journal import RunError, damaged, read_record, read_run
from helpers.pipeline.profile import ProfileError, Settings
from helpers.pipeline.report import describe, synthetic_warning
from helpers.receipts import Receipt, ReceiptError, now, read_receipt, receipt_path, write_json

FILE, OUTPUT = "sweep.json", "output.log"
MOST = 1000  # members; more is a slip of the keyboard
TRAIN = "train"  # the stage whose receipt has the figures, and which publishes
NOTHING = {"top1": None, "calibration_error": None, "gate": None, "seconds": None, "error": None, "warning": ""}


@dataclass(frozen=True)
class Member:
    """One run of a sweep: the name of its folder, and each ``STAGE.NAME`` with its value as typed."""

    name: str
    values: tuple[tuple[str, str], ...]

    @property
    def overrides(self) -> list[str]:
        """As ``-p`` would take them."""
        return [f"{target}={value}" for target, value in self.values]


def members(texts: Sequence[str]) -> list[Member]:
    """The product of what the ``STAGE.NAME=a,b,c`` in `texts` ask for; the last one changes fastest.

    Raises:
        ProfileError: if one of them is not of this form, or comes twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        target, equals, values = text.partition("=")
        if not (equals and values):
            raise ProfileError(f"--sweep {text}: must be STAGE.NAME=VALUE,VALUE,..., for example train.epochs=1,2,4")
        if target in axes:
            raise ProfileError(f"--sweep {text}: {target} is swept already; name all its values at once")
        axes[target] = [value.strip() for value in values.split(",")]
        if twice := [value for value in axes[target] if axes[target].count(value) > 1]:
            raise ProfileError(f"--sweep {text}: {twice[0]!r} stands there twice")
    rows = list(itertools.islice(itertools.product(*axes.values()), MOST + 1))
    if len(rows) > MOST:
        raise ProfileError(f"--sweep: these are more than {MOST} runs; name fewer values")
    width = len(str(len(rows)))
    return [_member(f"{number:0{width}}", tuple(zip(axes, row, strict=True))) for number, row in enumerate(rows, 1)]


def set_apart(settings: Settings, sweep_id: str, member: Member, stages: Sequence[str]) -> Settings:
    """`settings` with a model name of the member's own, if it trains.

    Raises:
        ProfileError: if a stage of it would listen on a port that the others want, too.
    """
    parameters = {stage: dict(values) for stage, values in settings.parameters.items()}
    for stage in stages:
        taken = parameters[stage].get("port", 0)
        if taken and not {f"{stage}.port", "all.port"} & dict(member.values).keys():
            raise ProfileError(f"--sweep: {stage}.port is {taken} for all; leave it 0, which takes a free one for each")
    for values in parameters.values():
        if TRAIN in stages and "model_name" in values:
            values["model_name"] += f"-{sweep_id}-{member.name.partition('-')[0]}"
    return replace(settings, parameters=parameters)


def is_asked_for(options: Namespace, runs: Path) -> bool:
    """Whether ``--sweep`` begins one, or ``--resume`` names one in the folder of all runs.

    Raises:
        ProfileError: if other options do not go with that.
    """
    named = bool(re.fullmatch(r"\w[\w.-]*", options.resume or ""))
    resumed = named and os.path.isfile(runs / options.resume / FILE)  # not where the folder is closed to us
    if resumed and (options.sweep or options.params or options.overrides or options.first or options.only):
        raise ProfileError(f"--resume: {options.resume} is a sweep, which goes on with what it was begun with")
    if resumed and options.dry_run:
        raise ProfileError(f"--dry-run: {options.resume} is a sweep that was begun; its {FILE} says what it runs")
    if options.sweep and options.resume:
        raise ProfileError("--sweep and --resume: a sweep has runs of its own; leave one of the two out")
    if not (options.sweep or resumed) and (options.jobs or options.engine != "local"):
        raise ProfileError("--jobs and --engine are for a sweep; begin one with --sweep STAGE.NAME=A,B,C")
    return bool(options.sweep) or resumed


class Record:
    """The ``sweep.json`` of the sweep in `directory`, rewritten whole at each step; ``members`` by name."""

    def __init__(self, directory: Path, value: dict[str, Any]) -> None:
        self.directory, self.value = directory, value
        self.value |= {"state": "running", "finished": None}
        self._save()

    @classmethod
    def begin(cls, directory: Path, members: Sequence[Member]) -> "Record":
        """That of a new sweep: every member is pending."""
        rows = {member.name: {"values": dict(member.values), "state": "pending", **NOTHING} for member in members}
        return cls(directory, {"schema": 1, "sweep_id": directory.name, "started": now(), "members": rows})

    @classmethod
    def go_on(cls, directory: Path) -> "Record":
        """That of an earlier sweep; RunError if it cannot be read."""
        value = read_record(directory / FILE, "sweep_id", {"started": str}, "members")
        if not all(NOTHING.keys() | {"values"} <= row.keys() for row in value["members"].values()):
            raise damaged(directory / FILE, "one of its members lacks values or figures")
        return cls(directory, value)

    def start(self, name: str) -> None:
        """Says that a member runs."""
        self._set(name, state="running", **NOTHING)

    def finish(self, name: str, status: int) -> dict[str, Any]:
        """Says how a member ended, by its own record and `status`, the exit status of its process; returns its row."""
        self._set(name, **read_outcome(self.directory / name, status))
        return self.value["members"][name]

    def close(self) -> str:
        """Says how the sweep ended, which is no better than its worst member: done, failed or interrupted."""
        states = {row["state"] for row in self.value["members"].values()}
        undone = states & {"pending", "running", "interrupted"}
        state = "interrupted" if undone else "failed" if "failed" in states else "done"
        self.value |= {"state": state, "finished": now()}
        self._save()
        return state

    def _set(self, name: str, **changes: Any) -> None:
        self.value["members"][name] |= changes
        self._save()

    def _save(self) -> None:
        write_json(self.directory / FILE, self.value)


def read_outcome(directory: Path, status: int) -> dict[str, Any]:
    """State, figures and error of the member in `directory`, by its receipts and the exit `status` of its process."""
    stages, state = {}, ""
    try:
        run = read_run(directory.parent, directory.name)
        stages, state = run["stages"], run["state"]
        done = [stage for stage, entry in stages.items() if entry["state"] == "done"]
        receipts = {s: read_receipt(receipt_path(directory, s), stage=s, run_id=directory.name) for s in done}
    except (RunError, ReceiptError) as error:
        return {**NOTHING, "state": "failed", "error": str(error)}
    if (status, state) != (0, "done"):
        state = "interrupted" if status == 130 else "failed"
    errors = [describe(entry["error"]) for entry in stages.values() if entry["error"] and entry["state"] == "failed"]
    problem = (errors or [f"ended with status {status}; {directory.name}/{OUTPUT} says why"])[0]
    seconds = sum(receipt.duration_s for receipt in receipts.values()) if receipts else None
    outcome = {"state": state, "seconds": seconds, "error": problem if state == "failed" else None}
    return outcome | _figures(receipts) | {"warning": synthetic_warning(receipts)}


def _figures(receipts: Mapping[str, Receipt]) -> dict[str, Any]:
    results = receipts[TRAIN].results if TRAIN in receipts else {}
    gate = results.get("gate")
    verdict = ("passed" if gate["passed"] else "refused") if isinstance(gate, dict) and "passed" in gate else None
    return {"top1": results.get("top1"), "calibration_error": results.get("calibration_error"), "gate": verdict}


def _member(number: str, values: tuple[tuple[str, str], ...]) -> Member:
    words = "-".join(f"{target.partition('.')[2]}-{value}" for target, value in values)
    return Member(f"{number}-{re.sub(r'[^A-Za-z0-9.]+', '-', words)}"[:60].rstrip("-."), values)
