"""What goes into the stores and what comes out: rows, thread metadata and the fields of a run.

A row is a plain dict of JSON types; nothing of a database driver is in it. How a backend stores a row is not
decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

from .actor import UserId

JSONValue: TypeAlias = "bool | int | float | str | list[JSONValue] | dict[str, JSONValue] | None"
"""A JSON value: the only values that a row holds."""

TimeInput: TypeAlias = str | datetime
"""An ISO-8601 string (any offset, `Z` too) or a datetime; a naive one means UTC."""

Caller: TypeAlias = Literal["lead_agent", "subagent", "middleware"]
"""Who spent tokens; DeerFlow's own three names."""

CreationOrder: TypeAlias = Literal["newest_first", "oldest_first"]
"""The order of a list by `created_at`."""

ThreadOrder: TypeAlias = Literal["newest_first", "last_updated_first", "pinned_first"]
"""The order of a list of threads: by `created_time`, or by `updated_time` and then the id.

"pinned_first" is "last_updated_first" of the pinned threads, then of the others. A thread is pinned while
`metadata["deerflow_pinned"]` is exactly True, which is what DeerFlow sets.
"""

PINNED: Final = "deerflow_pinned"
"""The key of a thread's metadata that pins the thread."""

OperationKind: TypeAlias = Literal["run", "checkpoint_write", "artifact_write", "delete"]
"""What occupies a thread: a run, or a short reservation of the thread for another write."""

CancelAction: TypeAlias = Literal["interrupt", "rollback"]
"""What happens to a run that is cancelled."""


class Unset(Enum):
    """The type of `UNSET`."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


UNSET: Final = Unset.UNSET
"""A text argument that is not given: the stored text stays as it is, where None would clear it."""

CALLERS: tuple[Caller, ...] = ("lead_agent", "subagent", "middleware")
UNKNOWN_MODEL: Final = "unknown"
"""The model of tokens for which no model is named."""

ACTIVE_STATUSES: tuple[str, ...] = ("pending", "starting", "running")
PENDING = "pending"
ENDED_STATUSES: tuple[str, ...] = ("success", "error", "timeout", "interrupted")

OPERATION_KINDS: tuple[OperationKind, ...] = ("run", "checkpoint_write", "artifact_write", "delete")
CANCEL_ACTIONS: tuple[CancelAction, ...] = ("interrupt", "rollback")
OWNED_ACTIVE_STATUSES: tuple[str, ...] = ("pending", "running")
OWNED_STATUSES: tuple[str, ...] = (*OWNED_ACTIVE_STATUSES, *ENDED_STATUSES)
"""The statuses of a run that has an owner: DeerFlow's six, of which the first two are active."""

MULTITASK_STRATEGIES: tuple[str, ...] = ("reject", "interrupt", "rollback")
"""What the admission of a run does where its thread has an active one; see `RunOwnership`."""

SUPERSEDED_ERROR: Final = "Cancelled by newer run"
"""The error's text of a run that another one has replaced; DeerFlow's."""


class RunCreateFields(TypedDict, total=False):
    """What `runs.create` takes besides the two ids; every field is stored."""

    status: str
    created_at: TimeInput | None
    started_at: TimeInput | None
    ended_at: TimeInput | None
    assistant_id: str | None
    user_id: UserId
    follow_up_to_run_id: str | None
    metadata: Mapping[str, Any] | None
    kwargs: Mapping[str, Any] | None
    model_name: str | None
    multitask_strategy: str
    error: str | None


class OperationFields(TypedDict, total=False):
    """What `RunOwnership.put` takes besides the two ids."""

    status: str
    operation_kind: OperationKind | None
    multitask_strategy: str
    assistant_id: str | None
    user_id: UserId
    model_name: str | None
    metadata: Mapping[str, Any] | None
    kwargs: Mapping[str, Any] | None
    error: str | None
    stop_reason: str | None
    created_at: TimeInput | None
    follow_up_to_run_id: str | None
    owner_worker_id: str | None
    lease_expires_at: TimeInput | None
    idempotency_key: str | None


