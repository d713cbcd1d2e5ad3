"""Replays recorded DeerFlow threads as runs: each turn of a human becomes one run, now, with its own id.

Reads what a thread's state says (`values.messages`, `values.title`, `metadata`, `next`, `tasks`) and drives
the observer and the stores of any `Storage` as a host would. Knows no terminal and no database, and calls no
model: the figures are counted from the texts. What is counted:

- A token is 4 bytes of UTF-8, rounded up for each message. A message's text is its content's text blocks and
  the arguments of its tool calls as compact JSON.
- An ai message that names its model is one model call. Its input is every earlier message of the thread; its
  output is its own text and its reasoning, which is not sent again later. Where the recording has the
  provider's own figures (`usage_metadata`), those are taken.
- A tool call named `task` that got an answer is one model call of a subagent: the arguments in, the answer
  out, by the model that asked. An ai message whose `name` begins with `subagent` or `middleware` is theirs.
- The title is one model call of the middleware in the thread's first turn: that turn's question and last
  answer in, the title out.

What becomes a run event: every message, one event of its turn's run with the message itself as content, in
the order of the recording. A turn's question comes first, with what stands around it; then come, with each
model call, the ai message and the answers of its tools. Messages before the first question are events of the
first run. The type is `human_message`, `ai_message`, `tool_result`, or `..._message` for any other kind. The
category is `message` for what users scroll through: what a human said, an ai message with text or tool calls,
a tool's answer. It is `trace` for all else, and for what the recording hides from the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from ..contract.actor import AUTO, ActorContext, UserId, bind_actor_context, reset_actor_context
from ..contract.arguments import MAX_IDENTIFIER_BYTES
from ..contract.errors import InvalidPayloadError, PayloadTooLargeError
from ..contract.observer import LifecycleEvent, LifecycleEventType
from ..contract.protocols import Storage
from ..contract.rows import MESSAGE, Caller, RunCompletionFields, RunEventFields
from ..mongodb.drivers.base import end_if_cancelled

HOW_TOKENS_COUNT = (
    "A token is 4 bytes of UTF-8 text, rounded up for each message. A model call reads every earlier message "
    "of its thread and writes its own text, tool arguments and reasoning; a task call counts as its "
    "subagent's, the title as the middleware's."
)
HOW_USERS_VOTE = (
    "A thread's owner votes +1 on a run that finished and -1 on any other; the next user votes +1 on even "
    "turns and -1 on odd ones. On the first turn the owner first votes the other way and changes the vote."
)
HOW_EVENTS_ARE_KEPT = (
    "Each recorded message is one event of its run: of category message if its user scrolls through it, of "
    "category trace if not."
)

logger = logging.getLogger(__name__)

Outcome: TypeAlias = Literal["success", "error", "interrupted"]

_BYTES_PER_TOKEN = 4
_MAX_TOKENS = 2**40  # of one call; more is no figure of a provider
_SUBAGENT_TOOL = "task"
_CALLERS_BY_NAME: Mapping[str, Caller] = {"subagent": "subagent", "middleware": "middleware"}
_THREAD_STATUSES: Mapping[Outcome, str] = {"success": "idle", "error": "error", "interrupted": "interrupted"}
_EVENT_TYPES: Mapping[str, str] = {"tool": "tool_result"}
_OTHER_EVENT_TYPE = "other_message"
TRACE = "trace"
"""The category of the run events that users do not scroll through."""
_LAST_WORDS_S = 2.0
"""How long a replay that is stopped may take to write that its run is over."""


class RecordingError(ValueError):
    """A file is no recorded thread; the text names it and says what is wrong."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """What one call of a model spent, and who made it."""

    caller: Caller
    model_name: str | None
    input_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


_Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """What a host writes down at once: messages in their order, and the model calls that they took."""

    messages: tuple[_Json, ...] = ()
    calls: tuple[ModelCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """What one human message set off: the run to be replayed."""

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
    thread_id: str
    title: str | None
    model_name: str | None
    assistant_id: str | None
    recorded_at: str | None
    source: str
    turns: tuple[Turn, ...]

    def copy_for(self, user: str) -> RecordedThread:
        """The same thread under an id of its own, the same one for the same user every time."""
        return replace(self, thread_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.thread_id}/{user}")))


# -- reading a recording ---------------------------------------------------------------------------


def load_thread(path: Path) -> RecordedThread:
    """The thread recorded in a JSON file; `RecordingError` where there is none."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"), parse_constant=str)  # NaN is no JSON
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise RecordingError(f"{path} is not JSON: line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{path} is not JSON that can be read: {type(error).__name__}") from error
    try:
        return parse_thread(recorded, source=path.name, name=str(path))
    except RecursionError:
        raise RecordingError(f"{path} is nested too deep") from None


