"""The page of `deerflow-mongo stats --html`: one file without scripts, whatever texts the database has."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from deerflow_mongo.cli.charts import Chart, Series, bars, columns, cut, scale_of, ticks_of
from deerflow_mongo.cli.markup import Markup, element
from deerflow_mongo.cli.page import page_of
from deerflow_mongo.cli.report_tables import tables_of
from deerflow_mongo.mongodb.reports.report import Report
from deerflow_mongo.mongodb.reports.rows import (
    ActiveRun,
    BusyThread,
    CollectionSize,
    DayOfRuns,
    FailedRuns,
    IndexUse,
    LargeThread,
    ModelTokens,
    ModelVotes,
    SlowRun,
    UserTokens,
)

UNTIL = datetime(2026, 3, 14, 12)  # noqa: DTZ001 - as reports have times
EVIL = "\"><script>alert('x')</script><img src=x onerror=alert(1)>&amp;"
DOCUMENT = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "footer",
    "details",
    "summary",
}
CONTENT = {"section", "div", "span", "p", "h1", "h2", "h3", "ul", "li"}
TABLES = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
ELEMENTS = DOCUMENT | CONTENT | TABLES | {"svg", "g", "rect", "line", "text", "desc"}


def report_of(days: int = 30, **lists: Any) -> Report:
    since = datetime(2026, 3, 14) - timedelta(days=days - 1)  # noqa: DTZ001
    return Report("deerflow", since, UNTIL, days, 10, timedelta(hours=1), **lists)


def day(date: str, status: str = "success", runs: int = 1_234, tokens: int = 5_000_000) -> DayOfRuns:
    callers = {"lead_agent": tokens, "subagent": 0, "middleware": 0}
    return DayOfRuns(date, status, runs, tokens - 1_000, 1_000, tokens, callers)


def full_report(text: str) -> Report:
    """With this text in every place where a text of the database is shown."""
    report = report_of(
        runs_by_day=[day("2026-03-13"), day("2026-03-14", text, 7)],
        tokens_by_model=[ModelTokens(text, 3, 4, 5, 9, 1, 0)],
        tokens_by_user=[UserTokens(text, 3, 1, 4, 5, 9), UserTokens(None, 1, 0, 1, 1, 2)],
        votes_by_model=[ModelVotes(text, 3, 1)],
        slowest_runs=[SlowRun(text, text, text, text, text, UNTIL, 4_200, 9)],
        failed_runs=[FailedRuns(text, text, 3, UNTIL, text, text, text)],
        busiest_threads=[BusyThread(text, text, 3, 9)],
        left_running=[ActiveRun(text, text, text, text, text, text, UNTIL, 9, 9, text, "expired", -90_000)],
        left_running_count=1,
        largest_threads=[LargeThread(text, 12_345, 3)],
        collections=[CollectionSize(text, 1, 2, 3, 4, 5)],
        indexes=[IndexUse(text, text, text, 5, 6, UNTIL)],
    )
    report.database = text
    report.unavailable = {"votes_by_model": text}
    return report


class Reader(HTMLParser):
    """Every element and attribute of a page, and its text; fails where an end tag is missing."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_no_text_of_the_database_becomes_markup() -> None:
    page = Reader(page_of(full_report(EVIL)))
    assert set(page.names) <= ELEMENTS
    assert {name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")} == set()
    assert sum(EVIL[:20] in text for text in page.texts) >= 12


def test_page_loads_nothing_and_forbids_it() -> None:
    page = page_of(full_report("text"))
    assert not re.search(r"https?:|//|url\(|@import|src=|href=|<script|<link", page)
    assert "default-src &#x27;none&#x27;" in page
    assert page.startswith('<!doctype html>\n<html lang="en">')


def test_every_chart_has_a_text_and_a_table() -> None:
    page = page_of(full_report("text"))
    assert page.count('role="img"') == page.count("<desc>") == page.count("<svg") == 2 * 6
    assert "1,241 runs in all, most from 13 Mar: 1,234" in page
    for name in ("runs_by_day", "tokens_by_model", "tokens_by_user", "tokens_by_caller", "collections"):
        card = page.split(f'aria-labelledby="{name}-title"')[1].split("</section>")[0]
        assert "<svg" in card
        assert "<table" in card


def test_numbers_have_separators_and_axes_units() -> None:
    page = page_of(full_report("text"))
    assert "12,345" in page
    assert "10,000,000" in page
    assert ">tokens (millions)<" in page
    assert ">runs<" in page


def test_empty_period_says_that_there_is_nothing() -> None:
    page = page_of(report_of())
    assert "<svg" not in page
    assert page.count("No runs in this period.") == 4
    assert "No run was left running." in page


def test_section_that_was_not_read_has_the_reason() -> None:
    report = report_of(unavailable={"runs_by_day": "not read within 30 s, the limit of a section"})
    page = page_of(report)
    assert page.count("not read within 30 s") == 2  # the tokens by caller are from the same section
    assert "Not read: runs_by_day." in page
    assert '<span class="fact">not read</span>' in page


def test_style_is_for_light_dark_and_narrow_screens() -> None:
    page = page_of(report_of())
    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page
    assert "max-width: 559px" in page


@pytest.mark.parametrize(("days", "columns_drawn"), [(1, 1), (62, 62), (63, 32), (3_660, 61)])
def test_long_periods_have_columns_of_several_days(days: int, columns_drawn: int) -> None:
    page = page_of(report_of(days, runs_by_day=[day("2026-03-14")]))
    wide = page.split('class="chart wide"')[1].split("</svg>")[0]
    assert wide.count("<g>") == columns_drawn


def test_active_and_unknown_statuses_share_a_colour_each() -> None:
    days = [day("2026-03-14", status) for status in ("pending", "running", "paused", "lost")]
    page = page_of(report_of(runs_by_day=days))
    legend = page.split('<ul class="legend">')[1].split("</ul>")[0]
    assert re.findall(r"</span>(\w+)</li>", legend) == ["active", "other"]
    assert [column.title for column in tables_of(report_of(runs_by_day=days))[0].columns[1:5]] == [
        *("pending", "running", "lost", "paused")
    ]


# -- charts and markup -----------------------------------------------------------------------------


@pytest.mark.parametrize("highest", [0, 0.4, 1, 3, 7, 19, 99, 214, 1_999, 45_000])
def test_ticks_are_whole_round_and_few(highest: float) -> None:
    ticks = ticks_of(highest)
    assert ticks[0] == 0
    assert ticks[-1] >= highest
    assert 2 <= len(ticks) <= 7
    assert all(tick == int(tick) for tick in ticks)


def test_axis_counts_in_thousands_millions_and_billions() -> None:
    assert [scale_of(value) for value in (9_999, 20_000, 3e6, 4e9)] == [
        *((1, ""), (1e3, "thousands"), (1e6, "millions"), (1e9, "billions"))
    ]


def test_parts_that_are_not_zero_are_visible() -> None:
    series = [Series("many", "c1", [1_000_000, 0]), Series("one", "c2", [1, 0])]
    chart = Chart("t", "d", "runs", ["a", "b"], series)
    for drawn in (columns(chart), bars(chart, str)):
        [wide, _] = re.findall(r"<svg.*?</svg>", drawn)
        sizes = [float(size) for size in re.findall(r'(?:height|width)="([\d.]+)" class="c2"', wide)]
        sizes += [float(size) for size in re.findall(r'width="([\d.]+)" height="14" class="c2"', wide)]
        assert sizes
        assert all(size >= 1.5 for size in sizes)


def test_labels_are_cut_by_their_width() -> None:
    assert cut("gpt-4.1", 100) == "gpt-4.1"
    assert cut("模" * 20, 100) == "模" * 6 + "…"


def test_attributes_and_children_are_escaped() -> None:
    assert element("p", "<&", Markup("<b>"), title='"', hidden=True, lang=None) == (
        '<p title="&quot;" hidden>&lt;&amp;<b></p>'
    )
