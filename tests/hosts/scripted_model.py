"""The model of the agents under test: LangChain's fake chat model, controlled by the newest message.

A gateway names it in its configuration, `use: tests.hosts.scripted_model:ScriptedChatModel`. It answers
`echo: <text>`; a message `slowly 20: <text>` is answered in 20 pieces, one in 100 ms; `clarify: <text>` calls
DeerFlow's tool `ask_clarification`; `emoji:` is answered with one emoji in two halves, and a message of more
than `MAX_ECHO` characters with their number.
"""

# pyright: reportUntypedBaseClass=false, reportUnknownVariableType=false, reportMissingImports=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownParameterType=false

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field

PIECE_S = 0.1
MAX_ECHO = 10_000
USAGE: Any = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}

_MARKED = re.compile(r"--- BEGIN USER INPUT ---\n(.*)\n--- END USER INPUT ---", re.DOTALL)
"""How DeerFlow main marks what a user has written."""

_SLOWLY = re.compile(r"slowly (\d+): (.*)", re.DOTALL)


class ScriptedChatModel(GenericFakeChatModel):
    """Answers as the newest human message asks for; every call costs 7 + 3 tokens.

    Like a provider, it names itself in each response: by its configuration's `model`, not by its `name`.
    """

    messages: Iterator[Any] = Field(default_factory=lambda: iter(()))
    model: str = ""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        text, pieces = _script(_newest_human_text(messages))
        message = AIMessage(
            content="".join(pieces),
            usage_metadata=USAGE,
            tool_calls=_tool_calls(text),
            response_metadata={"model_name": self.model},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        text, pieces = _script(_newest_human_text(messages))
        for number, piece in enumerate(pieces, 1):
            if len(pieces) > 1:
                await asyncio.sleep(PIECE_S)
            message = AIMessageChunk(content=piece)
            if number == len(pieces):
                message = AIMessageChunk(
                    content=piece,
                    usage_metadata=USAGE,
                    tool_calls=_tool_calls(text),
                    response_metadata={"model_name": self.model},
                    chunk_position="last",
                )
            chunk = ChatGenerationChunk(message=message)
            if run_manager is not None:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


def _newest_human_text(messages: Any) -> str:
    texts = [str(message.content) for message in messages if isinstance(message, HumanMessage)]
    newest = texts[-1] if texts else ""
    marked = _MARKED.search(newest)
    return newest if marked is None else marked[1]


def _script(text: str) -> tuple[str, list[str]]:
    """The text, and the pieces of its answer."""
    if text == "emoji:":
        return text, ["\ud83d", "\ude00"]
    if len(text) > MAX_ECHO:
        return text, [f"received {len(text)} characters"]
    slowly = _SLOWLY.fullmatch(text)
    if slowly is None:
        return text, [f"echo: {text}"]
    return text, [f"echo: {slowly[2]}", *(f" {number}" for number in range(1, int(slowly[1])))]


def _tool_calls(text: str) -> list[Any]:
    if not text.startswith("clarify:"):
        return []
    arguments = {"question": text, "clarification_type": "missing_info"}
    return [{"name": "ask_clarification", "args": arguments, "id": "call-1", "type": "tool_call"}]