def parse_thread(recorded: object, *, source: str, name: str | None = None) -> RecordedThread:
    """A thread's state as a `RecordedThread`; `name` is how errors call it, where `source` is not enough."""
    state = _mapping(recorded)
    values, metadata = _mapping(state.get("values")), _mapping(state.get("metadata"))
    try:
        messages = _messages(values.get("messages"))
    except RecordingError as error:
        raise RecordingError(f"{name or source} is not a recorded thread: {error}") from None
    title = _text_or_none(values.get("title"))
    model = _name_or_none(metadata.get("model_name"))
    recorded_id = metadata.get("thread_id") or _mapping(state.get("checkpoint")).get("thread_id")
    return RecordedThread(
        thread_id=_name_or_none(recorded_id) or _storable(Path(source).stem),
        title=title,
        model_name=model,
        assistant_id=_name_or_none(metadata.get("assistant_id")),
        recorded_at=_text_or_none(state.get("created_at")),
        source=source,
        turns=_with_title(_with_last_outcome(tuple(_turns(messages, model)), state), title, model),
    )


def _mapping(value: object) -> _Json:
    return cast("_Json", value) if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _name_or_none(value: object) -> str | None:
    """Text that every store takes as an identifier."""
    text = _text_or_none(value)
    fits = text is not None and text == _storable(text) and len(text.encode()) <= MAX_IDENTIFIER_BYTES
    return text if fits else None


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _messages(value: object) -> list[_Json]:
    messages = _list(value)
    for position, message in enumerate(messages):
        if not isinstance(_mapping(message).get("type"), str):
            raise RecordingError(f"values.messages[{position}] is no message with a type")
    if not any(map(_opens_turn, messages)):
        raise RecordingError("values.messages has no human message")
    return messages


def _is_hidden(message: _Json) -> bool:
    return bool(_mapping(message.get("additional_kwargs")).get("hide_from_ui"))


def _opens_turn(message: _Json) -> bool:
    return message["type"] == "human" and not _is_hidden(message)


def _turns(messages: Sequence[_Json], default_model: str | None) -> Iterator[Turn]:
    starts = [position for position, message in enumerate(messages) if _opens_turn(message)]
    before = messages[: starts[0]]
    earlier_tokens = sum(map(_message_tokens, before))
    opening = (Step(tuple(before)),) if before else ()
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(messages)], strict=True), 1):
        said = messages[start:end]
        yield _turn(number, said, (*opening, *_steps(said, earlier_tokens, default_model)))
        earlier_tokens += sum(map(_message_tokens, said))
        opening = ()


def _turn(number: int, said: Sequence[_Json], steps: tuple[Step, ...]) -> Turn:
    answers = [text for message in said if message["type"] == "ai" and (text := text_of(message).strip())]
    finished = bool(answers) and said[-1]["type"] == "ai" and not said[-1].get("tool_calls")
    return Turn(
        number=number,
        question=text_of(said[0]),
        steps=steps,
        message_count=len(said),
        answer=answers[-1] if answers else None,
        outcome="success" if finished else "interrupted",
    )


def _steps(said: Sequence[_Json], earlier_tokens: int, default_model: str | None) -> Iterator[Step]:
    """A turn's messages, parted before each ai message."""
    asked: _Asked = {}
    starts = [0, *(position for position, message in enumerate(said) if position and message["type"] == "ai")]
    for start, end in zip(starts, [*starts[1:], len(said)], strict=True):
        messages = tuple(said[start:end])
        yield Step(messages, tuple(_calls(messages, asked, earlier_tokens, default_model)))
        earlier_tokens += sum(map(_message_tokens, messages))


def _with_last_outcome(turns: tuple[Turn, ...], state: _Json) -> tuple[Turn, ...]:
    """A graph that has steps left was stopped in its last turn, by an error if one of its tasks has one."""
    errors = [error for task in _list(state.get("tasks")) if (error := _mapping(task).get("error"))]
    if errors:
        return (*turns[:-1], replace(turns[-1], outcome="error", error=str(errors[0])))
    if state.get("next"):
        return (*turns[:-1], replace(turns[-1], outcome="interrupted"))
    return turns


