"""Replays recorded threads as runs: each turn becomes one run, created now, with its own id.

Drives the observer and the stores of any `Storage` as a host would. Knows no terminal and no database; how a
recording is read and its tokens are counted is in `recording.py`. How messages become run events:

- Every message is one event of its turn's run, with the message itself as content, in the order of the
  recording. A turn's question comes first, with the messages around it; then, for each model call, the ai
  message and the answers of its tools. Messages before the first question are events of the first run.
- The type is `human_message`, `ai_message`, `tool_result`, or `..._message` for any other kind.
- The category is `message` for what users scroll through: a human message, an ai message with text or tool
  calls, a tool's answer. It is `trace` for all else, and for messages that the recording hides from the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..contract.actor import AUTO, ActorContext, UserId, bind_actor_context, reset_actor_context
from ..contract.errors import InvalidPayloadError, PayloadTooLargeError, ThreadAccessError
from ..contract.observer import LifecycleEvent, LifecycleEventType
from ..contract.protocols import Storage
from ..contract.rows import MESSAGE, RunCompletionFields, RunEventFields
from ..mongodb.drivers.collection import end_if_cancelled
from .recording import (
    Json,
    Outcome,
    RecordedThread,
    Turn,
    as_list,
    caller_of,
    is_hidden,
    model_name_of,
    text_of,
    valid_name,
)

HOW_USERS_VOTE = (
    "A thread's owner votes +1 on a run that finished and -1 on any other; the next user votes +1 on even "
    "turns and -1 on odd ones. On the first turn the owner first votes the other way and changes the vote."
)
HOW_EVENTS_ARE_STORED = (
    "Each recorded message is one event of its run: of category message if users scroll through it, of "
    "category trace if not."
)

logger = logging.getLogger(__name__)

TRACE = "trace"
"""The category of the run events that users do not scroll through."""
_THREAD_STATUSES: Mapping[Outcome, str] = {"success": "idle", "error": "error", "interrupted": "interrupted"}
_EVENT_TYPES: Mapping[str, str] = {"tool": "tool_result"}
_OTHER_EVENT_TYPE = "other_message"
_STOP_TIMEOUT_S = 2.0
"""How long a cancelled replay may take to store that its run was interrupted."""


# -- messages as run events ------------------------------------------------------------------------


def _event_type_of(message: Json) -> str:
    kind = message["type"]
    event_type = _EVENT_TYPES.get(kind) or (kind and valid_name(f"{kind}_message"))
    return event_type or _OTHER_EVENT_TYPE


def _category_of(message: Json) -> str:
    kind = message["type"]
    is_shown = kind in ("human", "tool") or (
        kind == "ai" and bool(text_of(message).strip() or as_list(message.get("tool_calls")))
    )
    return MESSAGE if is_shown and not is_hidden(message) else TRACE


def _event_metadata(message: Json, turn: Turn) -> dict[str, Any]:
    metadata: dict[str, Any] = {"turn": turn.number}
    if message["type"] == "ai":
        metadata["caller"] = caller_of(message)
        if (model := model_name_of(message)) is not None:
            metadata["model_name"] = model
    return metadata


# -- replaying -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayedThread:
    """The result of a thread's replay. The thread belongs to `owner`, which may differ from `requested_user`.

    `event_count` is the number of run events that were stored.
    """

    thread_id: str
    requested_user: str
    owner: str | None
    run_ids: tuple[str, ...]
    event_count: int


def _ignore() -> None:
    """The default of `on_run`."""


@dataclass(frozen=True, slots=True)
class Replayer:
    """Replays all threads concurrently; the threads are assigned to `users` in turn.

    An existing thread stays with its owner, and its runs are the owner's. `on_run` is called after each run.
    """

    storage: Storage
    users: Sequence[str]
    on_run: Callable[[], None] = field(default=_ignore)

    async def replay(self, threads: Sequence[RecordedThread]) -> list[ReplayedThread]:
        """Replay the threads. Raises the storage's first error, once the turns being replayed have ended."""
        failures: list[Exception] = []

        async def replayed(thread: RecordedThread, position: int) -> ReplayedThread | None:
            try:
                return await self._thread(thread, self.users[position % len(self.users)], failures)
            except Exception as error:  # noqa: BLE001 - in a group it would cancel the other replays
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
        with acting_for(actor):
            for turn in thread.turns:
                if failures:
                    break
                end_if_cancelled()
                previous = run_ids[-1] if run_ids else None
                run = await self._turn(thread, turn, owner, previous)
                run_ids.append(run.run_id)
                event_count += run.event_count
                await self._vote(thread, turn, run.run_id, actor)
                self.on_run()
        return ReplayedThread(thread.thread_id, user, owner, tuple(run_ids), event_count)

    async def _owner_of(self, thread: RecordedThread, user: str) -> str | None:
        threads = self.storage.threads
        try:
            with acting_for(user):
                metadata = {"source_file": thread.source, "recorded_at": thread.recorded_at}
                await threads.ensure_thread(
                    thread_id=thread.thread_id, assistant_id=thread.assistant_id, metadata=metadata
                )
        except ThreadAccessError:
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
            await run.execute()
        except asyncio.CancelledError:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.stop(), _STOP_TIMEOUT_S)
            raise
        return run

    async def _vote(self, thread: RecordedThread, turn: Turn, run_id: str, owner: str) -> None:
        rating = 1 if turn.outcome == "success" else -1
        ratings = [-rating, rating] if turn.number == 1 else [rating]
        votes = [(owner, value) for value in ratings]
        next_user = self._user_after(owner)
        if next_user != owner:
            votes.append((next_user, 1 if turn.number % 2 == 0 else -1))
        for user, value in votes:
            await self.storage.feedback.upsert(
                run_id=run_id, thread_id=thread.thread_id, rating=value, user_id=user
            )

    def _user_after(self, user: str) -> str:
        position = self.users.index(user) if user in self.users else -1
        return self.users[(position + 1) % len(self.users)]


