"""A run in a few lines of Markdown, for the summary of a job: ``python -m helpers.pipeline.summary [RUN_ID]``.

``--outputs FILE`` adds ``version=...`` and ``promoted=true|false`` to that file, as a workflow's next steps read them.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers.pipeline.journal import FILE, RunError, damaged, read_run
from helpers.pipeline.report import describe, synthetic_warning
from helpers.receipts import Receipt, ReceiptError, read_receipt, receipt_path
from helpers.workspace import ROOT


def latest_run(runs: Path) -> str:
    """The id of the run that started last in the folder of all runs; RunError if it holds none or a broken one."""
    started = {path.parent.name: _started(path) for path in runs.glob(f"*/{FILE}")}
    if not started:
        raise RunError(f"there is no run in {runs}; start one with: make run")
    return max(started, key=started.__getitem__)


def summarise(run: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> str:
    """The state of a run and its stages, and the gate's decision as a table: Markdown, as GitHub shows it."""
    parts = [f"### Run {run['run_id']}: {run['state']}", synthetic_warning(receipts)]
    parts += [
        f"**{name}** {stage['state']}: {_text(describe(stage['error']))}"
        for name, stage in run["stages"].items()
        if stage["error"]
    ]
    if "train" in receipts:
        parts.append(_gate(receipts["train"].results))
    return "\n\n".join(filter(None, parts)) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the summary of the run that the command line names; 1 if there is none, or it is not what it says."""
    arguments = _parser().parse_args(argv)
    runs = (arguments.run_dir or Path(os.environ.get("SUITE_RUNS") or ROOT / "runs")).resolve()
    try:
        run = read_run(runs, arguments.run_id or latest_run(runs))
        folder = runs / run["run_id"]
        done = [stage for stage, entry in run["stages"].items() if entry["state"] == "done"]
        receipts = {
            stage: read_receipt(receipt_path(folder, stage), stage=stage, run_id=run["run_id"]) for stage in done
        }
        print(summarise(run, receipts), end="")
        if arguments.outputs:
            results = receipts["train"].results if "train" in receipts else {}
            with open(arguments.outputs, "a", encoding="utf-8") as file:
                file.write(f"version={results.get('version', '')}\n")
                file.write(f"promoted={'true' if results.get('promoted') is True else 'false'}\n")
    except (RunError, ReceiptError, OSError, ValueError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _started(path):
    try:
        return str(json.loads(path.read_bytes())["started"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise damaged(path, f"no record of a run: {error}") from None


def _gate(results):
    gate = results["gate"]
    rows = {
        "decision": "passed" if gate["passed"] else "refused",
        "reason": gate["reason"],
        "version": results["version"],
        "in production": "yes" if results["promoted"] else "no",
        "test top-1": f"{results['top1']:.2%}",
        "test top-5": f"{results['top5']:.2%}",
        "calibration error": f"{results['calibration_error']:.2%}",
        "floor": f"{gate['floor']:.2%}",
        "tolerance": f"{gate['tolerance']:.2%}",
        "compared with": gate["champion"] or "nothing yet",
    }
    if gate["interval"]:
        low, high = gate["interval"]
        rows["difference"] = f"{gate['difference']:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}"
    rows |= {f"lost: {name}": f"{change:+.2%}" for name, change in (gate["regressions"] or {}).items()}
    return "\n".join(["| gate | |", "|---|---|", *(f"| {name} | {_text(value)} |" for name, value in rows.items())])


def _text(value):
    return str(value).replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")


def _parser():
    parser = argparse.ArgumentParser(prog="python -m helpers.pipeline.summary", description="A run as Markdown.")
    parser.add_argument("run_id", nargs="?", default="", metavar="RUN_ID", help="else the one that started last")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="of all runs (default: $SUITE_RUNS, or else runs)")
    parser.add_argument("--outputs", type=Path, metavar="FILE", help="gets version=... and promoted=... added")
    return parser


if __name__ == "__main__":
    sys.exit(main())
