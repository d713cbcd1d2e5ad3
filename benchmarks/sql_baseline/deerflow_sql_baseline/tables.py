"""The tables. Reimplements the models of DeerFlow's `store` package with the same column widths.

In SQL's favour, run events also have the indexes of later releases, except the one on an event's user, which
no measured operation uses.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from deerflow_mongo.contract.rows import TimeInput


def now() -> datetime:
    return datetime.now(UTC)


def moment(given: TimeInput) -> datetime:
    return datetime.fromisoformat(given) if isinstance(given, str) else given


class Moment(TypeDecorator[datetime]):
    """A time that is timezone-aware on SQLite, too, which does not store the offset."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


_KEY = BigInteger().with_variant(Integer, "sqlite")

Key = Annotated[int, mapped_column(_KEY, primary_key=True, unique=True, index=True, autoincrement=True)]
Id = Annotated[str, mapped_column(String(64))]
IndexedId = Annotated[str, mapped_column(String(64), index=True)]
UniqueId = Annotated[str, mapped_column(String(64), unique=True, index=True)]
Count = Annotated[int, mapped_column(Integer, default=0)]
Created = Annotated[datetime, mapped_column(Moment, default=now)]
Updated = Annotated[datetime | None, mapped_column(Moment, onupdate=now)]
Json = dict[str, Any]


class Base(DeclarativeBase):
    pass


class Run(Base):
    __tablename__ = "runs"

    id: Mapped[Key]
    run_id: Mapped[UniqueId]
    thread_id: Mapped[IndexedId]
    assistant_id: Mapped[Id | None]
    user_id: Mapped[IndexedId | None]
    status: Mapped[str] = mapped_column(String(32), default="pending", index=True)
    model_name: Mapped[str | None] = mapped_column(String(128))
    multitask_strategy: Mapped[str] = mapped_column(String(32), default="reject")
    error: Mapped[str | None] = mapped_column(Text)
    follow_up_to_run_id: Mapped[Id | None]
    meta: Mapped[Json] = mapped_column("metadata", JSON, default=dict)
    kwargs: Mapped[Json] = mapped_column(JSON, default=dict)
    total_input_tokens: Mapped[Count]
    total_output_tokens: Mapped[Count]
    total_tokens: Mapped[Count]
    llm_call_count: Mapped[Count]
    lead_agent_tokens: Mapped[Count]
    subagent_tokens: Mapped[Count]
    middleware_tokens: Mapped[Count]
    message_count: Mapped[Count]
    first_human_message: Mapped[str | None] = mapped_column(Text)
    last_ai_message: Mapped[str | None] = mapped_column(Text)
    created_time: Mapped[Created]
    updated_time: Mapped[Updated]


class Feedback(Base):
    __tablename__ = "feedback"

    id: Mapped[Key]
    feedback_id: Mapped[UniqueId]
    run_id: Mapped[IndexedId]
    thread_id: Mapped[IndexedId]
    rating: Mapped[int] = mapped_column(Integer)
    user_id: Mapped[IndexedId | None]
    message_id: Mapped[Id | None]
    comment: Mapped[str | None] = mapped_column(Text)
    created_time: Mapped[Created]


class Thread(Base):
    __tablename__ = "thread_meta"

    id: Mapped[Key]
    thread_id: Mapped[UniqueId]
    assistant_id: Mapped[Id | None]
    user_id: Mapped[IndexedId | None]
    display_name: Mapped[str | None] = mapped_column(String(255))
    status: Mapped[str] = mapped_column(String(32), default="idle", index=True)
    meta: Mapped[Json] = mapped_column("metadata", JSON, default=dict)
    created_time: Mapped[Created]
    updated_time: Mapped[Updated]


class RunEvent(Base):
    __tablename__ = "run_events"
    __table_args__ = (
        UniqueConstraint("thread_id", "seq"),
        Index("ix_run_events_thread_category_seq", "thread_id", "category", "seq"),
        Index("ix_run_events_thread_run_seq", "thread_id", "run_id", "seq"),
    )

    id: Mapped[Key]
    thread_id: Mapped[IndexedId]
    run_id: Mapped[IndexedId]
    user_id: Mapped[Id | None]
    seq: Mapped[int] = mapped_column(Integer, index=True)
    event_type: Mapped[str] = mapped_column(String(128), index=True)
    category: Mapped[str] = mapped_column(String(64), index=True)
    content: Mapped[str] = mapped_column(Text)
    meta: Mapped[Json] = mapped_column("metadata", JSON, default=dict)
    created_at: Mapped[Created]
