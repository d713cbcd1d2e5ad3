"""The page of `deerflow-mongo stats --html`: one file that loads nothing and has no script.

Its numbers and tables are those of `report_tables.py`; here are the charts, the frame and the style. Every
text of the database is escaped by `markup.py`, and the page's own policy forbids scripts and requests too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from .. import __version__
from ..contract.rows import ACTIVE_STATUSES
from ..demo.text import plain
from ..mongodb.reports.report import Report
from .charts import Chart, Series, bars, columns
from .markup import Markup, element, joined
from .report_tables import (
    ReportTable,
    days_of,
    facts_of,
    period_text,
    tables_of,
    tokens_by_caller,
    user_name,
)
from .tables import bytes_text, time_text

MAX_COLUMNS = 62
"""More days than these are put together, so that a column can be seen."""

MAX_BARS = 10
MAX_ROWS_OPEN = 12
"""A longer table is folded."""

MAX_COLUMNS_IN_ROW = 4
"""A table with more columns is a list of its rows on a narrow screen."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

_STATUS_COLOURS: Final[Mapping[str, str]] = {
    "success": "c1",
    "error": "c2",
    "timeout": "c3",
    "interrupted": "c4",
    "active": "c5",
    "other": "c6",
}
"""What a chart of statuses shows, from below: the endings, all active runs, and all other statuses."""

_HALF_WIDTH: Final = frozenset({"tokens_by_caller", "votes_by_model", "largest_threads", "busiest_threads"})
"""Sections that stand in pairs where there is room."""


def page_of(report: Report) -> str:
    """The whole page. It ends with a line feed."""
    title = f"deerflow-mongo: {plain(report.database)}"
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}, {period_text(report)}"),
        element("style", Markup(_STYLE)),
    ]
    cards = [_card(report, table) for table in tables_of(report)]
    body = [
        _header(report),
        element("main", element("section", *_tiles(report), class_="tiles", aria_label="Summary"), *cards),
        _footer(report),
    ]
    document = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _header(report: Report) -> Markup:
    return element(
        "header",
        element("h1", f"Database {plain(report.database)}"),
        element("p", f"{period_text(report)}. Read at {time_text(report.until)}. All times are in UTC."),
    )


def _footer(report: Report) -> Markup:
    missing = [element("p", f"Not read: {', '.join(report.unavailable)}.")] if report.unavailable else []
    return element("footer", *missing, element("p", f"Written by deerflow-mongo {__version__} stats."))


def _tiles(report: Report) -> Iterator[Markup]:
    for name, value in facts_of(report):
        yield element(
            "div", element("span", name, class_="name"), element("span", value, class_="fact"), class_="tile"
        )


def _card(report: Report, table: ReportTable) -> Markup:
    """One section: its title, what it counts, its charts, and its table."""
    heading = f"{table.name}-title"
    content: list[Markup] = [element("h2", table.title, id=heading), element("p", table.note, class_="note")]
    charts = _CHARTS.get(table.name)
    if table.unavailable is not None:
        content.append(element("p", plain(table.unavailable, 500), class_="empty"))
    elif not table.rows:
        content.append(element("p", table.empty, class_="empty"))
    else:
        content += _with_table(list(charts(report)) if charts is not None else [], table)
    is_half = table.name in _HALF_WIDTH
    return element("section", *content, class_="card half" if is_half else "card", aria_labelledby=heading)


def _with_table(charts: list[Markup], table: ReportTable) -> list[Markup]:
    """One chart stands beside its table where there is room, two beside each other."""
    figures = [element("div", chart, class_="figure") for chart in charts]
    drawn = _table(table)
    if len(figures) == 1 and table.name not in _HALF_WIDTH:
        return [element("div", *figures, element("div", drawn), class_="beside table")]
    return [element("div", *figures, class_="beside") if len(figures) > 1 else joined(*figures), drawn]


def _table(table: ReportTable) -> Markup:
    """The roles are those that the elements have anyway, and lose where a style makes a list of the rows."""
    kinds = ["number" if column.is_number else None for column in table.columns]
    head = [
        element("th", column.title, scope="col", class_=kind, role="columnheader")
        for column, kind in zip(table.columns, kinds, strict=True)
    ]
    body: list[Markup] = []
    for row in table.rows:
        first, *cells = (
            element(
                "td" if number else "th",
                element("span", text),
                class_=kinds[number],
                role="cell" if number else "rowheader",
                data_label=table.columns[number].title if number else None,
            )
            for number, text in enumerate(row)
        )
        body.append(element("tr", first, *cells, role="row"))
    drawn = element(
        "table",
        element("caption", table.title),
        element("thead", element("tr", *head, role="row"), role="rowgroup"),
        element("tbody", *body, role="rowgroup"),
        role="table",
        class_="listed" if len(table.columns) > MAX_COLUMNS_IN_ROW else None,
    )
    scrolled = element(
        "div", drawn, class_="scroll", tabindex="0", role="region", aria_label=f"{table.title}, table"
    )
    if len(table.rows) <= MAX_ROWS_OPEN:
        return scrolled
    return element("details", element("summary", f"Table of {len(table.rows):,} rows"), scrolled)


