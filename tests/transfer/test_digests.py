"""Digests of rows: independent of order, different for different rows, bounded in memory."""

from __future__ import annotations

from typing import Any

from deerflow_mongo.transfer.digests import NOTHING, Difference, Digests, row_digest


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"thread_id": f"t{number % 7}", "seq": number, "content": {"n": number}} for number in range(count)
    ]


def digests_of(found: list[dict[str, Any]], **options: int) -> Digests:
    digests = Digests(**options)
    for row in found:
        digests.add("run_events", row)
    return digests


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert row_digest({"a": 1, "b": {"c": 2, "d": 3}}) == row_digest({"b": {"d": 3, "c": 2}, "a": 1})


def test_values_of_different_types_have_different_digests() -> None:
    values: tuple[Any, ...] = (
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        {"a": 1},
        0,
        0.0,
        False,
        "",
        [],
        {},
        "\ud800",
        2**80,
    )
    assert len({row_digest({"value": value}) for value in values}) == len(values)


def test_order_of_rows_does_not_matter() -> None:
    found = rows(100)
    shuffled = sorted(found, key=row_digest)
    with digests_of(found) as here, digests_of(shuffled) as there:
        assert list(here.differences(there)) == []
        assert here.total("run_events") == there.total("run_events")
        assert here.total("run_events").rows == 100


def test_differences_name_the_kind_and_the_thread() -> None:
    found = rows(100)
    changed = [*found[:50], {**found[50], "content": "another"}, *found[51:]]
    with digests_of(found) as here, digests_of(changed) as there:
        [difference] = here.differences(there)
        assert (difference.kind, difference.thread_id) == ("run_events", "t1")
        assert difference.here.rows == difference.there.rows == 15


def test_missing_repeated_and_additional_rows_are_differences() -> None:
    found = rows(3)
    with digests_of(found[:2]) as here, digests_of([found[0], found[0], found[2]]) as there:
        counts = {one.thread_id: (one.here.rows, one.there.rows) for one in here.differences(there)}
        assert counts == {"t0": (1, 2), "t1": (1, 0), "t2": (0, 1)}


def test_accounts_differ_without_a_thread() -> None:
    with Digests() as here, Digests() as there:
        here.add("users", {"user_id": "u"})
        total = here.total("users")
        assert list(here.differences(there)) == [Difference("users", None, total, NOTHING)]


def test_totals_beyond_the_limit_are_compared_all_the_same() -> None:
    found = rows(100)
    with digests_of(found, max_totals_in_memory=2) as here, digests_of(found[:-1]) as there:
        assert [one.thread_id for one in here.differences(there)] == ["t1"]
        there.add("run_events", found[-1])
        assert list(here.differences(there)) == []
        assert here.totals() == there.totals()
