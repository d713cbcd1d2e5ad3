"""Recordings for the tests, and the tokens of one counted without the code under test."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

from deerflow_mongo.demo.recording import SAMPLE, RecordedThread, parse_thread


def message(kind: str, text: str = "", **fields: Any) -> dict[str, Any]:
    return {"type": kind, "content": text, **fields}


def answer(text: str, model: str = "m-1", **fields: Any) -> dict[str, Any]:
    return message("ai", text, response_metadata={"model_name": model}, **fields)


def recording(*messages: dict[str, Any], **state: Any) -> RecordedThread:
    values = {"messages": list(messages), "title": state.pop("title", None)}
    return parse_thread({"values": values, **state}, source="thread.json")


def sample() -> dict[str, Any]:
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


@contextlib.contextmanager
def copied_sample(
    *, thread_id: str = "copy", title: str = "Copy", messages: list[dict[str, Any]] | None = None
) -> Generator[Path]:
    """The sample under another name, with more `messages` at its end."""
    state = sample()
    state["metadata"]["thread_id"] = thread_id
    state["values"]["title"] = title
    state["values"]["messages"] += messages or []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "copy.json"
        file.write_text(json.dumps(state))
        yield file


def counted_by_hand(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Tokens by caller and by model according to the documented rule, counted without the code under test."""
    state = json.loads(path.read_text(encoding="utf-8"))
    by_caller, by_model = Counter[str](), Counter[str]()
    sent: list[str] = []
    answers: list[str] = []
    tasks: dict[str, tuple[str, str]] = {}

    def size(text: str) -> int:
        return (len(text.encode()) + 3) // 4

    def count(caller: str, model: str, tokens: int) -> None:
        by_caller[caller] += tokens
        by_model[model] += tokens

    messages = state["values"]["messages"]
    second_turn = [x["type"] for x in messages].index("human", 1)
    for position, message in enumerate(messages):
        content = message["content"]
        text = content if isinstance(content, str) else content[0]["text"]
        arguments = [json.dumps(call["args"], ensure_ascii=False, separators=(",", ":"))
                     for call in message.get("tool_calls", [])]  # fmt: skip
        whole = text + "".join(arguments)
        if message["type"] == "ai":
            model = message["response_metadata"]["model_name"]
            reasoning = message["additional_kwargs"].get("reasoning_content", "")
            count("lead_agent", model, sum(map(size, sent)) + size(whole + reasoning))
            answers += [text] if text and position < second_turn else []
            tasks |= {call["id"]: (model, argument)
                      for call, argument in zip(message["tool_calls"], arguments, strict=True)
                      if call["name"] == "task"}  # fmt: skip
        elif message.get("tool_call_id") in tasks:
            model, argument = tasks[message["tool_call_id"]]
            count("subagent", model, size(argument) + size(text))
        sent.append(whole)
    title = size(sent[0]) + size(answers[-1]) + size(state["values"]["title"])
    count("middleware", messages[2]["response_metadata"]["model_name"], title)
    return by_caller, by_model
