"""The members of a sweep beside each other: as a table of text, and as a page that links their own pages."""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers.pipeline.report import STYLE

FIGURES = {
    "status": "state",
    "top-1": "top1",
    "calibration error": "calibration_error",
    "gate": "gate",
    "seconds": "seconds",
}


def rows_of(sweep: Mapping[str, Any]) -> list[list[str]]:
    """The table of what ``sweep.json`` holds, headings first: the swept values, then status and figures."""
    members = list(sweep["members"].values())
    rows = [[*members[0]["values"], *FIGURES]]
    for member in members:
        rows.append([*member["values"].values(), *(_show(key, member[key]) for key in FIGURES.values())])
    return rows


def warnings_of(sweep: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know first: where they are of drawn images."""
    return sorted({member["warning"] for member in sweep["members"].values() if member["warning"]})


def format_table(sweep: Mapping[str, Any]) -> str:
    """The table as aligned text, and under it what must be known of it."""
    rows = rows_of(sweep)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([*lines, *warnings_of(sweep)])


def write_page(directory: Path, sweep: Mapping[str, Any]) -> Path:
    """Writes ``index.html`` into the folder of the sweep; returns its path."""
    title = f"Sweep {html.escape(sweep['sweep_id'])}"
    head, *rows = rows_of(sweep)
    cells = ["<tr><th></th>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for (name, member), row in zip(sweep["members"].items(), rows, strict=True):
        page = f'<a href="{html.escape(name)}/index.html">{html.escape(name)}</a>'
        linked = page if (directory / name / "index.html").is_file() else html.escape(name)
        shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        cells.append(f"<tr class={member['state']}><td>{linked}</td>{shown}</tr>")
        if member["error"]:
            cells.append(f"<tr><td></td><td class=loud colspan={len(row)}>{html.escape(member['error'])}</td></tr>")
    path = directory / "index.html"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n"
        f"<h1>{title}: <span class={sweep['state']}>{sweep['state']}</span></h1>\n"
        f"<p>Started {sweep['started']}, finished {sweep['finished'] or '-'}. "
        "<a href=sweep.json>sweep.json</a> has every detail.</p>\n"
        f"{''.join(f'<p class=loud>{html.escape(text)}</p>' for text in warnings_of(sweep))}"
        f"<table>{''.join(cells)}</table>\n</html>\n",
        encoding="utf-8",
    )
    return path


def _show(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name in ("top1", "calibration_error"):
        return f"{value:.2%}"
    return f"{value:.0f}" if name == "seconds" else str(value)
