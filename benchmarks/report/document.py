"""Writes the report: one Markdown file and a folder of charts."""

from __future__ import annotations

import os
from pathlib import Path

from ..results import Results
from . import charts, tables
from .cases import Cases
from .targets import targets

_REPORT = "report.md"
_INTERRUPTED = (
    "**Interrupted: the benchmark did not finish. The records in this report are complete; the others are"
    " missing.**"
)


def report(results: Results, folder: str | os.PathLike[str] | None = None) -> str:
    """The report in Markdown. With a folder, charts are written to its `charts/` and embedded.

    Raises `MissingDependencyError` if charts are requested and matplotlib is not installed.
    """
    cases = Cases(results)
    drawn = [] if folder is None else charts.draw(cases, Path(folder))
    sections = (
        "# Benchmark of deerflow-mongo",
        "" if results.finished else _INTERRUPTED,
        "This report shows ratios only; absolute values depend on the machine and are in the results file.",
        f"## Summary\n\n{tables.summary(results)}",
        targets(cases),
        tables.setup(results),
        "\n\n".join(("## Charts", *(_embedded(chart) for chart in drawn))) if drawn else "",
        tables.operations(cases),
        tables.growth(cases),
        tables.cpu(cases),
        tables.stored_bytes(cases),
        tables.mixed_workload(cases),
        tables.contention(cases),
        tables.variants(cases),
        tables.memory(cases),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _embedded(chart: charts.Chart) -> str:
    return f"![{' '.join(chart.title.split())}]({chart.path})"


def write_report(results_path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """Reads a results file, writes its report and charts, and returns the path of the report.

    The default folder is `<name>-report` beside the results file. Raises `ResultsError` if the results file
    is invalid, `MissingDependencyError` if matplotlib is not installed.
    """
    source = Path(results_path)
    target = source.with_name(f"{source.stem}-report") if folder is None else Path(folder)
    text = report(Results.load(source), target)
    target.mkdir(parents=True, exist_ok=True)
    path = target / _REPORT
    path.write_text(text, encoding="utf-8")
    return path
