"""The options that several commands have, and the parsers of their values."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeAlias

import typer

from ..contract.arguments import identifier
from ..contract.times import parse_time

# -- parsers of values ------------------------------------------------------------------------------

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(text: str) -> timedelta:
    """An option's value such as 30d; the parser of `--older-than`."""
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if match is None:
        raise typer.BadParameter("expected a number and a unit, such as 30d, 12h, 90m or 4w")
    return int(match[1]) * _UNITS[match[2]]


def since(text: str) -> datetime:
    """An option's value such as 7d or 2026-11-01, as a time in UTC; the parser of `--since`."""
    try:
        return datetime.now(UTC) - age(text)
    except typer.BadParameter:
        pass
    except OverflowError:
        raise typer.BadParameter("it is before the year 1") from None
    try:
        return parse_time("the time", text)
    except ValueError:
        raise typer.BadParameter(
            "expected an age such as 7d or 12h, or a time in UTC such as 2026-11-01 or 2026-11-01T08:00"
        ) from None


def identifier_text(text: str) -> str:
    """An argument's value as an identifier, or the beginning of one; the parser of ids."""
    try:
        return identifier("the id", text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


# -- options ----------------------------------------------------------------------------------------

MAX_LISTED = 10_000

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
JsonLinesOption: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print each row as one line of JSON instead of a table.")
]

UserOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--user",
        parser=identifier_text,
        metavar="USER",
        help="Only those of this user; an id or its beginning.",
    ),
]
SinceOption: TypeAlias = Annotated[
    datetime | None,
    typer.Option(
        "--since",
        parser=since,
        metavar="TIME",
        help="Only those created since then: an age such as 7d or 12h, or a time in UTC such as 2026-11-01.",
    ),
]
LimitOption: TypeAlias = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, max=MAX_LISTED, help="At most so many, newest first.")
]