def _with_title(turns: tuple[Turn, ...], title: str | None, model: str | None) -> tuple[Turn, ...]:
    if title is None:
        return turns
    first = turns[0]
    read = tokens_of(first.question) + tokens_of(first.answer or "")
    used = first.calls[0].model_name if first.calls else model
    call = ModelCall("middleware", used, read, tokens_of(title))
    return (replace(first, steps=(*first.steps, Step(calls=(call,)))), *turns[1:])


# -- counting --------------------------------------------------------------------------------------


def tokens_of(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN)


def text_of(message: _Json) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    blocks = [block if isinstance(block, str) else _mapping(block).get("text") for block in _list(content)]
    return "".join(block for block in blocks if isinstance(block, str))


def _tool_calls(message: _Json) -> Iterator[tuple[_Json, str]]:
    """Each tool call and its arguments as text."""
    for call in map(_mapping, _list(message.get("tool_calls"))):
        yield call, json.dumps(call.get("args"), ensure_ascii=False, separators=(",", ":"))


def _sent_text(message: _Json) -> str:
    return text_of(message) + "".join(arguments for _, arguments in _tool_calls(message))


def _message_tokens(message: _Json) -> int:
    return tokens_of(_sent_text(message))


_Asked: TypeAlias = dict[str, tuple[str | None, str]]
"""Subagents that have not answered yet: by the tool call's id, the asking model and the arguments."""


def _calls(
    messages: Sequence[_Json], asked: _Asked, earlier_tokens: int, default_model: str | None
) -> Iterator[ModelCall]:
    for message in messages:
        call = _model_call(message, earlier_tokens, default_model)
        if call is not None:
            yield call
            for tool_call, arguments in _tool_calls(message):
                if tool_call.get("name") == _SUBAGENT_TOOL:
                    asked[str(tool_call.get("id"))] = (call.model_name, arguments)
        elif message["type"] == "tool" and (question := asked.pop(str(message.get("tool_call_id")), None)):
            model, arguments = question
            yield ModelCall("subagent", model, tokens_of(arguments), _message_tokens(message))
        earlier_tokens += _message_tokens(message)


def _model_call(message: _Json, earlier_tokens: int, default_model: str | None) -> ModelCall | None:
    """The call that an ai message came from; None for one that no model wrote."""
    usage = _mapping(message.get("usage_metadata"))
    model = _model_named_by(message)
    if message["type"] != "ai" or not (model or usage):
        return None
    reasoning = _text_or_none(_mapping(message.get("additional_kwargs")).get("reasoning_content")) or ""
    return ModelCall(
        _caller_of(message),
        model or default_model,
        _figure(usage.get("input_tokens"), earlier_tokens),
        _figure(usage.get("output_tokens"), tokens_of(_sent_text(message) + reasoning)),
    )


def _model_named_by(message: _Json) -> str | None:
    return _name_or_none(_mapping(message.get("response_metadata")).get("model_name"))


def _caller_of(message: _Json) -> Caller:
    name, _, _ = str(message.get("name") or "").partition(":")
    return _CALLERS_BY_NAME.get(name, "lead_agent")


def _figure(given: object, counted: int) -> int:
    return given if type(given) is int and 0 <= given <= _MAX_TOKENS else counted


# -- messages as run events ------------------------------------------------------------------------


def _event_type_of(message: _Json) -> str:
    kind = message["type"]
    told = _EVENT_TYPES.get(kind) or (kind and _name_or_none(f"{kind}_message"))
    return told or _OTHER_EVENT_TYPE


def _category_of(message: _Json) -> str:
    """Whether a user scrolls through it."""
    kind = message["type"]
    seen = kind in ("human", "tool") or (
        kind == "ai" and bool(text_of(message).strip() or _list(message.get("tool_calls")))
    )
    return MESSAGE if seen and not _is_hidden(message) else TRACE


def _event_metadata(message: _Json, turn: Turn) -> dict[str, Any]:
    metadata: dict[str, Any] = {"turn": turn.number}
    if message["type"] == "ai":
        metadata["caller"] = _caller_of(message)
        if (model := _model_named_by(message)) is not None:
            metadata["model_name"] = model
    return metadata


