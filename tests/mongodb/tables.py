"""The tables that the README prints from the code: options of a URI, groups, errors by codes, metrics, views.

`python -m tests.mongodb.tables` writes them into `deerflow_mongo/mongodb/README.md`.
"""

from __future__ import annotations

from typing import Final

from deerflow_mongo.mongodb.drivers.errors import SERVER_ERRORS, UNAVAILABLE_LABELS
from deerflow_mongo.mongodb.drivers.groups.lane import MAX_BYTES, MAX_CALLS, SMALLEST_GROUP
from deerflow_mongo.mongodb.drivers.groups.places import LEAST_IN_FLIGHT, MOST_IN_FLIGHT
from deerflow_mongo.mongodb.drivers.groups.unions import MAX_LISTED
from deerflow_mongo.mongodb.drivers.groups.upserts import MAX_CANDIDATES, Upserts
from deerflow_mongo.mongodb.telemetry.metrics import METRICS
from deerflow_mongo.mongodb.uri_options import PASSED, URI_OPTIONS
from deerflow_mongo.mongodb.views import VIEWS
from tests.mongodb.commands_at_once import CALLS, COMMANDS, METHODS
from tests.mongodb.documents.pinned import README, readme_with

URI_MARKS: Final = ("<!-- URI options: begin -->", "<!-- URI options: end -->")
METRICS_MARKS: Final = ("<!-- metrics: begin -->", "<!-- metrics: end -->")
GROUP_MARKS: Final = ("<!-- groups: begin -->", "<!-- groups: end -->")
BOUND_MARKS: Final = ("<!-- group bounds: begin -->", "<!-- group bounds: end -->")
VIEW_MARKS: Final = ("<!-- views: begin -->", "<!-- views: end -->")
ERROR_MARKS: Final = ("<!-- server errors: begin -->", "<!-- server errors: end -->")


def uri_options() -> str:
    """A row for each option that has more to it than being passed on, and the names of the others."""
    rows = [
        f"| `{option.name}` | {option.handling} | {option.note} |"
        for option in URI_OPTIONS
        if option.handling != PASSED or option.note
    ]
    others = [f"`{option.name}`" for option in URI_OPTIONS if option.handling == PASSED and not option.note]
    head = ["| option | what is done with it | |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, f"| {', '.join(others)} | {PASSED} | |"])


_KINDS: Final = {
    "find": ("reads by id", "one `find`"),
    "list": ("lists", "one `aggregate`"),
    "aggregate": ("counts and totals", "one `aggregate`"),
    "insert": ("inserts", "one `insert`"),
    "update": ("updates by id", "one `update`"),
    "upsert": ("upserts", "one `find` and one write"),
    "single": ("nothing", ""),
}


def groups() -> str:
    """A row for each kind of group, with its methods."""
    head = [
        f"| kind | what is shared | as | methods | commands of {CALLS} calls at once |",
        "| --- | --- | --- | --- | --: |",
    ]
    rows = [
        f"| {f'`{kind}`' if kind in COMMANDS else ''} | {_KINDS[kind][0]} | {_KINDS[kind][1]} "
        f"| {', '.join(f'`{name}`' for name in methods)} | {COMMANDS.get(kind, CALLS)} |"
        for kind, methods in METHODS.items()
    ]
    return "\n".join([*head, *rows])


def group_bounds() -> str:
    """A row for each constant."""
    rows = [
        (
            "commands on their way at once, of a kind and collection",
            f"{LEAST_IN_FLIGHT}, and one more for each whole millisecond of the round trip to the server, "
            f"up to {MOST_IN_FLIGHT}",
        ),
        (
            "more of them, after fewer calls have waited than waiting pays for",
            f"up to {SMALLEST_GROUP - 1}; of upserts up to {Upserts.pays_from - 1}",
        ),
        ("calls of a command", f"{MAX_CALLS}"),
        ("what the calls of a command write", f"{MAX_BYTES // 1024**2} MiB; a call of more goes alone"),
        ("rows of the lists of a command, by their limits", f"{MAX_LISTED:,}; a longer list goes alone"),
        ("rows of the counts and totals of a command, as expected", f"{MAX_LISTED:,}"),
        ("rows that are read for a group of upserts", f"{MAX_CANDIDATES:,}; with more, each goes alone"),
    ]
    return "\n".join(["| bound | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def server_errors() -> str:
    """A row for each of the package's errors, with the codes and labels that become it."""
    by_kind: dict[str, list[str]] = {}
    for code, (name, kind) in SERVER_ERRORS.items():
        by_kind.setdefault(kind.__name__, []).append(f"{code} {name}".strip())
    rows = [f"| `{kind}` | {', '.join(codes)} |" for kind, codes in by_kind.items()]
    labels = ", ".join(f"`{label}`" for label in UNAVAILABLE_LABELS)
    return "\n".join(
        [
            "| error | codes of the server |",
            "| --- | --- |",
            *rows,
            f"| `StorageUnavailableError` | any other code with the label {labels} |",
            "| `StorageError` | every other code |",
        ]
    )


def metrics() -> str:
    """A row for each metric, with its names in all three places."""
    head = [
        "| `storage.metrics()` | Prometheus | OpenTelemetry | unit | labels | what it is |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = [
        f"| `{metric.name}` | {metric.kind} `{metric.prometheus_name}` | `{metric.otel_name}` "
        f"| `{metric.unit}` | {', '.join(f'`{label}`' for label in metric.labels)} | {metric.description} |"
        for metric in METRICS
    ]
    return "\n".join([*head, *rows])


def views() -> str:
    """A row for each view, with its columns and their units."""
    rows = [
        f"| `{view.name}` | {view.about} | "
        f"{'; '.join(f'`{column}` ({unit})' for column, unit in view.columns.items())} |"
        for view in VIEWS
    ]
    return "\n".join(["| view | rows | columns |", "| --- | --- | --- |", *rows])


def readme_with_tables() -> str:
    """The README with all tables."""
    README.write_text(readme_with(uri_options(), *URI_MARKS), encoding="utf-8")
    README.write_text(readme_with(groups(), *GROUP_MARKS), encoding="utf-8")
    README.write_text(readme_with(group_bounds(), *BOUND_MARKS), encoding="utf-8")
    README.write_text(readme_with(metrics(), *METRICS_MARKS), encoding="utf-8")
    README.write_text(readme_with(views(), *VIEW_MARKS), encoding="utf-8")
    return readme_with(server_errors(), *ERROR_MARKS)


if __name__ == "__main__":
    README.write_text(readme_with_tables(), encoding="utf-8")
