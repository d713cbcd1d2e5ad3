"""Reads a recorded DeerFlow thread from a JSON file: its turns, the model calls in them, and their tokens.

The file is a thread's state (`values.messages`, `values.title`, `metadata`, `next`, `tasks`). No model and no
storage is called: tokens are counted from the texts, by these rules:

- A token is 4 bytes of UTF-8, rounded up for each message. A message's text is its content's text blocks and
  the arguments of its tool calls as compact JSON.
- An ai message that names its model is one model call. Its input is every earlier message of the thread; its
  output is its own text and its reasoning, which is not sent again later. Where the recording has the
  provider's own counts (`usage_metadata`), those are used.
- A tool call named `task` that has an answer is one model call of a subagent: input is the arguments, output
  the answer, and the model is the one that made the tool call. An ai message whose `name` begins with
  `subagent` or `middleware` counts as theirs.
- The title is one model call of the middleware in the thread's first turn: input is that turn's question and
  last answer, output the title.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

from ..contract.arguments import MAX_IDENTIFIER_BYTES
from ..contract.errors import ArgumentValueError
from ..contract.rows import Caller

SAMPLES: Final = Path(__file__).parent / "samples"
SAMPLE: Final = SAMPLES / "weather.json"
"""The recorded thread that the demo replays by default."""

HOW_TOKENS_ARE_COUNTED = (
    "A token is 4 bytes of UTF-8 text, rounded up for each message. A model call reads every earlier message "
    "of its thread and writes its own text, tool arguments and reasoning; a task call counts as its "
    "subagent's, the title as the middleware's."
)

Json: TypeAlias = Mapping[str, Any]
Outcome: TypeAlias = Literal["success", "error", "interrupted"]

_BYTES_PER_TOKEN = 4
_MAX_TOKENS = 2**40  # of one model call; a larger count in a recording is not a provider's
_SUBAGENT_TOOL = "task"
_CALLERS_BY_NAME: Mapping[str, Caller] = {"subagent": "subagent", "middleware": "middleware"}


class RecordingError(ArgumentValueError):
    """The file is not a recorded thread; the text names the file and what is wrong."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """The tokens of one model call, and its caller."""

    caller: Caller
    model_name: str | None
    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What a host stores at once: messages in their order, and the model calls that produced them."""

    messages: tuple[Json, ...] = ()
    calls: tuple[ModelCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """A human message and everything up to the next one: one run of the replay."""

    number: int
    question: str
    steps: tuple[Step, ...]
    message_count: int
    answer: str | None
    outcome: Outcome
    error: str | None = None

    @property
    def calls(self) -> tuple[ModelCall, ...]:
        return tuple(call for step in self.steps for call in step.calls)


@dataclass(frozen=True, slots=True)
class RecordedThread:
    """A thread as it was recorded, divided into turns."""

    thread_id: str
    title: str | None
    model_name: str | None
    assistant_id: str | None
    recorded_at: str | None
    source: str
    turns: tuple[Turn, ...]

    def copy_for(self, user: str) -> RecordedThread:
        """The same thread with another id, derived from the user: equal users get equal ids."""
        return replace(self, thread_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.thread_id}/{user}")))


# -- reading a recording ---------------------------------------------------------------------------


def load_thread(path: Path) -> RecordedThread:
    """Read the thread recorded in a JSON file. Raises `RecordingError` if the file has none."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)  # NaN is not JSON
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise RecordingError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} cannot be parsed as JSON: {type(error).__name__}") from error
    try:
        return parse_thread(recorded, source=path.name, name=str(path))
    except RecursionError:
        raise RecordingError(f"{path} is nested too deeply") from None


def parse_thread(recorded: object, *, source: str, name: str | None = None) -> RecordedThread:
    """Read a thread's state. Error texts contain `name`, or `source` if no name is given."""
    state = as_mapping(recorded)
    values, metadata = as_mapping(state.get("values")), as_mapping(state.get("metadata"))
    try:
        messages = _messages(values.get("messages"))
    except RecordingError as error:
        raise RecordingError(f"{name or source} is not a recorded thread: {error}") from None
    title = _text_or_none(values.get("title"))
    model = valid_name(metadata.get("model_name"))
    recorded_id = metadata.get("thread_id") or as_mapping(state.get("checkpoint")).get("thread_id")
    return RecordedThread(
        thread_id=valid_name(recorded_id) or _encodable(Path(source).stem),
        title=title,
        model_name=model,
        assistant_id=valid_name(metadata.get("assistant_id")),
        recorded_at=_text_or_none(state.get("created_at")),
        source=source,
        turns=_with_title(_with_last_outcome(tuple(_turns(messages, model)), state), title, model),
    )


def as_mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, Mapping) else {}


def as_list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def valid_name(value: object) -> str | None:
    """The value if it is text that every store accepts as an identifier, else None."""
    text = _text_or_none(value)
    fits = text is not None and text == _encodable(text) and len(text.encode()) <= MAX_IDENTIFIER_BYTES
    return text if fits else None


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _messages(value: object) -> list[Json]:
    messages = as_list(value)
    for position, message in enumerate(messages):
        if not isinstance(as_mapping(message).get("type"), str):
            raise RecordingError(f"values.messages[{position}] is not a message with a type")
    if not any(map(_opens_turn, messages)):
        raise RecordingError("values.messages has no human message")
    return messages


def is_hidden(message: Json) -> bool:
    return bool(as_mapping(message.get("additional_kwargs")).get("hide_from_ui"))


def _opens_turn(message: Json) -> bool:
    return message["type"] == "human" and not is_hidden(message)


