"""The core of the storage contract: runs, feedback, threads, run events, and the storage that has them.

A host depends on these Protocols and on nothing below them; a backend's classes inherit them, and with them
the docstrings of their methods. What not every backend can do is a capability, in `capabilities.py`. For
every method that takes `user_id`:

- `AUTO` (where it is the default) is the current actor's id; with no actor, or one without an id, the method
  raises `ActorMissingError`, a `RuntimeError` that names it, before anything is read or written;
- a string is that user, also the empty one;
- None is no filter, for migrations and trusted code; where a vote is written or looked up, None is the one
  anonymous user.

A row of another user, or of nobody, does not exist for a named caller. Identifiers are text of at most 1,024
bytes; a `limit` is a whole number from 0 up, and 0 gives nothing. Every error is a `StorageError`. A wrong
argument raises `ArgumentTypeError` or `ArgumentValueError` (a `TypeError` or `ValueError` too), whose text
names the argument, before anything is read or written; for a time it is always `ArgumentValueError`. What the
text of another error has is stated at its class, in `errors.py`. Every method may raise
`StorageUnavailableError`, which is safe to retry, `StorageAccessError`, and `StorageClosedError`; a write may
raise `InvalidPayloadError` or `PayloadTooLargeError` and has then written nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self, Unpack, runtime_checkable

from .actor import AUTO, UserId
from .rows import (
    Caller,
    CreationOrder,
    FeedbackRow,
    FeedbackTotals,
    ModelTokenCounts,
    RunEventFields,
    RunEventRow,
    RunRow,
    ThreadMeta,
    ThreadMetaCreate,
    ThreadOrder,
    TimeInput,
    TokenUsage,
    Unset,
)


class RunReadRepository(Protocol):
    """Queries of runs."""

    async def get(self, run_id: str, *, user_id: UserId = AUTO) -> RunRow | None:
        """The run, or None."""
        ...

    async def list_by_thread(
        self, thread_id: str, *, limit: int = 100, user_id: UserId = AUTO
    ) -> list[RunRow]:
        """The thread's runs, newest `created_at` first, in the same order at every call.

        Reservations of the thread are not runs (see `RunOwnership`). The limit counts rows of `user_id` only.
        Runs that one process creates one after the other are never tied or swapped.
        """
        ...

    async def list_pending(self, *, before: TimeInput | None = None) -> list[RunRow]:
        """The runs of every user that are "pending" and were created at or before `before` (now).

        All of them, oldest first. No actor is needed.
        """
        ...

    async def get_many_by_thread(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = AUTO
    ) -> dict[str, RunRow]:
        """Those of these runs that the thread has, by id; {} for no ids, without a query."""
        ...

    async def list_successful_regenerate_sources(self, thread_id: str, *, user_id: UserId = AUTO) -> set[str]:
        """`metadata["regenerate_from_run_id"]`, where it is a text that is not empty, of all successful runs.

        Of the whole thread, without a limit.
        """
        ...

    async def list_edit_regenerate_runs(self, thread_id: str, *, user_id: UserId = AUTO) -> list[RunRow]:
        """The runs that repeat another one with an edited message, oldest first, without a limit.

        Their `metadata["replay_kind"]` is "edit", and their `metadata["regenerate_from_run_id"]` is a text
        that is not empty.
        """
        ...


class RunWriteRepository(Protocol):
    """Writes of runs.

    Updating a run that does not exist changes nothing and raises nothing; one record at WARNING has its id.
    With `from_statuses`, a run in another status is not changed at all, which is not logged; the status is
    compared in the same atomic update. A status that would make a second run of a thread active, where
    `RunOwnership` allows one, raises `ActiveRunError`.
    """

    async def create(
        self,
        run_id: str,
        thread_id: str,
        *,
        status: str = "pending",
        created_at: TimeInput | None = None,
        started_at: TimeInput | None = None,
        ended_at: TimeInput | None = None,
        assistant_id: str | None = None,
        user_id: UserId = AUTO,
        follow_up_to_run_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        model_name: str | None = None,
        multitask_strategy: str = "reject",
        error: str | None = None,
    ) -> None:
        """Store a new run and every field given.

        `status` is "pending" by default, `multitask_strategy` "reject", `created_at` now, `user_id` AUTO.
        Raises `RunExistsError` for a known `run_id` and leaves that run as it is.
        """
        ...

    async def update_status(
        self,
        run_id: str,
        status: str,
        *,
        started_at: TimeInput | None = None,
        ended_at: TimeInput | None = None,
        metadata: Mapping[str, Any] | None = None,
        error: str | None = None,
        stop_reason: str | None = None,
        from_statuses: Sequence[str] | None = None,
    ) -> bool:
        """Set the status and what else is given, and merge `metadata` key by key, in one update.

        Returns whether the run exists and, with `from_statuses`, was in one of them. An ended run (success,
        error, timeout, interrupted) never becomes pending, starting or running again: such an update only
        merges its metadata and sets times that are not set. One ending may replace another.
        """
        ...

    async def update_model_name(self, run_id: str, model_name: str | None) -> None:
        """Set the run's model name, in one update."""
        ...

    async def set_error(self, run_id: str, error: str) -> None:
        """Set status "error" and the error's text in one update."""
        ...

    async def update_run_completion(
        self,
        run_id: str,
        *,
        status: str,
        total_input_tokens: int = 0,
        total_output_tokens: int = 0,
        total_tokens: int = 0,
        llm_call_count: int = 0,
        lead_agent_tokens: int = 0,
        subagent_tokens: int = 0,
        middleware_tokens: int = 0,
        message_count: int = 0,
        first_human_message: str | Unset | None = None,
        last_ai_message: str | Unset | None = None,
        error: str | Unset | None = None,
        ended_at: TimeInput | None = None,
        token_usage_by_model: Mapping[str, ModelTokenCounts] | None = None,
        from_statuses: Sequence[str] | None = None,
    ) -> bool:
        """Set the status, all token counts, the texts and `ended_at` in one atomic update.

        Returns whether the run exists and, with `from_statuses`, was in one of them.

        An absent count becomes 0, an absent text None; a text that is `UNSET` stays as it is. `ended_at` is
        the given one, or now where none is set and the status is an ending: any but pending, starting and
        running. With one of these, an ended run stays as it is, except for times that are not set yet.

        With `token_usage_by_model` None, the counts by model stay as recorded; a mapping replaces all of
        them, and an empty one clears them. `ModelTokenCounts` has the counts of a model and their defaults;
        other keys are ignored. A model's name is any text of at most 1,024 bytes. The run's totals are not
        derived from these counts.
        """
        ...


