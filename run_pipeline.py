"""Run the notebooks in order, headless: explore, train, deploy, diagnose.

Each is executed by papermill into runs/<run id>/, with an HTML page beside it. A stage is done only if it left a
receipt that holds; run.json says at any moment how far the run is; index.html shows the results.
Exit status: 0 all stages done, 1 a stage failed, 2 wrong parameters (before any kernel starts), 130 interrupted.

With --sweep they run once for each value (for several --sweep, each combination), in folders of their own, and
sweep.json and index.html compare the results; the exit status is that of the worst.
"""

import argparse
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helpers import cluster, receipts
from helpers.pipeline import campaign, execution, journal, profile, report, sweep
from helpers.pipeline.options import parse
from helpers.workspace import ROOT, show

STAGES = {
    "explore": "01_explore_data.ipynb",
    "train": "02_train_and_upload.ipynb",
    "deploy": "03_deploy_and_monitor.ipynb",
    "diagnose": "04_diagnose_drift.ipynb",
}
PLACES = ("CIFAR100_DIR", "SUITE_BUCKET")
STATUS = {"done": 0, "failed": 1, "interrupted": 130}


@dataclass(frozen=True)
class Plan:
    """A run before it starts: its folder, the notebooks of all stages, the final values, and the stages to run."""

    directory: Path
    notebooks: dict[str, Path]
    settings: profile.Settings
    stages: list[str]