def _turns(messages: Sequence[Json], default_model: str | None) -> Iterator[Turn]:
    starts = [position for position, message in enumerate(messages) if _opens_turn(message)]
    before = messages[: starts[0]]
    earlier_tokens = sum(map(_message_tokens, before))
    opening = (Step(tuple(before)),) if before else ()
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(messages)], strict=True), 1):
        own = messages[start:end]
        yield _turn(number, own, (*opening, *_steps(own, earlier_tokens, default_model)))
        earlier_tokens += sum(map(_message_tokens, own))
        opening = ()


def _turn(number: int, messages: Sequence[Json], steps: tuple[Step, ...]) -> Turn:
    answers = [text for message in messages if message["type"] == "ai" and (text := text_of(message).strip())]
    finished = bool(answers) and messages[-1]["type"] == "ai" and not messages[-1].get("tool_calls")
    return Turn(
        number=number,
        question=text_of(messages[0]),
        steps=steps,
        message_count=len(messages),
        answer=answers[-1] if answers else None,
        outcome="success" if finished else "interrupted",
    )


def _steps(messages: Sequence[Json], earlier_tokens: int, default_model: str | None) -> Iterator[Step]:
    """A turn's messages, divided before each ai message."""
    open_tasks: _OpenTasks = {}
    ai_positions = (i for i, message in enumerate(messages) if i and message["type"] == "ai")
    starts = [0, *ai_positions]
    for start, end in zip(starts, [*starts[1:], len(messages)], strict=True):
        own = tuple(messages[start:end])
        yield Step(own, tuple(_calls(own, open_tasks, earlier_tokens, default_model)))
        earlier_tokens += sum(map(_message_tokens, own))


def _with_last_outcome(turns: tuple[Turn, ...], state: Json) -> tuple[Turn, ...]:
    """Correct the last turn: a graph with steps left was stopped, or failed if one of its tasks did."""
    errors = [error for task in as_list(state.get("tasks")) if (error := as_mapping(task).get("error"))]
    if errors:
        return (*turns[:-1], replace(turns[-1], outcome="error", error=str(errors[0])))
    if state.get("next"):
        return (*turns[:-1], replace(turns[-1], outcome="interrupted"))
    return turns


def _with_title(turns: tuple[Turn, ...], title: str | None, model: str | None) -> tuple[Turn, ...]:
    if title is None:
        return turns
    first = turns[0]
    input_tokens = tokens_of(first.question) + tokens_of(first.answer or "")
    model_name = first.calls[0].model_name if first.calls else model
    call = ModelCall("middleware", model_name, input_tokens, tokens_of(title))
    return (replace(first, steps=(*first.steps, Step(calls=(call,)))), *turns[1:])


# -- counting tokens -------------------------------------------------------------------------------


def tokens_of(text: str) -> int:
    """The number of tokens of a text, by the rule above."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def text_of(message: Json) -> str:
    """A message's text: its content, or the text blocks of its content."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    blocks = as_list(content)
    texts = [block if isinstance(block, str) else as_mapping(block).get("text") for block in blocks]
    return "".join(text for text in texts if isinstance(text, str))


def _tool_calls(message: Json) -> Iterator[tuple[Json, str]]:
    """Each tool call and its arguments as text."""
    for call in map(as_mapping, as_list(message.get("tool_calls"))):
        yield call, json.dumps(call.get("args"), ensure_ascii=False, separators=(",", ":"))


def _sent_text(message: Json) -> str:
    return text_of(message) + "".join(arguments for _, arguments in _tool_calls(message))


def _message_tokens(message: Json) -> int:
    return tokens_of(_sent_text(message))


_OpenTasks: TypeAlias = dict[str, tuple[str | None, str]]
"""Task calls without an answer yet: tool call id -> the calling model and the arguments."""


def _calls(
    messages: Sequence[Json], open_tasks: _OpenTasks, earlier_tokens: int, default_model: str | None
) -> Iterator[ModelCall]:
    for message in messages:
        call = _model_call(message, earlier_tokens, default_model)
        if call is not None:
            yield call
            for tool_call, arguments in _tool_calls(message):
                if tool_call.get("name") == _SUBAGENT_TOOL:
                    open_tasks[str(tool_call.get("id"))] = (call.model_name, arguments)
        elif message["type"] == "tool" and (task := open_tasks.pop(str(message.get("tool_call_id")), None)):
            model, arguments = task
            yield ModelCall("subagent", model, tokens_of(arguments), _message_tokens(message))
        earlier_tokens += _message_tokens(message)


def _model_call(message: Json, earlier_tokens: int, default_model: str | None) -> ModelCall | None:
    """The model call that produced an ai message; None if no model did."""
    usage = as_mapping(message.get("usage_metadata"))
    model = model_name_of(message)
    if message["type"] != "ai" or not (model or usage):
        return None
    reasoning = _text_or_none(as_mapping(message.get("additional_kwargs")).get("reasoning_content")) or ""
    return ModelCall(
        caller_of(message),
        model or default_model,
        _reported_or_counted(usage.get("input_tokens"), earlier_tokens),
        _reported_or_counted(usage.get("output_tokens"), tokens_of(_sent_text(message) + reasoning)),
    )


def model_name_of(message: Json) -> str | None:
    return valid_name(as_mapping(message.get("response_metadata")).get("model_name"))


def caller_of(message: Json) -> Caller:
    name, _, _ = str(message.get("name") or "").partition(":")
    return _CALLERS_BY_NAME.get(name, "lead_agent")


def _reported_or_counted(reported: object, counted: int) -> int:
    return reported if type(reported) is int and 0 <= reported <= _MAX_TOKENS else counted
