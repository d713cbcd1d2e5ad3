"""The report as a whole: one Markdown file, and charts beside it."""

from __future__ import annotations

import os
from pathlib import Path

from ..results import Results
from . import charts, tables
from .cases import Cases
from .targets import targets

_REPORT = "report.md"
_INTERRUPTED = (
    "**Interrupted: the benchmark did not come to its end. What is here was measured whole; the rest is"
    " missing.**"
)


def report(results: Results, folder: str | os.PathLike[str] | None = None) -> str:
    """In Markdown. Charts are drawn into `charts/` of the folder and shown; without a folder there are none.

    `MissingDependencyError` where charts are asked for and matplotlib is not installed.
    """
    cases = Cases(results)
    drawn = [] if folder is None else charts.draw(cases, Path(folder))
    chapters = (
        "# Benchmark of deerflow-mongo",
        "" if results.finished else _INTERRUPTED,
        "Ratios only: absolute figures say more about the machine, and are in the file of results.",
        f"## In short\n\n{tables.front_page(results)}",
        targets(cases),
        tables.what_was_run(results),
        "\n\n".join(("## Charts", *(_shown(chart) for chart in drawn))) if drawn else "",
        tables.operations(cases),
        tables.growth(cases),
        tables.cpu(cases),
        tables.stored_bytes(cases),
        tables.day(cases),
        tables.contention(cases),
        tables.variants(cases),
        tables.memory(cases),
    )
    return "\n\n".join(chapter for chapter in chapters if chapter) + "\n"


def _shown(chart: charts.Chart) -> str:
    return f"![{' '.join(chart.title.split())}]({chart.path})"


def write_report(results_path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """Reads results and writes their report and its charts; gives the report's path.

    The folder is `<name>-report` beside the file of results, unless it is named. `ResultsError` for a file
    that is none of results, `MissingDependencyError` where matplotlib is not installed.
    """
    source = Path(results_path)
    target = source.with_name(f"{source.stem}-report") if folder is None else Path(folder)
    text = report(Results.load(source), target)
    target.mkdir(parents=True, exist_ok=True)
    path = target / _REPORT
    path.write_text(text, encoding="utf-8")
    return path
