"""Measures the conversion of a stored run to a row, and of a row's payloads to their stored form.

Run it with `python -m benchmarks.row_conversion`. It prints the best of several repetitions in microseconds
of one core, without a server; the target is less than 15 us for reading a row.
"""

from __future__ import annotations

import json
import sys
import timeit
from collections.abc import Callable
from typing import Any

from deerflow_mongo.contract.payloads import to_json_mapping
from deerflow_mongo.contract.times import clock
from deerflow_mongo.mongodb.documents.encoding import encode_mapping
from deerflow_mongo.mongodb.documents.runs import new_run, run_row
from deerflow_mongo.mongodb.documents.stored_times import stored_now

CALLS, REPETITIONS = 20_000, 7

METADATA: dict[str, Any] = {
    "source": "web",
    "turn": 3,
    "tags": ["demo", "billing"],
    "client": {"address": "192.0.2.1", "agent": "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101"},
}
KWARGS: dict[str, Any] = {
    "input": {"messages": [{"role": "user", "content": "Compare the three proposals and say why. " * 30}]},
    "config": {"recursion_limit": 100, "configurable": {"model_name": "gpt-4.1", "thinking_enabled": True}},
    "stream_mode": ["values", "messages-tuple"],
}


def _document() -> dict[str, Any]:
    return new_run(
        run_id="9a0b" * 9,
        thread_id="77f1" * 9,
        user_id="alice",
        assistant_id="lead_agent",
        status="running",
        model_name="gpt-4.1",
        multitask_strategy="reject",
        follow_up_to_run_id=None,
        metadata=encode_mapping(METADATA),
        kwargs=encode_mapping(KWARGS),
        created_at=stored_now(),
        started_at=stored_now(),
        ended_at=None,
        error=None,
        stamp_us=clock.stamp_us(),
    )


def _encode() -> None:
    for name, payload in (("metadata", METADATA), ("kwargs", KWARGS)):
        encode_mapping(to_json_mapping(payload, name))


def _cost_us(call: Callable[[], Any]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=REPETITIONS)) / CALLS * 1e6


def main() -> None:
    document = _document()
    payload_bytes = len(json.dumps([METADATA, KWARGS]).encode())
    sys.stdout.write(
        f"payloads of {payload_bytes:,} bytes as JSON, Python {sys.version.split()[0]}\n"
        f"document -> row              {_cost_us(lambda: run_row(document)):5.1f} us\n"
        f"payloads -> stored form      {_cost_us(_encode):5.1f} us\n"
    )


if __name__ == "__main__":
    main()