# -- replaying -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayedThread:
    """What a replay made; `owner` is who the thread belongs to, which may not be `asked_for`.

    `event_count` is the number of run events that were stored.
    """

    thread_id: str
    asked_for: str
    owner: str | None
    run_ids: tuple[str, ...]
    event_count: int


def _nothing() -> None:
    """The default of `on_step`."""


@dataclass(frozen=True, slots=True)
class Replayer:
    """Replays threads, all at once, as what `users` did: thread by thread in turn.

    A thread that belongs to somebody already stays theirs, and its runs are theirs. `on_step` is called
    after each run.
    """

    storage: Storage
    users: Sequence[str]
    on_step: Callable[[], None] = field(default=_nothing)

    async def replay(self, threads: Sequence[RecordedThread]) -> list[ReplayedThread]:
        """Raises what the storage raises first; the other threads' replays then end with their turn."""
        failures: list[Exception] = []

        async def replayed(thread: RecordedThread, position: int) -> ReplayedThread | None:
            try:
                return await self._thread(thread, self.users[position % len(self.users)], failures)
            except Exception as error:  # noqa: BLE001 - kept from the group, which would cancel the others
                failures.append(error)
                return None

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(replayed(thread, i)) for i, thread in enumerate(threads)]
        if failures:
            raise failures[0]
        return [thread for task in tasks if (thread := task.result()) is not None]

    async def _thread(
        self, thread: RecordedThread, user: str, failures: Sequence[Exception]
    ) -> ReplayedThread:
        owner = await self._owner_of(thread, user)
        run_ids: list[str] = []
        event_count = 0
        actor = user if owner is None else owner
        with _acting_for(actor):
            for turn in thread.turns:
                if failures:
                    break
                end_if_cancelled()
                previous = run_ids[-1] if run_ids else None
                run = await self._turn(thread, turn, owner, previous)
                run_ids.append(run.run_id)
                event_count += run.event_count
                await self._vote(thread, turn, run.run_id, actor)
                self.on_step()
        return ReplayedThread(thread.thread_id, user, owner, tuple(run_ids), event_count)

    async def _owner_of(self, thread: RecordedThread, user: str) -> str | None:
        threads = self.storage.threads
        try:
            with _acting_for(user):
                metadata = {"source_file": thread.source, "recorded_at": thread.recorded_at}
                await threads.ensure_thread(
                    thread_id=thread.thread_id, assistant_id=thread.assistant_id, metadata=metadata
                )
        except PermissionError:
            found = await threads.get_thread_meta(thread.thread_id)
            if found is None:
                raise
            return found.user_id
        return user

    async def _turn(
        self, thread: RecordedThread, turn: Turn, owner: str | None, previous: str | None
    ) -> _ReplayedRun:
        user_id: UserId = None if owner is None else AUTO
        run = _ReplayedRun(self.storage, thread, turn)
        try:
            await run.create(user_id, follow_up_to_run_id=previous)
            await run.happen()
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.stop(), _LAST_WORDS_S)
            raise
        return run

    async def _vote(self, thread: RecordedThread, turn: Turn, run_id: str, owner: str) -> None:
        rating = 1 if turn.outcome == "success" else -1
        ratings = [-rating, rating] if turn.number == 1 else [rating]
        votes = [(owner, value) for value in ratings]
        neighbour = self._user_after(owner)
        if neighbour != owner:
            votes.append((neighbour, 1 if turn.number % 2 == 0 else -1))
        for user, value in votes:
            await self.storage.feedback.upsert(
                run_id=run_id, thread_id=thread.thread_id, rating=value, user_id=user
            )

    def _user_after(self, user: str) -> str:
        position = self.users.index(user) if user in self.users else -1
        return self.users[(position + 1) % len(self.users)]