class AdmissionFields(TypedDict, total=False):
    """What the admission of a run takes besides its ids, its owner and its lease."""

    operation_kind: OperationKind
    multitask_strategy: str
    assistant_id: str | None
    user_id: UserId
    model_name: str | None
    metadata: Mapping[str, Any] | None
    kwargs: Mapping[str, Any] | None
    created_at: TimeInput | None
    follow_up_to_run_id: str | None
    grace_seconds: float
    idempotency_key: str | None


class RunStatusUpdateFields(TypedDict, total=False):
    """What `runs.update_status` takes besides the id and the status."""

    started_at: TimeInput | None
    ended_at: TimeInput | None
    metadata: Mapping[str, Any] | None
    error: str | None
    stop_reason: str | None
    from_statuses: Sequence[str] | None


class ModelTokenCounts(TypedDict, total=False):
    """What a run has spent on one model; absent counts are 0, an absent total is input plus output.

    `cache_read_tokens` is stored only where it is given.
    """

    input_tokens: int
    output_tokens: int
    total_tokens: int
    llm_calls: int
    cache_read_tokens: int


class RunProgressFields(TypedDict, total=False):
    """What `RunOwnership.update_run_progress` takes; what is absent or None stays as it is."""

    total_input_tokens: int | None
    total_output_tokens: int | None
    total_tokens: int | None
    llm_call_count: int | None
    lead_agent_tokens: int | None
    subagent_tokens: int | None
    middleware_tokens: int | None
    message_count: int | None
    first_human_message: str | None
    last_ai_message: str | None
    token_usage_by_model: Mapping[str, ModelTokenCounts] | None


class RunCompletionFields(TypedDict, total=False):
    """What `runs.update_run_completion` takes; an absent count is 0, an absent text None."""

    total_input_tokens: int
    total_output_tokens: int
    total_tokens: int
    llm_call_count: int
    lead_agent_tokens: int
    subagent_tokens: int
    middleware_tokens: int
    message_count: int
    first_human_message: str | Unset | None
    last_ai_message: str | Unset | None
    error: str | Unset | None
    ended_at: TimeInput | None
    token_usage_by_model: Mapping[str, ModelTokenCounts] | None
    from_statuses: Sequence[str] | None


COMPLETION_TEXTS = ("first_human_message", "last_ai_message", "error")
COMPLETION_COUNTS = tuple(
    name
    for name in RunCompletionFields.__annotations__
    if name not in (*COMPLETION_TEXTS, "ended_at", "token_usage_by_model", "from_statuses")
)
"""The two kinds of `RunCompletionFields`: whole numbers from 0 up, and texts."""

MAX_COUNT = 2**63 - 1
"""The largest token count or other count that a row holds."""


class OwnedRunRow(TypedDict, total=False):
    """What the row of a run has, all of it, that `RunOwnership` has written.

    `operation_kind` None is a run that does not occupy its thread.
    """

    operation_kind: OperationKind | None
    stop_reason: str | None
    owner_worker_id: str | None
    lease_expires_at: str | None
    cancel_action: CancelAction | None
    cancel_requested_at: str | None
    idempotency_key: str | None
    token_usage_by_model: dict[str, dict[str, int]]


class RunRow(OwnedRunRow):
    """One run. Times are ISO-8601 text in UTC; `updated_at` is "" until the first update.

    The keys of `OwnedRunRow` are present in the rows of runs that `RunOwnership` has written.
    """

    run_id: str
    thread_id: str
    assistant_id: str | None
    user_id: str | None
    status: str
    model_name: str | None
    multitask_strategy: str
    follow_up_to_run_id: str | None
    metadata: dict[str, JSONValue]
    kwargs: dict[str, JSONValue]
    created_at: str
    updated_at: str
    started_at: str | None
    ended_at: str | None
    error: str | None
    total_input_tokens: int
    total_output_tokens: int
    total_tokens: int
    llm_call_count: int
    lead_agent_tokens: int
    subagent_tokens: int
    middleware_tokens: int
    message_count: int
    first_human_message: str | None
    last_ai_message: str | None


