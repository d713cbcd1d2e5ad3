"""What a host returns can always be sent as JSON in UTF-8, whatever is stored."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from deerflow_mongo import ActorContext, bind_actor_context, create_storage, reset_actor_context
from deerflow_mongo.contract.capabilities import Following
from deerflow_mongo.contract.rows import ThreadMeta
from deerflow_mongo.hosts import app_state
from deerflow_mongo.hosts.encodable import EncodableStore, encodable
from deerflow_mongo.hosts.json_requests import EncodableRequests, encodable_body

HALF = "\ud83d"
VALID: list[Any] = ["text", "größe \N{GRINNING FACE}", {"a": [1, None, 2.5, True, {}]}, 10**4299, b"bytes"]
ODD: list[Any] = [
    HALF,
    f"a{HALF}b",
    {HALF: 1},
    {"a": [{"b": (HALF,)}]},
    {f"{HALF}": 1, "\ude00": 2},
    float("nan"),
    {"a": [float("inf")]},
    f"{HALF}\ude00 whole",
]


def sent(value: Any) -> Any:
    """As the JSON response of a web framework is encoded and read."""
    return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())


@pytest.mark.parametrize("value", ODD, ids=ascii)
def test_odd_value_becomes_one_that_can_be_sent(value: Any) -> None:
    assert sent(encodable({"row": value}))


@pytest.mark.parametrize("value", VALID, ids=lambda value: type(value).__name__)
def test_value_that_can_be_sent_is_the_same_object(value: Any) -> None:
    assert encodable(value) is value


def test_only_what_cannot_be_sent_is_replaced() -> None:
    given = {"text": f"a{HALF}", HALF: [float("-inf"), "b"], "pair": f"{HALF}\ude00"}
    assert encodable(given) == {"text": "a\ufffd", "\ufffd": [None, "b"], "pair": "\N{GRINNING FACE}"}
    assert given["text"] == f"a{HALF}"


def test_keys_that_differ_in_what_is_replaced_stay_apart() -> None:
    assert encodable({HALF: 1, "\ude00": 2}) == {"\ufffd": 1, "\ufffd\ufffd": 2}


# -- the stores of the app layer -----------------------------------------------------------------------


class OddStore:
    """A store whose rows all have a lone surrogate."""

    limit = 5

    async def get(self, run_id: str) -> dict[str, Any]:
        return {"run_id": run_id, "error": HALF}

    async def list_all(self) -> list[dict[str, Any]]:
        return [{"error": HALF}, {"error": None}]

    async def thread(self) -> ThreadMeta:
        now = datetime.now(UTC)
        return ThreadMeta(
            thread_id="t",
            assistant_id=None,
            user_id="u",
            display_name=HALF,
            status="idle",
            metadata={HALF: HALF},
            created_time=now,
            updated_time=now,
        )

    async def follow(self) -> Any:
        yield {"content": HALF}


async def test_store_of_the_app_layer_returns_rows_that_can_be_sent() -> None:
    store = EncodableStore.of(OddStore())
    assert await store.get("r") == {"run_id": "r", "error": "\ufffd"}
    assert await store.list_all() == [{"error": "\ufffd"}, {"error": None}]
    assert [item async for item in store.follow()] == [{"content": "\ufffd"}]
    thread = await store.thread()
    assert (thread.display_name, thread.metadata, thread.status) == ("\ufffd", {"\ufffd": "\ufffd"}, "idle")
    assert store.limit == 5


async def test_app_layers_run_events_can_be_sent_and_followed() -> None:
    async with create_storage({"backend": "memory"}) as storage:
        state = await app_state(storage, checkpointer=SimpleNamespace())
        assert isinstance(state["run_event_store"], Following)  # for hosts that check it
        events = cast("Any", state["run_event_store"])
        event: Any = {
            "thread_id": "t",
            "run_id": "r",
            "event_type": "e",
            "category": "message",
            "content": HALF,
        }
        token = bind_actor_context(ActorContext(user_id="alice"))
        try:
            await events.put_batch([event])
            assert [row["content"] for row in await events.list_messages("t")] == ["\ufffd"]
            following = events.follow("t")
            assert (await anext(following))["content"] == "\ufffd"
            await following.aclose()
        finally:
            reset_actor_context(token)


# -- requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        rb'{"a": "\ud83d\ude00"}',
        rb'{"a": "\\ud83d"}',
        '{"a": "\N{GRINNING FACE}"}'.encode(),
        b'{"a": "NaN"}',
        b'{"a": ' + b"9" * 4_300 + b"}",
        rb'{"a": "\ud83d',
        b"NaN and no JSON",
        b"",
        b"[" * 100_000 + rb'"\ud83d"',
    ],
    ids=lambda body: body[:20],
)
def test_valid_body_and_one_that_is_not_json_are_passed_on_unchanged(body: bytes) -> None:
    assert encodable_body(body) is body


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (rb'{"a": "x\ud83d"}', {"a": "x\ufffd"}),
        (rb'{"\uDE00": "\ude00\ud83d"}', {"\ufffd": "\ufffd\ufffd"}),
        (b'{"a": "\xed\xa0\xbd"}', {"a": "\ufffd"}),
        (b'{"a": [NaN, -Infinity, 1e999, 1.5]}', {"a": [None, None, None, 1.5]}),
        ('{"a": "\\ud83d"}'.encode("utf-16"), {"a": "\ufffd"}),
        (
            rb'{"a": "\ud83d", "n": 123456789012345678901234567890}',
            {"a": "\ufffd", "n": 123456789012345678901234567890},
        ),
    ],
)
def test_what_cannot_be_encoded_is_replaced_in_a_body(body: bytes, value: Any) -> None:
    assert json.loads(encodable_body(body)) == value


@pytest.mark.parametrize(
    ("content_type", "is_read"),
    [
        (b"application/json", True),
        (b"application/vnd.api+json; charset=utf-8", True),
        (None, True),
        (b"multipart/form-data; boundary=x", False),
    ],
)
async def test_only_json_bodies_are_read(content_type: bytes | None, is_read: bool) -> None:
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.extend([await receive(), await receive()])

    parts = iter(
        [
            {"type": "http.request", "body": rb'"\ud8', "more_body": True},
            {"type": "http.request", "body": b'3d"', "more_body": False},
            {"type": "http.disconnect"},
        ]
    )

    async def receive() -> Any:
        return next(parts)

    headers = [] if content_type is None else [(b"Content-Type", content_type)]
    await EncodableRequests(app)({"type": "http", "headers": headers}, receive, None)
    if is_read:
        complete = {"type": "http.request", "body": rb'"\ufffd"', "more_body": False}
        assert received == [complete, {"type": "http.disconnect"}]
    else:
        assert [message["body"] for message in received] == [rb'"\ud8', b'3d"']