class _ReplayedRun:
    """One run while it is replayed: the events and figures that a host would write."""

    def __init__(self, storage: Storage, thread: RecordedThread, turn: Turn) -> None:
        self.run_id = str(uuid.uuid4())
        self.event_count = 0
        self._storage = storage
        self._observer = storage.observer()
        self._thread = thread
        self._turn = turn

    async def create(self, user_id: UserId, *, follow_up_to_run_id: str | None) -> None:
        thread, turn = self._thread, self._turn
        await self._storage.runs.create(
            self.run_id,
            thread.thread_id,
            user_id=user_id,
            assistant_id=thread.assistant_id,
            follow_up_to_run_id=follow_up_to_run_id,
            metadata={"turn": turn.number, "source_file": thread.source},
            kwargs={"input": {"messages": [{"type": "human", "content": turn.question}]}},
            model_name=turn.calls[0].model_name if turn.calls else thread.model_name,
        )

    async def happen(self) -> None:
        await self._tell(LifecycleEventType.RUN_STARTED)
        await self._tell(LifecycleEventType.THREAD_STATUS_UPDATED, status="running")
        for step in self._turn.steps:
            for call in step.calls:
                end_if_cancelled()
                await self._storage.runs.record_token_usage(
                    self.run_id,
                    caller=call.caller,
                    model_name=call.model_name,
                    input_tokens=call.input_tokens,
                    output_tokens=call.output_tokens,
                )
            end_if_cancelled()
            await self._keep([self._event(message) for message in step.messages])
        await self._end()
        await self._tell(
            LifecycleEventType.THREAD_STATUS_UPDATED, status=_THREAD_STATUSES[self._turn.outcome]
        )

    async def stop(self) -> None:
        """The replay itself is being stopped: nobody goes on with this run."""
        await self._tell(LifecycleEventType.RUN_CANCELLED)
        await self._tell(LifecycleEventType.THREAD_STATUS_UPDATED, status="interrupted")

    def _event(self, message: _Json) -> RunEventFields:
        return {
            "thread_id": self._thread.thread_id,
            "run_id": self.run_id,
            "event_type": _event_type_of(message),
            "category": _category_of(message),
            "content": message,
            "metadata": _event_metadata(message, self._turn),
        }

    async def _keep(self, events: Sequence[RunEventFields]) -> None:
        """Store the events; what cannot be stored is logged, as the observer does, and the run goes on."""
        try:
            self.event_count += len(await self._storage.run_events.put_batch(events))
        except (InvalidPayloadError, PayloadTooLargeError) as error:
            if len(events) > 1:  # a batch that holds such an event is refused as a whole
                for event in events:
                    await self._keep([event])
            else:
                logger.error("an event of run %s could not be stored: %s", self.run_id, error)
        except Exception:
            logger.exception("%d events of run %s could not be stored", len(events), self.run_id)

    async def _end(self) -> None:
        turn, title = self._turn, self._thread.title if self._turn.number == 1 else None
        completion = completion_of(turn)
        if turn.outcome == "success":
            payload = {} if title is None else {"title": title}
            await self._tell(LifecycleEventType.RUN_COMPLETED, completion_data=completion, **payload)
            return
        if turn.outcome == "error":
            await self._tell(LifecycleEventType.RUN_FAILED, completion_data=completion, error=turn.error)
        else:
            await self._tell(LifecycleEventType.RUN_CANCELLED, completion_data=completion)
        if title is not None:
            await self._storage.threads.sync_thread_title(thread_id=self._thread.thread_id, title=title)

    async def _tell(self, event_type: LifecycleEventType, **payload: object) -> None:
        await self._observer.on_event(
            LifecycleEvent(
                event_type=event_type,
                run_id=self.run_id,
                thread_id=self._thread.thread_id,
                payload=payload,
            )
        )


def completion_of(turn: Turn) -> RunCompletionFields:
    """The figures that a host hands over at a run's end: the same calls, summed."""
    by_caller = {
        caller: sum(call.total_tokens for call in turn.calls if call.caller == caller)
        for caller in ("lead_agent", "subagent", "middleware")
    }
    return {
        "total_input_tokens": sum(call.input_tokens for call in turn.calls),
        "total_output_tokens": sum(call.output_tokens for call in turn.calls),
        "total_tokens": sum(call.total_tokens for call in turn.calls),
        "llm_call_count": len(turn.calls),
        "lead_agent_tokens": by_caller["lead_agent"],
        "subagent_tokens": by_caller["subagent"],
        "middleware_tokens": by_caller["middleware"],
        "message_count": turn.message_count,
        "first_human_message": turn.question,
        "last_ai_message": turn.answer,
    }


@contextlib.contextmanager
def _acting_for(user: str) -> Generator[None]:
    token = bind_actor_context(ActorContext(user_id=user))
    try:
        yield
    finally:
        reset_actor_context(token)