class RunDeleteRepository(Protocol):
    """Deletion of runs."""

    async def delete(self, run_id: str, *, user_id: UserId = AUTO) -> bool:
        """Delete the run; False if there is none for `user_id`."""
        ...


class TokenUsageRepository(Protocol):
    """Token counts while a run is active, and their totals.

    Recording for a run that does not exist changes nothing; one record at WARNING has its id.
    """

    async def record_token_usage(
        self,
        run_id: str,
        *,
        caller: Caller,
        model_name: str | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        llm_calls: int = 1,
    ) -> None:
        """Add to the run's token counts, atomically, from any number of processes, also after the run's end.

        Raises `ArgumentValueError` for another caller than "lead_agent", "subagent" or "middleware".
        """
        ...

    async def token_usage_by_thread(
        self, thread_id: str, *, user_id: UserId = AUTO, statuses: Sequence[str] | None = None
    ) -> TokenUsage:
        """The sums over all runs of the thread, or over those in one of `statuses`.

        A run without counts by model counts under its own `model_name`, or "unknown" if it has none, also
        where it has spent nothing.
        """
        ...


class RunStore(RunReadRepository, RunWriteRepository, RunDeleteRepository, TokenUsageRepository, Protocol):
    """Everything about runs."""


class FeedbackStore(Protocol):
    """Votes and comments on runs and messages.

    Raises `ArgumentValueError`, whose text names the value, for a rating other than the integers 1 and -1.
    """

    async def create(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        owner_id: str | None = None,
        user_id: UserId = None,
        message_id: str | None = None,
        comment: str | None = None,
    ) -> FeedbackRow:
        """Store one more row; `user_id` wins over `owner_id`. A user may have several."""
        ...

    async def upsert(
        self,
        *,
        run_id: str,
        thread_id: str,
        rating: int,
        user_id: UserId,
        comment: str | None = None,
    ) -> FeedbackRow:
        """Create or replace the user's one vote on the run, in one atomic operation.

        `feedback_id` stays the same and `created_at` becomes now. Feedback on a message is not the vote; a
        row that `create` made without a message becomes it. Any number of concurrent calls leave one vote.
        """
        ...

    async def get(self, feedback_id: str, *, user_id: UserId = None) -> FeedbackRow | None:
        """The row, or None."""
        ...

    async def delete(self, feedback_id: str, *, user_id: UserId = None) -> bool:
        """Delete the row; False if there is none."""
        ...

    async def list_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        """The first `limit` of the run's rows in this order; the limit counts rows of `user_id` only."""
        ...

    async def list_by_thread(
        self,
        thread_id: str,
        *,
        limit: int = 100,
        user_id: UserId = None,
        order: CreationOrder = "newest_first",
    ) -> list[FeedbackRow]:
        """The first `limit` of the thread's rows in this order; the limit counts rows of `user_id` only."""
        ...

    async def list_by_thread_grouped(self, thread_id: str, *, user_id: UserId) -> dict[str, FeedbackRow]:
        """The user's newest row on each run of the thread, by run id. None is the anonymous user."""
        ...

    async def list_by_run_ids(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId
    ) -> dict[str, FeedbackRow]:
        """The user's newest row on each of these runs of the thread, by run id; {} for no ids.

        None is the anonymous user.
        """
        ...

    async def aggregate_by_run(self, thread_id: str, run_id: str) -> FeedbackTotals:
        """The run's votes, counted by the database over all rows."""
        ...

    async def delete_by_run(self, *, thread_id: str, run_id: str, user_id: UserId) -> bool:
        """Delete the user's vote on the run; False if there is none. None is the anonymous user."""
        ...