class _ReplayedRun:
    """One run while it is replayed: stores the events, token counts and statuses that a host would store."""

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

    async def execute(self) -> None:
        await self._notify(LifecycleEventType.RUN_STARTED)
        await self._notify(LifecycleEventType.THREAD_STATUS_UPDATED, status="running")
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
            await self._store([self._event(message) for message in step.messages])
        await self._end()
        await self._notify(
            LifecycleEventType.THREAD_STATUS_UPDATED, status=_THREAD_STATUSES[self._turn.outcome]
        )

    async def stop(self) -> None:
        """Store that the run was interrupted: the replay itself is being cancelled."""
        await self._notify(LifecycleEventType.RUN_CANCELLED)
        await self._notify(LifecycleEventType.THREAD_STATUS_UPDATED, status="interrupted")

    def _event(self, message: Json) -> RunEventFields:
        return {
            "thread_id": self._thread.thread_id,
            "run_id": self.run_id,
            "event_type": _event_type_of(message),
            "category": _category_of(message),
            "content": message,
            "metadata": _event_metadata(message, self._turn),
        }

    async def _store(self, events: Sequence[RunEventFields]) -> None:
        """Store the events. Those that cannot be stored are logged, as in the observer; the run continues."""
        try:
            self.event_count += len(await self._storage.run_events.put_batch(events))
        except (InvalidPayloadError, PayloadTooLargeError) as error:
            if len(events) > 1:  # one such event makes the store reject the whole batch
                for event in events:
                    await self._store([event])
            else:
                logger.error(
                    "an event of run %s could not be stored: %s", self.run_id, error, extra=self._ids
                )
        except Exception:
            logger.exception(
                "%d events of run %s could not be stored", len(events), self.run_id, extra=self._ids
            )

    @property
    def _ids(self) -> dict[str, str]:
        return {"run_id": self.run_id, "thread_id": self._thread.thread_id}

    async def _end(self) -> None:
        turn, title = self._turn, self._thread.title if self._turn.number == 1 else None
        completion = completion_of(turn)
        if turn.outcome == "success":
            payload = {} if title is None else {"title": title}
            await self._notify(LifecycleEventType.RUN_COMPLETED, completion_data=completion, **payload)
            return
        if turn.outcome == "error":
            await self._notify(LifecycleEventType.RUN_FAILED, completion_data=completion, error=turn.error)
        else:
            await self._notify(LifecycleEventType.RUN_CANCELLED, completion_data=completion)
        if title is not None:
            await self._storage.threads.sync_thread_title(thread_id=self._thread.thread_id, title=title)

    async def _notify(self, event_type: LifecycleEventType, **payload: object) -> None:
        await self._observer.on_event(
            LifecycleEvent(
                event_type=event_type,
                run_id=self.run_id,
                thread_id=self._thread.thread_id,
                payload=payload,
            )
        )


def completion_of(turn: Turn) -> RunCompletionFields:
    """The completion fields that a host passes at a run's end: the sums of the turn's model calls."""
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
def acting_for(user: str) -> Generator[None]:
    """Bind `user` as the current actor."""
    token = bind_actor_context(ActorContext(user_id=user))
    try:
        yield
    finally:
        reset_actor_context(token)
