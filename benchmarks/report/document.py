"""Writes the report (one Markdown file and a folder of charts), and the tables of the READMEs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..results import Results
from . import charts, checkpoints, gateway, tables, targets, tasks
from .cases import Cases

_BENCHMARKS = Path(__file__).parents[1]
READMES = (_BENCHMARKS / "README.md", _BENCHMARKS.parent / "README.md")
PUBLISHED = _BENCHMARKS / "full-run.json"
"""The results that the READMEs show."""

_MARKED = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

_README_TABLES: Mapping[str, Callable[[Cases], str]] = {
    "summary": tables.summary,
    "gateway": gateway.gateway,
    "gateway-groups": gateway.groups,
    "gateway-targets": gateway.targets,
    "overview": tables.overview,
    "losses": tables.losses,
    "numbering": tables.numbering,
    "variants": tables.variants,
    "equal-terms": tables.equal_terms,
    "targets": targets.targets,
    "setup": lambda cases: tables.setup(cases.results),
    **tasks.TABLES,
    **checkpoints.TABLES,
}
"""Name in a README's `<!-- table: NAME -->` -> what stands there."""


def report(results: Results, folder: str | os.PathLike[str] | None = None) -> str:
    """The report in Markdown. With a folder, charts are written to its `charts/` and embedded.

    Raises `MissingDependencyError` if charts are requested and matplotlib is not installed.
    """
    cases = Cases(results)
    drawn = {} if folder is None else charts.draw(cases, Path(folder))
    sections = (
        "# Benchmark of deerflow-mongo",
        "" if results.finished else "**Interrupted: this report has the cases that were finished.**",
        "deerflow-mongo relative to each contender: median of the repetitions (smallest to largest)."
        " Absolute values depend on the machine and are in the results file.",
        f"## Summary\n\n{tables.summary(cases)}",
        f"## The whole gateway\n\n{gateway.gateway(cases)}\n\n{gateway.targets(cases)}"
        f"\n\n{gateway.absolute_values(cases)}"
        if cases.of("gateway")
        else "",
        f"## All operations\n\n{tables.overview(cases)}",
        f"## Slower than SQL\n\n{tables.losses(cases)}",
        f"## Targets\n\n{targets.targets(cases)}",
        f"## Setup\n\n{tables.setup(results)}\n{tables.contenders(results)}",
        *(f"![{' '.join(title.split())}]({path})" for path, title in drawn.items()),
        tables.details(cases),
        tasks.section(cases),
        checkpoints.section(cases),
        f"## Variants\n\n{tables.variants(cases)}\n\n{tables.equal_terms(cases)}"
        if cases.of("variants")
        else "",
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def write_report(results_path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Path:
    """Reads a results file, writes its report and charts, and returns the path of the report.

    The default folder is `<name>-report` beside the results file. Raises `ResultsError` if the results file
    is invalid, `MissingDependencyError` if matplotlib is not installed.
    """
    source = Path(results_path)
    target = source.with_name(f"{source.stem}-report") if folder is None else Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    path = target / "report.md"
    path.write_text(report(Results.load(source), target), encoding="utf-8")
    return path


def checkpoint_tables(results_path: str | os.PathLike[str]) -> str:
    """The tables of the part `checkpoints`, and what was measured."""
    cases = Cases(Results.load(results_path))
    return f"{checkpoints.section(cases)}\n\n## Setup\n\n{tables.setup(cases.results)}\n"


def tasks_tables(results_path: str | os.PathLike[str]) -> str:
    """The tables of the part `tasks`, and what was measured."""
    cases = Cases(Results.load(results_path))
    return f"{tasks.section(cases)}\n\n## Setup\n\n{tables.setup(cases.results)}\n"


def write_readmes(results_path: str | os.PathLike[str]) -> list[Path]:
    """Writes the tables of the READMEs and the charts of the benchmarks' README; returns their paths."""
    cases = Cases(Results.load(results_path))
    for path in READMES:
        path.write_text(with_tables(path.read_text(encoding="utf-8"), cases), encoding="utf-8")
    return [*READMES, *(_BENCHMARKS / chart for chart in charts.draw(cases, _BENCHMARKS))]


def with_tables(text: str, cases: Cases) -> str:
    """The text with the tables of these results between its marks."""
    return _MARKED.sub(lambda found: f"{found[1]}{_README_TABLES[found[2]](cases)}\n{found[3]}", text)