class LeaseRenewal(NamedTuple):
    """Whether the lease was renewed, and the action that somebody requested for the run, if any."""

    renewed: bool
    cancel_action: CancelAction | None = None


class StatusFinalization(NamedTuple):
    """Whether the run got its ending; if not, the action that was requested for it, if any."""

    finalized: bool
    cancel_action: CancelAction | None = None


class ThreadOperation(NamedTuple):
    """An admitted run or reservation, and the rows of the runs that it has interrupted."""

    row: RunRow
    interrupted: list[RunRow]


class ModelTokenUsage(TypedDict):
    """One model's share of a thread's tokens, and the number of runs that used it."""

    runs: int
    tokens: int
    input_tokens: int
    output_tokens: int
    llm_calls: int


class TokenUsage(TypedDict):
    """A thread's tokens, summed by the database over all its runs."""

    total_runs: int
    total_input_tokens: int
    total_output_tokens: int
    total_tokens: int
    llm_call_count: int
    by_caller: dict[str, int]
    by_model: dict[str, ModelTokenUsage]


class FeedbackRow(TypedDict):
    """One piece of feedback; `owner_id` always equals `user_id`, and `feedback_id` is a UUID4 as text."""

    feedback_id: str
    run_id: str
    thread_id: str
    user_id: str | None
    owner_id: str | None
    message_id: str | None
    rating: int
    comment: str | None
    created_at: str


class FeedbackTotals(TypedDict):
    """The votes on one run, counted by the database over all of them."""

    run_id: str
    total: int
    positive: int
    negative: int


class AccountFields(TypedDict):
    """What an update sets of an account: everything but its id and its time."""

    email: str
    password_hash: str | None
    system_role: str
    oauth_provider: str | None
    oauth_id: str | None
    needs_setup: bool
    token_version: int


class UserRow(TypedDict):
    """One account. `password_hash` is the host's own hash of the password; no store interprets it."""

    user_id: str
    email: str
    password_hash: str | None
    system_role: str
    created_at: str
    oauth_provider: str | None
    oauth_id: str | None
    needs_setup: bool
    token_version: int


MESSAGE = "message"
"""The category of the run events that users scroll through."""


class RunEventFields(TypedDict):
    """A run event to be stored.

    `content` is text or any payload ("" by default), `created_at` the time of the call by default. With
    `user_id` the event is visible only to reads of that user and to reads without a user. With an `event_id`
    of the caller's, an identifier, the event is stored once in its thread: see `RunEventStore.put_batch`.
    """

    thread_id: str
    run_id: str
    event_type: str
    category: str
    content: NotRequired[Any]
    metadata: NotRequired[Mapping[str, Any] | None]
    created_at: NotRequired[TimeInput | None]
    user_id: NotRequired[str | None]
    event_id: NotRequired[str | None]


class RunEventRow(TypedDict):
    """One run event. `seq` counts from 1 within its thread; `content` is the text or JSON value that was put.

    `user_id` is present only where the event was written for a user, `event_id` only where it was given.
    """

    thread_id: str
    run_id: str
    event_type: str
    category: str
    content: JSONValue
    metadata: dict[str, JSONValue]
    created_at: str
    seq: int
    user_id: NotRequired[str]
    event_id: NotRequired[str]


def _empty_metadata() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadMetaCreate:
    """A thread to be created with `threads.create_thread_meta`."""

    thread_id: str
    assistant_id: str | None = None
    user_id: str | None = None
    display_name: str | None = None
    status: str = "idle"
    metadata: Mapping[str, Any] = field(default_factory=_empty_metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadMeta:
    """A thread's metadata. Both times are aware, in UTC; without an update they are equal."""

    thread_id: str
    assistant_id: str | None
    user_id: str | None
    display_name: str | None
    status: str
    metadata: dict[str, JSONValue]
    created_time: datetime
    updated_time: datetime
