"""What a reader of a run opens: each executed notebook as HTML, and one page that links them with the key results."""

import html
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.receipts import Receipt
from helpers.workspace import ROOT

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1c }
.loud { background: #fff0d0; border: 2px solid #b05c00; padding: .7rem 1rem; font-weight: 600 }
.failed, .interrupted { color: #a00000 } .done { color: #006b2d }
table { border-collapse: collapse } td, th { border-bottom: 1px solid #ddd; padding: .2rem 1.2rem .2rem 0 }
td, th { text-align: left; vertical-align: top } code { background: #f3f3f3 }
"""


def export_html(notebook: Path) -> Path:
    """Write an executed notebook as an HTML page beside it, code kept; return its path."""
    from nbconvert import HTMLExporter  # half a second to import

    logger = logging.getLogger("report.nbconvert")
    logger.setLevel(logging.ERROR)  # figures without alternative text are the notebook's own affair
    body, _ = HTMLExporter(log=logger).from_filename(str(notebook))
    page = notebook.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page


def key_results(receipt: Receipt) -> dict[str, str]:
    """The single figures and words among a receipt's results, ready to show; lists and tables stay in the receipt."""
    return {
        name.replace("_", " "): _show(value)
        for name, value in receipt.results.items()
        if isinstance(value, str | bool | int | float)
    }


def synthetic_warning(receipts: Mapping[str, Receipt]) -> str:
    """One loud sentence if any stage worked on the stand-in; empty for real CIFAR-100."""
    stages = [stage for stage, receipt in receipts.items() if receipt.data["synthetic"]]
    if not stages:
        return ""
    return (
        f"SYNTHETIC DATA in {', '.join(stages)}: drawn by a program, not CIFAR-100. "
        "Its results say that the machinery works and nothing about CIFAR-100."
    )


def how_to_go_on(directory: Path) -> str:
    """The command that goes on with the run or sweep in `directory`, to be pasted at the root of the repository."""
    at = [] if directory.parent == ROOT / "runs" else ["--run-dir", str(directory.parent)]
    arguments = shlex.join(["--resume", directory.name, *at]).replace("$", "$$")  # make takes one $ for its own
    quoted = re.sub(r'["$`\\]', r"\\\g<0>", arguments)
    return f'make run ARGS="{quoted}"'


def write_index(run_dir: Path, run: Mapping[str, Any], receipts: Mapping[str, Receipt]) -> Path:
    """Write ``index.html``: the run's state, and for each stage its pages, results, parameters and error.

    `run` is what ``run.json`` holds; `receipts` are those of the finished stages.
    """
    warning = synthetic_warning(receipts)
    parts = [
        f"<h1>Run {_text(run['run_id'])}: <span class={run['state']}>{run['state']}</span></h1>",
        f"<p>Started {_text(run['started'])}, finished {_text(run['finished'] or '-')}. "
        "<a href=run.json>run.json</a> has every detail.</p>",
        f"<p class=loud>{_text(warning)}</p>" if warning else "",
        *(_stage(run_dir, name, stage, receipts.get(name)) for name, stage in run["stages"].items()),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>Run {_text(run['run_id'])}</title>"
    path = run_dir / "index.html"
    path.write_text(f"{head}<style>{STYLE}</style>\n" + "\n".join(filter(None, parts)) + "\n</html>\n", "utf-8")
    return path


def _stage(run_dir: Path, name: str, stage: Mapping[str, Any], receipt: Receipt | None) -> str:
    stem = Path(stage["notebook"]).stem
    files = [(f"{stem}.html", "notebook"), (f"{stem}.ipynb", "ipynb"), (f"{name}.receipt.json", "receipt")]
    links = [f'<a href="{_text(file)}">{label}</a>' for file, label in files if (run_dir / file).is_file()]
    parts = [f"<h2>{_text(name)}: <span class={stage['state']}>{stage['state']}</span></h2>"]
    if links:
        parts.append(f"<p>{' | '.join(links)}</p>")
    if stage["error"]:
        parts.append(f"<p class=loud>{_text(describe(stage['error']))}</p>")
    if receipt:
        data = f"{receipt.data['source']}{' (SYNTHETIC)' if receipt.data['synthetic'] else ''}"
        parts.append(_table({"took": f"{receipt.duration_s:.1f} s", "data": data, **key_results(receipt)}))
    rows = {key: _show(value) for key, value in stage["parameters"].items()}
    parts.append(f"<details><summary>Parameters</summary>{_table(rows)}</details>")
    return "\n".join(parts)


def describe(error: Mapping[str, Any]) -> str:
    """A stage's error, as run.json holds it, as one line."""
    cell = f", cell {error['cell']}" if error["cell"] else ""
    return f"{error['notebook']}{cell}: {error['message']}"


def _table(rows: Mapping[str, str]) -> str:
    body = "".join(f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in rows.items())
    return f"<table>{body}</table>"


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: str) -> str:
    return html.escape(str(value))