class ThreadMetaRepository(Protocol):
    """Thread metadata for the host's own code: no method needs an actor."""

    async def create_thread_meta(self, data: ThreadMetaCreate) -> ThreadMeta:
        """Store a new thread. Raises `ThreadExistsError` for a known id and leaves that thread as it is."""
        ...

    async def get_thread_meta(self, thread_id: str) -> ThreadMeta | None:
        """The thread, whoever owns it, or None."""
        ...

    async def update_thread_meta(
        self,
        thread_id: str,
        *,
        assistant_id: str | None = None,
        display_name: str | None = None,
        status: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        owner_id: str | None = None,
        user_id: UserId = None,
    ) -> None:
        """Set what is given (None leaves a field as it is); `metadata` replaces the stored one as a whole.

        `owner_id` is the thread's new owner.

        For a missing thread, or with `user_id` one that does not belong to that user, nothing is changed or
        raised; one record at WARNING has the thread's id.
        """
        ...

    async def merge_thread_metadata(
        self, thread_id: str, metadata: Mapping[str, Any], *, user_id: UserId = None, touch: bool = True
    ) -> None:
        """Set these top-level keys of the metadata and leave the others, in one atomic update.

        With `touch` False, `updated_time` stays as it is. No concurrent merge is lost. A missing thread: as
        in `update_thread_meta`.
        """
        ...

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        """Delete the thread's metadata; False if there is none. No actor is needed."""
        ...


