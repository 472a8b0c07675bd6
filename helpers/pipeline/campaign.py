"""Carries a sweep out: its members run, its record and page are kept, and people are told."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.pipeline import comparison
from helpers.pipeline.execution import stop_on_signals
from helpers.pipeline.journal import Journal, locked
from helpers.pipeline.members import engine, run_all
from helpers.pipeline.report import how_to_go_on
from helpers.pipeline.sweep import Member, Record


def run(directory: Path, plans: Mapping[Member, tuple[dict, dict]], engine_name: str, jobs: int | None) -> str:
    """Runs the members of the sweep in `directory`; returns its state: done, failed or interrupted.

    SIGINT and SIGTERM end the kernels of all members first.

    Args:
        plans: for each member the profile and the stages that `Journal` takes; none to go on with an earlier sweep,
            where what is done runs again only if something about it has changed.
        jobs: how many run at once; None is what the engine is made for.

    Raises:
        RunError: if another process has the sweep in hand.
        ClusterError: if `engine_name` is "ray" and there is none; nothing was written.
    """
    with locked(directory), engine(engine_name) as (run_member, usual), stop_on_signals() as stop:
        record = _plan(directory, plans) if plans else Record.go_on(directory)
        names = list(record.value["members"])
        at_once = min(jobs or usual, len(names))
        print(f"sweep {directory.name}: {len(names)} runs, {at_once} at once", flush=True)

        def started(member: Path) -> None:
            record.start(member.name)
            print(f"{member.name}: started", flush=True)

        def ended(member: Path, status: int) -> None:
            row = record.finish(member.name, status)
            comparison.write_page(directory, record.value)
            print(f"{member.name}: {row['state']}", flush=True)
            if row["error"]:
                print(f"{member.name}: {row['error']}", file=sys.stderr, flush=True)

        try:
            run_all([directory / name for name in names], run_member, at_once, stop, started=started, ended=ended)
        finally:
            state = record.close()
            comparison.write_page(directory, record.value)
    _tell(directory, record.value)
    return state


def _plan(directory: Path, plans: Mapping[Member, tuple[dict, dict]]) -> Record:
    for member, (profile, stages) in plans.items():
        (directory / member.name).mkdir()
        Journal(directory / member.name, profile, stages).close("pending")  # from where each member goes on
    return Record.begin(directory, list(plans))


def _tell(directory: Path, sweep: Mapping[str, Any]) -> None:
    print(comparison.format_table(sweep))
    if sweep["state"] != "done":
        print(f"{sweep['state']}; go on with: {how_to_go_on(directory)}", file=sys.stderr)
