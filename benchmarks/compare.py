"""Compares two results files: which records became faster or slower by more than the measurement noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .report.markdown import NOTHING, Table, counted, items, with_spread
from .report.ratios import Ratio, typical, unpaired
from .results import Key, Metric, Record, Results

_MIN_CHANGE = 0.05
"""Smaller changes are not marked, even if the spreads do not overlap."""

Mark = Literal["", "faster", "SLOWER"]


@dataclass(frozen=True, slots=True)
class _Change:
    key: Key
    throughput: Ratio | None
    p50: Ratio | None
    failures: str

    @property
    def mark(self) -> Mark:
        marks = (_mark(self.throughput, more_is_better=True), _mark(self.p50, more_is_better=False))
        return "SLOWER" if "SLOWER" in marks else "faster" if "faster" in marks else ""

    @property
    def speed(self) -> float:
        """Sort key: slower records first."""
        if self.throughput is not None:
            return self.throughput.median
        return 1.0


def compare(old: Results, new: Results) -> str:
    """A Markdown report of new relative to old, for every record in both files."""
    before, after = _by_key(old), _by_key(new)
    changes = sorted(
        (_change(before[key], after[key]) for key in after if key in before), key=lambda change: change.speed
    )
    parts = ["# Benchmark: new relative to old", *_different(old, new), *_contenders(changes)]
    clear = [change for change in changes if change.mark]
    rest = [change for change in changes if not change.mark]
    note = f"(the spreads do not overlap, and the change is over {_MIN_CHANGE * 100:.0f} %)"
    parts.append(f"## {counted(len(clear), 'clear change')} {note}")
    parts += [str(_table(clear))] if clear else []
    parts.append(f"## {counted(len(rest), 'record')} without a clear change")
    parts += [str(_table(rest))] if rest else []
    parts += _only("old", before, after)
    parts += _only("new", after, before)
    return "\n\n".join(parts) + "\n"


def _by_key(results: Results) -> dict[Key, Record]:
    return {record.key: record for record in results.records}


def _change(old: Record, new: Record) -> _Change:
    def ratio(metric: Metric) -> Ratio | None:
        return unpaired(new.values(metric), old.values(metric))

    return _Change(new.key, ratio("ops_per_s"), ratio("p50_ms"), _failures(old, new))


def _failures(old: Record, new: Record) -> str:
    counts = sum(old.failures.values()), sum(new.failures.values())
    return f"{counts[0]:,} -> {counts[1]:,}" if any(counts) else ""


def _mark(ratio: Ratio | None, *, more_is_better: bool) -> Mark:
    """The spread is the widest one possible, so if it excludes 1, old and new rounds do not overlap."""
    if ratio is None or ratio.low <= 1 <= ratio.high or abs(ratio.median - 1) <= _MIN_CHANGE:
        return ""
    return "faster" if (ratio.median > 1) == more_is_better else "SLOWER"


def _table(changes: list[_Change]) -> Table:
    table = Table("record", "throughput", "p50", "failed calls", "")
    for change in changes:
        cells = (
            with_spread(change.throughput),
            with_spread(change.p50),
            change.failures,
            f"**{change.mark}**",
        )
        table.add(_name(change.key), *cells[:-1], cells[-1] if change.mark else "")
    return table


def _name(key: Key) -> str:
    processes = f", {key.processes} processes" if key.processes != 1 else ""
    driver = f" ({key.driver}, {key.loop})" if key.driver else ""
    tasks = counted(key.concurrency, "task")
    return f"{key.part}: `{key.operation}`, {key.backend}{driver}, {tasks}{processes}, {key.dataset:,} runs"


# -- differences between the two runs --------------------------------------------------------------


def _different(old: Results, new: Results) -> Iterator[str]:
    lines = [
        f"{name}: {_value(before, key)} -> {_value(after, key)}"
        for name, before, after, key in _fields(old, new)
        if before.get(key) != after.get(key)
    ]
    yield f"Old: {_when(old)}. New: {_when(new)}."
    if lines:
        yield f"**The runs differ in the following, which may explain changes below:**\n\n{items(lines)}"


def _when(results: Results) -> str:
    return f"started at {results.began_at}{'' if results.finished else ', **interrupted**'}"


def _value(of: Mapping[str, Any], key: str) -> str:
    return NOTHING if of.get(key) is None else str(of[key])


def _fields(old: Results, new: Results) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any], str]]:
    for name in ("versions", "settings", "machine", "left_out"):
        before: Mapping[str, Any] = getattr(old, name)
        after: Mapping[str, Any] = getattr(new, name)
        for key in dict.fromkeys((*before, *after)):
            yield f"{name}, {key}", before, after, key
    for backend in old.contenders.keys() & new.contenders.keys():
        before, after = old.contenders[backend], new.contenders[backend]
        for key in dict.fromkeys((*before, *after)):
            yield f"contender {backend}, {key}", before, after, key


def _contenders(changes: list[_Change]) -> Iterator[str]:
    """Changes of contenders whose code did not change show differences of the machine."""
    table = Table("contender", "records", "throughput, median of all records", "faster", "SLOWER")
    for backend in dict.fromkeys(change.key.backend for change in changes):
        of = [change for change in changes if change.key.backend == backend]
        marks = [change.mark for change in of]
        table.add(
            backend,
            str(len(of)),
            with_spread(typical(change.throughput for change in of)),
            str(marks.count("faster")),
            str(marks.count("SLOWER")),
        )
    if table:
        yield str(table)


def _only(name: str, here: Mapping[Key, Record], there: Mapping[Key, Record]) -> Iterator[str]:
    lines = [_name(key) for key in here if key not in there]
    if lines:
        yield f"## Only in the {name} file\n\n{items(lines)}"
