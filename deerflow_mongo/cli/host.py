"""`deerflow-mongo check --host`: whether the installed DeerFlow fits, name by name.

The rows are those from which the gateway decides at its start. No configuration is read, no server is asked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import typer
from rich.table import Table
from rich.text import Text

from ..contract.errors import StorageConfigError
from ..hosts.deerflow import Comparison, UnsupportedReleaseError, check_comparisons, installed_release
from ..hosts.runtime import compare_release
from .terminal import console_for, failure, json_of

UNFIT_EXIT: Final = 3
"""As of a gateway that does not start."""


def check_host(*, as_json: bool = False) -> int:
    """Print the comparison with the installed DeerFlow; the exit code."""
    logging.disable()  # what DeerFlow's modules log when they are imported, such as a missing config.yaml
    try:
        release, comparisons = compare_release()
    except StorageConfigError as error:
        return failure(str(error), UNFIT_EXIT).exit_code
    finally:
        logging.disable(logging.NOTSET)
    if as_json:
        typer.echo(json_of(_as_json(release.name, comparisons), indent=2))
    else:
        _show(comparisons)
    try:
        check_comparisons(comparisons)
    except UnsupportedReleaseError as error:
        return failure(str(error), UNFIT_EXIT).exit_code
    if not as_json:
        console_for().print(f"{installed_release()} fits: it is used as {release.name}.", soft_wrap=True)
    return 0


def _as_json(release: str, comparisons: Sequence[Comparison]) -> dict[str, object]:
    """`release` is the one of ours with which the installed one is compared."""
    lines = [
        {"subject": one.subject, "fits": one.fits, "lacks": list(one.lacks), "needs": list(one.needs)}
        for one in comparisons
    ]
    fits = all(one.fits for one in comparisons)
    return {"installed": installed_release(), "used_as": release, "fits": fits, "comparisons": lines}


def _show(comparisons: Sequence[Comparison]) -> None:
    table = Table.grid(padding=(0, 2))
    for comparison in comparisons:
        style = "green" if comparison.fits else "bold red"
        level = Text("ok" if comparison.fits else "PROBLEM", style=style)
        table.add_row(level, comparison.subject, _description(comparison))
    console_for().print(table)


def _description(comparison: Comparison) -> str:
    lacks = f"lacks {', '.join(comparison.lacks)}" if comparison.lacks else ""
    needs = f"needs {', '.join(comparison.needs)}" if comparison.needs else ""
    return "; ".join(filter(None, (lacks, needs)))