# -- charts ----------------------------------------------------------------------------------------


def _day_charts(report: Report) -> Iterator[Markup]:
    days = days_of(report)
    size = math.ceil(len(days) / MAX_COLUMNS)
    starts = list(range(0, len(days), size))
    labels = [f"{days[start].day} {days[start]:%b}" for start in starts]
    place = {day.isoformat(): number // size for number, day in enumerate(days)}
    runs = {status: [0.0] * len(starts) for status in _STATUS_COLOURS}
    tokens = {"input": [0.0] * len(starts), "output": [0.0] * len(starts)}
    for row in report.runs_by_day:
        column = place.get(row.day)
        if column is not None:
            runs[_charted(row.status)][column] += row.runs
            tokens["input"][column] += row.input_tokens
            tokens["output"][column] += row.output_tokens
    per = "per day" if size == 1 else f"per {size} days"
    by_status = [
        Series(status, _STATUS_COLOURS[status], values) for status, values in runs.items() if any(values)
    ]
    by_kind = [Series("input", "c1", tokens["input"]), Series("output", "c5", tokens["output"])]
    yield _day_chart(f"Runs {per} by status", "runs", labels, by_status)
    yield _day_chart(f"Tokens {per}", "tokens", labels, by_kind)


def _charted(status: str) -> str:
    if status in ACTIVE_STATUSES:
        return "active"
    return status if status in _STATUS_COLOURS else "other"


def _day_chart(title: str, unit: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    totals = [sum(values) for values in zip(*(item.values for item in series), strict=True)]
    highest = max(range(len(totals)), key=totals.__getitem__)
    peak = f"most from {labels[highest]}: {totals[highest]:,.0f}"
    text = f"{sum(totals):,.0f} {unit} in all, {peak}. The table below has the numbers."
    return joined(element("h3", title), columns(Chart(title, text, unit, labels, series)))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bar_chart(
    title: str, labels: Sequence[str], series: Sequence[Series], written: Callable[[float], str] = _count
) -> Markup:
    """The first bars; the table has all."""
    first = [Series(item.name, item.colour, item.values[:MAX_BARS]) for item in series]
    named = labels[:MAX_BARS]
    parts = [
        f"{label}: {', '.join(f'{item.name} {written(item.values[number])}' for item in first)}"
        for number, label in enumerate(named)
    ]
    return bars(Chart(title, "; ".join(parts), "", named, first), written)


def _model_chart(report: Report) -> Iterator[Markup]:
    rows = report.tokens_by_model
    series = [
        Series("input tokens", "c1", [row.input_tokens for row in rows]),
        Series("output tokens", "c5", [row.output_tokens for row in rows]),
    ]
    yield _bar_chart("Tokens by model", [row.model for row in rows], series)


def _user_chart(report: Report) -> Iterator[Markup]:
    rows = report.tokens_by_user
    series = [
        Series("input tokens", "c1", [row.input_tokens for row in rows]),
        Series("output tokens", "c5", [row.output_tokens for row in rows]),
    ]
    yield _bar_chart("Tokens by user", [user_name(row.user_id) for row in rows], series)


def _caller_chart(report: Report) -> Iterator[Markup]:
    tokens = tokens_by_caller(report)
    yield _bar_chart("Tokens by caller", list(tokens), [Series("tokens", "c1", list(tokens.values()))])


def _vote_chart(report: Report) -> Iterator[Markup]:
    rows = report.votes_by_model
    series = [
        Series("positive", "c1", [row.positive for row in rows]),
        Series("negative", "c2", [row.negative for row in rows]),
    ]
    yield _bar_chart("Votes by model", [row.model for row in rows], series)


def _collection_chart(report: Report) -> Iterator[Markup]:
    rows = sorted(report.collections, key=lambda row: -(row.storage_bytes + row.index_bytes))
    series = [
        Series("documents on disk", "c1", [row.storage_bytes for row in rows]),
        Series("indexes", "c4", [row.index_bytes for row in rows]),
    ]
    yield _bar_chart("Collections on disk", [row.collection for row in rows], series, bytes_text)


_CHARTS: Final[Mapping[str, Callable[[Report], Iterator[Markup]]]] = {
    "runs_by_day": _day_charts,
    "tokens_by_model": _model_chart,
    "tokens_by_user": _user_chart,
    "tokens_by_caller": _caller_chart,
    "votes_by_model": _vote_chart,
    "collections": _collection_chart,
}

# -- style -----------------------------------------------------------------------------------------

_STYLE = """
:root {
  --ground: #f6f6f4; --card: #ffffff; --ink: #1c1c1a; --soft: #5c5b56; --line: #e2e1dc; --grid: #ebeae6;
  --c1: #2a78d6; --c2: #d03b3b; --c3: #d99200; --c4: #6a4fc4; --c5: #12906a; --c6: #85847e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #131312; --card: #1d1d1b; --ink: #f1f0ea; --soft: #b3b1a8; --line: #35342f; --grid: #2b2a27;
    --c1: #4a94ea; --c2: #ec6a6a; --c3: #d99a1c; --c4: #9b88ee; --c5: #2fb389; --c6: #8f8e87;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 24px; max-width: 1320px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
h1 { margin: 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 18px; }
h3 { margin: 12px 0 4px; font-size: 14px; color: var(--soft); font-weight: 600; }
header p, .note, footer { margin: 4px 0 0; color: var(--soft); }
.note { font-size: 13px; margin-bottom: 12px; }
footer { margin-top: 24px; font-size: 13px; }
main { display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px; margin-top: 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px;
}
.tile .name { display: block; font-size: 13px; color: var(--soft); }
.tile .fact { display: block; font-size: 22px; font-weight: 600; overflow-wrap: anywhere; }
.card { min-width: 0; }
.empty {
  margin: 12px 0 0; padding: 14px; border: 1px dashed var(--line); border-radius: 6px; color: var(--soft);
}
.legend {
  display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 0 0 8px; padding: 0; list-style: none;
  font-size: 13px;
}
.swatch { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 2px; }
.chart { display: block; width: 100%; height: auto; max-width: 620px; margin-bottom: 8px; }
.chart text { font-family: inherit; font-size: 12px; fill: var(--soft); }
.chart .label, .chart .value { fill: var(--ink); }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart g:hover { opacity: 0.75; }
.c1 { fill: var(--c1); background: var(--c1); } .c2 { fill: var(--c2); background: var(--c2); }
.c3 { fill: var(--c3); background: var(--c3); } .c4 { fill: var(--c4); background: var(--c4); }
.c5 { fill: var(--c5); background: var(--c5); } .c6 { fill: var(--c6); background: var(--c6); }
.wide { display: none; }
.scroll { overflow-x: auto; margin: 0 -18px; padding: 0 18px; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--c1); outline-offset: -2px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td {
  padding: 6px 14px 6px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
}
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-weight: 500; white-space: nowrap; vertical-align: bottom; }
tbody th { font-weight: 500; overflow-wrap: break-word; min-width: 92px; max-width: 240px; }
td { white-space: nowrap; }
td:last-child:not(.number) { white-space: normal; overflow-wrap: anywhere; min-width: 180px; }
.number { text-align: right; }
tbody tr:last-child > * { border-bottom: 0; }
details { margin-top: 8px; }
summary { padding: 6px 0; cursor: pointer; color: var(--soft); font-size: 13px; }
@media (min-width: 560px) { .wide { display: block; } .narrow { display: none; } }
@media (min-width: 1000px) {
  main, .beside { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .beside { display: grid; gap: 8px 40px; align-items: start; }
  .beside.table { grid-template-columns: minmax(0, 5fr) minmax(0, 7fr); }
  main > section:not(.half) { grid-column: 1 / -1; }
}
@media (max-width: 559px) {
  body { padding: 14px; }
  .tile, .card { padding: 14px; }
  .scroll { margin: 0 -14px; padding: 0 14px; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .tile .fact { font-size: 18px; }
  .listed thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .listed, .listed tbody { display: block; }
  .listed tbody tr { display: block; padding: 8px 0; border-bottom: 1px solid var(--line); }
  .listed tbody tr:last-child { border-bottom: 0; }
  .listed tbody tr > * {
    display: flex; justify-content: space-between; gap: 16px; padding: 1px 0; max-width: none; border: 0;
    white-space: normal; text-align: right; overflow-wrap: anywhere;
  }
  .listed tbody th { font-weight: 600; }
  .listed td::before { content: attr(data-label); color: var(--soft); flex: none; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
}
@media print { body { background: none; } .tile, .card { break-inside: avoid; } }
"""