class ThreadMetaStorage(Protocol):
    """Thread metadata as the host's routes use it. A `sync_` method of a missing thread changes nothing.

    It logs as `update_thread_meta` does.
    """

    async def get_thread(self, thread_id: str, *, user_id: UserId = AUTO) -> ThreadMeta | None:
        """The thread, or None."""
        ...

    async def ensure_thread(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        user_id: UserId = AUTO,
    ) -> ThreadMeta:
        """Get the thread or create it, in one atomic operation; all concurrent callers get the same one.

        Raises `ThreadAccessError`, a `PermissionError`, for another user's thread; the text reveals nothing
        about it.
        """
        ...

    async def ensure_thread_running(
        self,
        *,
        thread_id: str,
        assistant_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ThreadMeta:
        """Set the thread's status to "running"; create the thread if there is none.

        No actor is needed; a new thread belongs to the actor that is bound, if any. Raises
        `ActorMissingError` for an actor without an id: the thread would belong to nobody and be open to all.
        """
        ...

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        """Set `display_name`."""
        ...

    async def sync_thread_assistant_id(self, *, thread_id: str, assistant_id: str) -> None:
        """Set `assistant_id`."""
        ...

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        """Set `status`."""
        ...

    async def sync_thread_metadata(self, *, thread_id: str, metadata: Mapping[str, Any]) -> None:
        """Replace `metadata`."""
        ...

    async def delete_thread(self, thread_id: str, *, user_id: UserId = None) -> bool:
        """Delete the thread's metadata; False if there is none. No actor is needed."""
        ...

    async def search_threads(
        self,
        *,
        metadata: Mapping[str, Any] | None = None,
        status: str | None = None,
        user_id: UserId = AUTO,
        assistant_id: str | None = None,
        limit: int = 100,
        offset: int = 0,
        order: ThreadOrder = "newest_first",
    ) -> list[ThreadMeta]:
        """Threads by `created_time`, newest first, or in another `ThreadOrder`; limit and offset apply to it.

        `metadata` matches whole values, equal in type and content, of any top-level key: 1 is not True, None
        is not "missing", the order of keys does not count. A blank `status` or `assistant_id` is ignored.
        Raises `InvalidPayloadError` for metadata without a JSON form.
        """
        ...


class ThreadStore(ThreadMetaRepository, ThreadMetaStorage, Protocol):
    """Everything about threads: both halves in one object."""

    # What these do is the same for every backend that inherits this class.

    async def sync_thread_title(self, *, thread_id: str, title: str) -> None:
        await self.update_thread_meta(thread_id, display_name=title)

    async def sync_thread_assistant_id(self, *, thread_id: str, assistant_id: str) -> None:
        await self.update_thread_meta(thread_id, assistant_id=assistant_id)

    async def sync_thread_status(self, *, thread_id: str, status: str) -> None:
        await self.update_thread_meta(thread_id, status=status)

    async def sync_thread_metadata(self, *, thread_id: str, metadata: Mapping[str, Any]) -> None:
        await self.update_thread_meta(thread_id, metadata=metadata)


class RunEventStore(Protocol):
    """The events of each thread: messages, tool calls, traces, numbered within the thread.

    `seq` starts at 1 in each thread, is unique there and rises in the order of the calls and within a batch.
    No number is given twice, not even after deletes or a crash; once a reader has seen seq n, no event with a
    smaller seq appears later.

    With an actor bound, another user's thread is empty, and writing to it raises `ThreadAccessError`, a
    `PermissionError`, whose text begins "not allowed to append events". A thread without an owner, or that
    `threads` does not have, is open to all. Each call reads the owner again.

    An event may belong to a user as well (`user_id`). A read or a deletion that names a user sees that user's
    events only, also where the thread itself does not exist any more; None, the default, does not filter.
    """

    async def put_batch(self, events: Sequence[RunEventFields]) -> list[RunEventRow]:
        """Store events, those of one thread under consecutive numbers; rows in the order of the input.

        `RunEventFields` has the fields. Raises `ArgumentTypeError` for an unknown field and
        `ArgumentValueError` for a missing one. An error of an argument or a payload names the field and, of
        several events, the place of its event: `events[1].run_id`; nothing of the batch is stored. Events of
        several threads are stored thread by thread. Raises `ThreadAccessError` where one of the threads is
        another user's; then none of the batch is stored.

        A batch of any size is stored. Up to 63 events of one thread with 256 KiB are one unit: no event of
        another writer comes between them, and no reader sees a part. Larger ones are stored in their order,
        and others' events may come between; if such a call fails, a first part may be stored.

        An event with an `event_id` is stored once in its thread, whichever process sends it and however
        often: a second one is not stored, and its row is that of the first. This holds until the first one is
        deleted. Of a batch whose events were stored in part before, the rest is stored.

        After a `StorageUnavailableError` the events may be stored or not. Who repeats the call stores them a
        second time, unless they have an `event_id`.
        """
        ...

    async def put(self, **event: Unpack[RunEventFields]) -> RunEventRow:
        """Store one event, as `put_batch` does.

        Arguments: `thread_id`, `run_id`, `event_type`, `category`, and optionally `content`, `metadata`,
        `created_at`, `user_id` and `event_id`; see `RunEventFields`.
        """
        ...

    async def put_if_absent(self, **event: Unpack[RunEventFields]) -> tuple[RunEventRow, bool]:
        """Store the event, with the arguments of `put`, unless its run has an event of this type.

        Returns the run's event and whether it is new. Any number of concurrent calls from any number of
        processes store one, and none where a racing `put` or `put_batch` stored one before. Where `put` has
        stored several, the first is returned. An event of the thread with the same `event_id` is returned as
        well, as not new.
        """
        ...

    async def list_messages(
        self,
        thread_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        """Events of category "message", in rising `seq`.

        `before_seq` gives the last `limit` before it, `after_seq` the first `limit` after it, both the first
        `limit` between them, neither the last `limit`.
        """
        ...

    async def list_events(
        self,
        thread_id: str,
        run_id: str,
        *,
        event_types: Sequence[str] | None = None,
        task_id: str | None = None,
        limit: int = 500,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        """The first `limit` events of the run after `after_seq`, in rising `seq`.

        `event_types=[]` gives none. `task_id` limits them to those whose `metadata["task_id"]` is this text,
        before the limit applies.
        """
        ...

    async def get_last_visible_ai_seq_by_run(
        self, thread_id: str, run_ids: Iterable[str], *, user_id: UserId = None
    ) -> dict[str, int]:
        """The highest `seq` of each of these runs' answers that users see, by run id; {} for no ids.

        Such an answer is a message of type "llm.ai.response" or "ai_message" whose `metadata["caller"]` does
        not begin with "middleware:". A run without one is left out.
        """
        ...

    async def list_messages_by_run(
        self,
        thread_id: str,
        run_id: str,
        *,
        limit: int = 50,
        before_seq: int | None = None,
        after_seq: int | None = None,
        user_id: UserId = None,
    ) -> list[RunEventRow]:
        """As `list_messages`, of one run."""
        ...

    async def count_messages(self, thread_id: str, *, user_id: UserId = None) -> int:
        """The number of the thread's events of category "message"."""
        ...

    async def delete_by_thread(self, thread_id: str, *, user_id: UserId = None) -> int:
        """Delete the thread's events and return their number. Their `seq` is never given again."""
        ...

    async def delete_by_run(self, thread_id: str, run_id: str, *, user_id: UserId = None) -> int:
        """Delete the run's events and return their number. Their `seq` is never given again."""
        ...


class RunLifecycleEvent(Protocol):
    """What happened to a run. `event_type` is text or an enum whose value is that text."""

    @property
    def event_type(self) -> Any: ...
    @property
    def run_id(self) -> str: ...
    @property
    def thread_id(self) -> str: ...
    @property
    def occurred_at(self) -> datetime: ...
    @property
    def payload(self) -> Mapping[str, Any] | None: ...


class RunObserver(Protocol):
    """Receives every run lifecycle event."""

    async def on_event(self, event: RunLifecycleEvent) -> None:
        """Store the event. Nothing is raised: the agent's run continues.

        An event that cannot be stored is logged at ERROR, with its type and the run's id. An invalid value in
        `completion_data` is left out and logged at WARNING, with its name and the run's id; the rest is
        stored.
        """
        ...


@runtime_checkable
class Storage(Protocol):
    """One backend's stores. Building it connects to nothing; it is used within one event loop.

    No `repr`, error or log record of it shows a password.
    """

    @property
    def runs(self) -> RunStore: ...
    @property
    def feedback(self) -> FeedbackStore: ...
    @property
    def threads(self) -> ThreadStore: ...
    @property
    def run_events(self) -> RunEventStore: ...

    def observer(self) -> RunObserver:
        """An observer that writes to these stores."""
        ...

    async def setup(self) -> None:
        """Create what the backend needs; idempotent, and safe from many processes at once."""
        ...

    async def ping(self) -> None:
        """Return when the server has answered; raises `StorageUnavailableError` if it does not in time."""
        ...

    async def aclose(self) -> None:
        """Write the run events that were accepted, then close the connections.

        Idempotent, and bounded in time when the server is gone: callers that wait for an event that could not
        be written get the error, and the log has their number.
        """
        ...

    # What the context manager does is the same for every backend that inherits this class.

    async def __aenter__(self) -> Self:
        """`setup()`; closes the storage if that fails."""
        try:
            await self.setup()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """`aclose()`."""
        await self.aclose()
