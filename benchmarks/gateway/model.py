"""The model of the measured agents: it streams `echo: ` and the newest message at once, in one piece."""

# pyright: reportUntypedBaseClass=false, reportUnknownVariableType=false, reportMissingImports=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

USAGE: Any = {"input_tokens": 700, "output_tokens": 300, "total_tokens": 1_000}


class EchoChatModel(BaseChatModel):
    """Waits for no provider, so that a turn takes as long as the gateway and its storage take."""

    model: str = ""

    @property
    def _llm_type(self) -> str:
        return "echo"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _fields(self, messages: Any) -> dict[str, Any]:
        texts = [str(message.content) for message in messages if isinstance(message, HumanMessage)]
        return {
            "content": f"echo: {texts[-1] if texts else ''}",
            "usage_metadata": USAGE,
            "response_metadata": {"model_name": self.model},
        }

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(**self._fields(messages)))])

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        message = AIMessageChunk(**self._fields(messages), chunk_position="last")
        chunk = ChatGenerationChunk(message=message)
        if run_manager is not None:
            await run_manager.on_llm_new_token(str(message.content), chunk=chunk)
        yield chunk