def main(arguments: list[str] | None = None) -> int:
    options = parse(__doc__, STAGES, arguments)
    # The kernels inherit these: no debugger's advice and no TensorFlow start-up notes among the progress bars.
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # They run at the root of the repository; a relative path here means one in the current folder.
    os.environ |= {name: profile.absolute_path(os.environ[name]) for name in PLACES if name in os.environ}
    try:
        notebooks = {stage: ROOT / "notebooks" / name for stage, name in STAGES.items()}
        declared = {stage: profile.declared_parameters(path) for stage, path in notebooks.items()}
        if options.list:
            show(list_parameters(notebooks, declared))
            return 0
        if sweep.is_asked_for(options, runs_of(options)):
            return run_sweep(options, notebooks, declared)
        plan = make_plan(options, notebooks, declared)
        if options.dry_run:
            show(list_plan(plan, declared))
            return 0
        return run(plan)
    except (profile.ProfileError, journal.RunError, cluster.ClusterError) as error:
        print(f"run_pipeline.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def runs_of(options: argparse.Namespace) -> Path:
    """The folder of all runs."""
    return (options.run_dir or Path(os.environ.get("SUITE_RUNS") or ROOT / "runs")).resolve()


def make_plan(
    options: argparse.Namespace, notebooks: dict[str, Path], declared: dict[str, Any], swept: Sequence[str] = ()
) -> Plan:
    """Everything that can be wrong with a command is found here."""
    runs = runs_of(options)
    earlier = journal.read_run(runs, options.resume) if options.resume else None
    run_id = options.resume or f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if earlier and not options.params:
        sections, origin = earlier["profile"], f"the profile of run {run_id}"
    else:
        path = options.params or ROOT / "params" / "demo.yaml"
        sections, origin = profile.read_profile(path), str(path)
    settings = profile.settings(declared, sections, options.overrides, origin, swept)
    stages = list(earlier["stages"]) if earlier else list(STAGES)
    if options.first:
        profile.known(options.first, STAGES, "--from", f"there is no stage {options.first!r}")
        stages = list(STAGES)[list(STAGES).index(options.first) :]
    if options.only:
        names = [name.strip() for name in options.only.split(",")]
        for name in names:
            profile.known(name, STAGES, "--only", f"there is no stage {name!r}")
        stages = [stage for stage in (stages if options.first else STAGES) if stage in names]
    if not stages:
        raise profile.ProfileError("--from and --only together leave no stage to run")
    return Plan(runs / run_id, notebooks, settings, stages)


def run_sweep(options: argparse.Namespace, notebooks: dict[str, Path], declared: dict[str, Any]) -> int:
    """Plans every member before the first one starts, and runs them; or goes on with the sweep that --resume names."""
    plans, directory = {}, runs_of(options) / (options.resume or "")
    if not options.resume:
        plans = {item: make_plan(options, notebooks, declared, item.overrides) for item in sweep.members(options.sweep)}
        directory = next(iter(plans.values())).directory
    for item, plan in plans.items():
        settings = sweep.set_apart(plan.settings, directory.name, item, plan.stages)
        plans[item] = replace(plan, directory=directory / item.name, settings=settings)
    if options.dry_run:
        show([f"would run {len(plans)} times into {shown(directory)}"])
        show(line for plan in plans.values() for line in list_plan(plan, declared))
        return 0
    make_folder(directory)
    journals = {item: (settings_of(plan), entries(plan)) for item, plan in plans.items()}
    state = campaign.run(directory, journals, options.engine, options.jobs)
    print(f"look at {shown(directory / 'index.html')}")
    return STATUS[state]


def list_parameters(notebooks: dict[str, Path], declared: dict[str, dict[str, profile.Parameter]]) -> Iterator[str]:
    for stage, parameters in declared.items():
        yield f"{stage}  ({shown(notebooks[stage])})"
        for item in parameters.values():
            if item.name not in profile.OWN:
                yield f"  {f'{item.name}: {item.type} = {item.default!r}':<40}  {item.help}"


def list_plan(plan: Plan, declared: dict[str, dict[str, profile.Parameter]]) -> Iterator[str]:
    yield f"would run {', '.join(plan.stages)} into {shown(plan.directory)}"
    for stage in plan.stages:
        limit = plan.settings.timeouts[stage]
        yield f"{stage}  ({shown(plan.notebooks[stage])}, {f'at most {limit:g} s' if limit else 'no time limit'})"
        for name, value in plan.settings.parameters[stage].items():
            default = declared[stage][name].default
            yield f"  {name} = {value!r}" + ("" if value == default else f"  (default {default!r})")


def run(plan: Plan) -> int:
    """Execute the stages; on SIGINT and SIGTERM the kernel ends first, then this process, with the record in order."""
    make_folder(plan.directory)
    with execution.stop_on_signals() as stop, journal.locked(plan.directory):
        book, state = journal.Journal(plan.directory, settings_of(plan), entries(plan)), "failed"
        print(f"run {plan.directory.name}", flush=True)
        try:
            state = run_stages(plan, book, stop)
        finally:
            state = book.close(state)
            index = report.write_index(plan.directory, book.record, book.receipts)
        tell(plan, book, state)
        print(f"look at {shown(index)}")
    return STATUS[state]


def make_folder(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise journal.RunError(f"--run-dir: cannot make {directory} ({error.strerror})") from None
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise journal.RunError(
            f"--run-dir: cannot read and write in {directory}; change its permissions or choose another"
        )


def entries(plan: Plan) -> dict[str, dict[str, Any]]:
    return {
        stage: {
            "notebook": shown(plan.notebooks[stage]),
            "parameters": plan.settings.parameters[stage],
            "timeout": plan.settings.timeouts[stage],
        }
        for stage in plan.stages
    }


def settings_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """The final values as a profile, so that --resume finds them again."""
    limits = {stage: limit for stage, limit in plan.settings.timeouts.items() if limit}
    return {**plan.settings.parameters, profile.TIMEOUTS: limits}


def run_stages(plan: Plan, book: journal.Journal, stop: threading.Event) -> str:
    """Run or skip each stage; the first that fails is the last that starts. Returns the run's state."""
    order = list(STAGES)
    for stage in plan.stages:
        upstream = [receipts.receipt_path(plan.directory, name) for name in order[: order.index(stage)]]
        inputs = journal.inputs_digest(plan.notebooks[stage], plan.settings.parameters[stage], upstream)
        if book.holds(stage, inputs):
            print(f"{stage}: done before, and still holds", flush=True)
            continue
        if stop.is_set():
            return "interrupted"
        book.begin(stage, inputs)
        output = plan.directory / STAGES[stage]
        failure = execution.execute(
            plan.notebooks[stage],
            output,
            {**plan.settings.parameters[stage], "run_id": plan.directory.name, "run_dir": str(plan.directory)},
            cwd=ROOT,
            stop=stop,
            timeout=plan.settings.timeouts[stage],
            title=stage,
        ) or proof(book, stage, output)
        if failure:
            book.fail(stage, failure)
        if output.is_file():
            report.export_html(output)
        report.write_index(plan.directory, book.record, book.receipts)
        if failure:
            return "interrupted" if failure.interrupted else "failed"
    return "done"


def proof(book: journal.Journal, stage: str, output: Path) -> execution.Failure | None:
    """None if the stage left a receipt that holds; without one, no notebook that ran to its end counts."""
    try:
        book.finish(stage)
    except receipts.ReceiptError as error:
        if cell := execution.left_early(output):
            return execution.Failure(cell, "called sys.exit(), so the notebook stopped there and left no receipt")
        return execution.Failure(None, f"left no valid receipt: {error}")
    return None


def tell(plan: Plan, book: journal.Journal, state: str) -> None:
    """What happened, in a few lines: key results, the error if any, and how to go on."""
    for stage in plan.stages:
        if stage in book.receipts:
            receipt = book.receipts[stage]
            print(f"{stage}: done in {receipt.duration_s:.1f} s, data: {receipt.data['source']}")
            for name, value in report.key_results(receipt).items():
                print(f"  {name}: {value}")
        elif error := book.record["stages"][stage]["error"]:
            print(f"{stage}: {report.describe(error)}", file=sys.stderr)
    if warning := report.synthetic_warning(book.receipts):
        print(warning)
    if state != "done":
        print(f"{state}; go on with: {report.how_to_go_on(plan.directory)}", file=sys.stderr)


def shown(path: Path) -> str:
    """A path as a person at the repository root or in the current folder would type it."""
    path = path.resolve()
    return str(next((path.relative_to(home) for home in (Path.cwd(), ROOT) if path.is_relative_to(home)), path))


if __name__ == "__main__":
    sys.exit(main())
