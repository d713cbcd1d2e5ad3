"""Tables and lists as lines of plain text, for a terminal and for a pipe; cells cannot control the terminal.

A terminal's width cuts the last column; a pipe gets everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from ..demo.text import MAX_TEXT_SHOWN, cell, plain

GAP = "  "
MIN_ID_LENGTH: Final = 8

_LEAST_ROOM = 10


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and whether its cells are numbers, which are aligned to the right."""

    title: str
    is_number: bool = False


def table_lines(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int | None) -> Iterator[str]:
    """The heading and the rows; `width` None is a pipe, which has no width."""
    cells = [[plain(text, MAX_TEXT_SHOWN) for text in row] for row in rows]
    titles = [column.title for column in columns]
    widths = [max(cell_len(row[number]) for row in [titles, *cells]) for number in range(len(columns))]
    for row in [titles, *cells]:
        *first, last = (
            _aligned(text, size, is_number=column.is_number)
            for text, size, column in zip(row, widths, columns, strict=True)
        )
        line = GAP.join([*first, ""])
        if width is not None:
            last = cell(last, max(_LEAST_ROOM, width - cell_len(line))).plain
        yield (line + last).rstrip()


def number_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns of numbers aligned to the right, and a last one as it is; any heading is the first row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for *numbers, last in rows:
        right = (f"{number:>{width}}" for number, width in zip(numbers, widths, strict=True))
        yield f"{GAP.join(right)}{GAP}{last}".rstrip()


def _aligned(text: str, size: int, *, is_number: bool) -> str:
    return " " * (size - cell_len(text)) + text if is_number else set_cell_size(text, size)


def width_of(console: Console) -> int | None:
    """The width for `table_lines`."""
    return console.width if console.is_terminal else None


# -- cells -----------------------------------------------------------------------------------------


def shortened(ids: Iterable[str | None]) -> Mapping[str | None, str]:
    """Each id as a table shows it: its beginning, long enough to tell these ids apart. None is "-".

    What is shown can be typed in place of the id, unless other ids of the database begin so too.
    """
    whole = sorted({value for value in ids if value is not None})
    shown: dict[str | None, str] = {None: "-"}
    for position, value in enumerate(whole):
        neighbours = whole[max(0, position - 1) : position] + whole[position + 1 : position + 2]
        shared = max((_shared_length(value, other) for other in neighbours), default=0)
        shown[value] = value[: max(MIN_ID_LENGTH, shared + 1)]
    return shown


def _shared_length(one: str, other: str) -> int:
    for position, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return position
    return min(len(one), len(other))


def time_text(moment: datetime) -> str:
    """A time in UTC to the second; a naive one is in UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return f"{aware:%Y-%m-%d %H:%M:%S}Z"


_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def seconds_text(seconds: float) -> str:
    """A duration by its two largest units, such as 850 ms, 4.2 s, 12 m 5 s or 3 d 4 h."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    position = next(number for number, (size, _) in enumerate(_UNITS) if whole >= size)
    (size, unit), (smaller, smaller_unit) = _UNITS[position], _UNITS[position + 1]
    rest = whole % size // smaller
    return f"{whole // size:,} {unit}" + (f" {rest} {smaller_unit}" if rest else "")


_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def bytes_text(size_bytes: float) -> str:
    """A size in the unit that leaves at most four digits before the point."""
    size, units = float(size_bytes), iter(_SIZES)
    unit = next(units)
    while size >= 1024 and unit != _SIZES[-1]:
        size, unit = size / 1024, next(units)
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
