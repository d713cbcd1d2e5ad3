"""`MongoStorage`: opens a driver, builds the stores, sets up the schema and closes everything.

What a store does is in `stores/` and `events/`, what is stored in `documents/` and `schema.py`.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from ..contract.bulk_rows import BulkRow, BulkRows, Imported, Key, RowKind
from ..contract.capabilities import Accounts, Checkpointing, LimitedPayloads
from ..contract.erasure import Erased, Erasure
from ..contract.errors import (
    MissingDependencyError,
    StorageConfigError,
    StorageError,
    StorageUnavailableError,
)
from ..contract.factory import with_environment, with_options
from ..contract.observer import StorageRunObserver
from ..contract.protocols import Storage
from . import inspection, migrations, schema, sharding, upgrade_plan
from .bulk.store import MongoBulkRows
from .checkpoints.deletion import Collections
from .checkpoints.pruning import delete_thread
from .checkpoints.retention import rules_of
from .client import config_for_client
from .config import EMBEDDED, MongoConfig, mongo_config, redacted
from .drivers.changes import changes
from .drivers.collection import Collection
from .drivers.driver import READ_COMMITTED, Driver, DriverOptions
from .drivers.errors import MAX_DOCUMENT_BYTES, copied
from .drivers.groups.lane import GroupCounts
from .drivers.threads import in_thread
from .embedded.hold import EmbeddedHold
from .erasure import Counting, Deleting, ErasableData, MongoErasure
from .events.store import MongoRunEventStore
from .events.thread_access import ThreadOwners
from .stores.feedback import MongoFeedbackStore
from .stores.runs import MongoRunStore
from .stores.threads import MongoThreadStore
from .stores.users import MongoUserStore
from .upgrade_plan import UpgradePlan
from .upgrades import Report, unreported
from .views import set_up_views

if TYPE_CHECKING:
    from .checkpoints.saver import MongoCheckpointSaver
    from .telemetry.metrics import StorageMetrics
    from .telemetry.telemetry import Telemetry

BACKEND = "mongodb"
"""The name of this backend in a configuration."""

# driver -> (module here, class, package, extra)
_DRIVERS: dict[str, tuple[str, str, str, str]] = {
    "pymongo": ("pymongo_async", "PyMongoDriver", "pymongo", "pymongo"),
    "motor": ("motor", "MotorDriver", "motor", "motor"),
    "mongomock": ("mongomock", "MongomockDriver", "mongomock-motor", "mongomock"),
}


_LARGE_DOCUMENTS = frozenset({schema.RUN_EVENTS, schema.CHECKPOINTS})
"""An aggregation copies each document, so that lists of these take longer together than alone."""


def _driver_class(name: str) -> type[Driver]:
    module, class_name, package, extra = _DRIVERS[name]
    try:
        return getattr(importlib.import_module(f".drivers.{module}", __package__), class_name)
    except ImportError as error:
        raise MissingDependencyError(f"driver: {name}", package, extra) from error


def _saver_class() -> type[MongoCheckpointSaver]:
    try:
        return importlib.import_module(".checkpoints.saver", __package__).MongoCheckpointSaver
    except ImportError as error:
        raise MissingDependencyError(
            "storage.checkpointer()", "langgraph-checkpoint", "checkpointer"
        ) from error


def _telemetry_class() -> type[Telemetry]:
    return importlib.import_module(".telemetry.telemetry", __package__).Telemetry


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


class MongoStorage(Storage, Accounts, BulkRows, Checkpointing, Erasure, LimitedPayloads):
    """`Storage` on MongoDB, with accounts, checkpoints, rows in bulk and run events that can be followed.

    Building it opens no connection. It belongs to one event loop and process, those of its first call; calls
    from others raise `StorageError`. A `client` that is passed in is used with its own settings and never
    closed; `timeout_ms` (the client's own `timeoutMS` where it is not set) ends each call all the same.
    """

    def __init__(
        self,
        config: MongoConfig,
        *,
        client: Any = None,
        tracer_provider: Any = None,
        meter_provider: Any = None,
    ) -> None:
        """The providers are those of `telemetry: otel`; by default the process's own."""
        if not config.url and client is None and config.has_server:
            raise StorageConfigError(
                "storage configuration: `url` is missing: set it to a MongoDB URI, or to "
                f"`{EMBEDDED}` for a private server"
            )
        self._config = config = config if client is None else config_for_client(config, client)
        self._embedded = EmbeddedHold(config)
        driver_class = _driver_class(config.driver)
        self._makes_client = client is None
        self._driver = driver_class(self._driver_options, config.timeout_ms, client, groups=config.groups)
        self._runs = MongoRunStore(self._collection(schema.RUNS))
        self._feedback = MongoFeedbackStore(self._collection(schema.FEEDBACK))
        self._threads = MongoThreadStore(self._collection(schema.THREADS))
        self._run_events = self._event_store()
        self._users = MongoUserStore(self._collection(schema.USERS))
        self._bulk_rows = MongoBulkRows(self._collection, self._had_retention, self._server_time)
        self._saver: MongoCheckpointSaver | None = None
        self._opening_saver: asyncio.Task[MongoCheckpointSaver] | None = None
        self._telemetry: Telemetry | None = None
        if config.telemetry is None and (tracer_provider is not None or meter_provider is not None):
            raise StorageConfigError("a provider of OpenTelemetry needs the option `telemetry: otel`")
        if config.is_observed:
            self._telemetry = _telemetry_class()(self, tracer_provider, meter_provider)

    @classmethod
    def open(
        cls,
        config: MongoConfig | Mapping[str, Any] | str,
        *,
        client: Any = None,
        tracer_provider: Any = None,
        meter_provider: Any = None,
    ) -> Self:
        """The storage for a configuration, for hosts that want MongoDB and its types.

        `config` is a `MongoConfig`, a mapping of its fields, or a URL alone; `$NAME` values of the latter two
        are read from the environment. Opens no connection yet; use it with `async with`, or with `setup()`
        and `aclose()`. The providers are those of `telemetry: otel`; by default the process's own. Raises
        `StorageConfigError`.
        """
        if not isinstance(config, MongoConfig):
            options = {"url": config} if isinstance(config, str) else dict(config)
            if options.pop("backend", BACKEND) != BACKEND:
                raise StorageConfigError(f"MongoStorage.open() needs `backend: {BACKEND}`, or no `backend`")
            config = mongo_config(with_environment(options))
        return cls(config, client=client, tracer_provider=tracer_provider, meter_provider=meter_provider)

    def __repr__(self) -> str:
        url, database = redacted(self._config.url), self._config.database
        return f"MongoStorage({url!r}, database={database!r}, driver={self._driver.name!r})"

    @property
    def config(self) -> MongoConfig:
        return self._config

    @property
    def driver(self) -> Driver:
        """The driver that the stores use, for tools that inspect the server itself."""
        return self._driver

    @property
    def runs(self) -> MongoRunStore:
        return self._runs

    @property
    def feedback(self) -> MongoFeedbackStore:
        return self._feedback

    @property
    def threads(self) -> MongoThreadStore:
        return self._threads

    @property
    def run_events(self) -> MongoRunEventStore:
        return self._run_events

    @property
    def users(self) -> MongoUserStore:
        """Accounts, for hosts that store theirs here; the other stores do not use them."""
        return self._users

    @property
    def max_payload_bytes(self) -> int:
        return MAX_DOCUMENT_BYTES

    @property
    def database_identity(self) -> str | None:
        return self._config.database_identity

    def observer(self) -> StorageRunObserver:
        return StorageRunObserver(self._runs, self._threads)

    def export_rows(
        self, kind: RowKind, *, after: Key | None = None, batch_size: int = 1_000
    ) -> AsyncGenerator[Sequence[BulkRow]]:
        return self._bulk_rows.export_rows(kind, after=after, batch_size=batch_size)

    async def import_rows(
        self, kind: RowKind, rows: Sequence[BulkRow], *, overwrite: bool = False
    ) -> Imported:
        return await self._bulk_rows.import_rows(kind, rows, overwrite=overwrite)

    async def checkpointer(self) -> MongoCheckpointSaver:
        """LangGraph's saver on the same client and database, the same object at every call.

        Needs the extra `checkpointer`. The first call runs `setup()`, because the indexes are what makes
        concurrent writers safe. The saver is closed with the storage; see `checkpoints/saver.py`.
        """
        self._driver.check_open()
        self._driver.owner.check()
        if self._driver.name == "mongomock":
            raise StorageConfigError(
                "storage.checkpointer() needs a MongoDB server, which `driver: mongomock` does not have: use "
                "LangGraph's InMemorySaver with the mock"
            )
        if self._opening_saver is None or _has_failed(self._opening_saver):
            self._opening_saver = asyncio.create_task(self._open_saver())
        opening = self._opening_saver
        await asyncio.wait({opening})  # not awaited itself: a cancelled caller must not cancel the others
        if not _has_failed(opening):
            self._driver.check_open()
        elif opening.cancelled():
            raise StorageUnavailableError("the opening of the checkpoint saver was cancelled")
        try:
            return opening.result()
        except StorageError as error:
            raise copied(error) from error.__cause__  # the other callers get it too

    async def _open_saver(self) -> MongoCheckpointSaver:
        saver_class = await in_thread(_saver_class)
        await self.setup()
        self._driver.check_open()
        self._saver = saver_class(
            self._collection(schema.CHECKPOINTS),
            self._collection(schema.CHECKPOINTS, **READ_COMMITTED),
            retention=rules_of(self._config.checkpoints_keep_last, self._config.checkpoints_ttl_days),
        )
        if self._telemetry is not None:
            self._telemetry.observe_saver(self._saver)
        return self._saver

    async def purge_thread(self, thread_id: str) -> Erased:
        return await self.erasure().thread(thread_id)

    async def erase_user(self, user_id: str) -> Erased:
        return await self.erasure().user(user_id)

    async def count_thread(self, thread_id: str) -> Erased:
        return await self.erasure(Counting).thread(thread_id)

    async def count_user(self, user_id: str) -> Erased:
        return await self.erasure(Counting).user(user_id)

    def erasure(self, removal: type[Counting | Deleting] = Deleting, **options: Any) -> MongoErasure:
        """One erasure, or the count of one, for tools that report its progress."""
        data = ErasableData(
            runs=self._collection(schema.RUNS),
            feedback=self._collection(schema.FEEDBACK),
            threads=self._collection(schema.THREADS),
            users=self._collection(schema.USERS),
            run_events=self._collection(schema.RUN_EVENTS),
            checkpoints=self._collection(schema.CHECKPOINTS),
            erase_events=self._run_events.erase,
            erase_checkpoints=self._erase_checkpoints,
        )
        return MongoErasure(data, removal(data), **options)

    async def _erase_checkpoints(self, thread_id: str) -> int:
        collection = self._collection(schema.CHECKPOINTS)
        committed = self._collection(schema.CHECKPOINTS, **READ_COMMITTED)
        removed = await delete_thread(Collections(collection, committed), thread_id)
        if self._saver is not None:
            self._saver.forget_thread(thread_id)
        return removed.checkpoints

    # What is recorded.

    @property
    def telemetry(self) -> Telemetry | None:
        """What records, for exporters; None where the configuration asks for nothing."""
        return self._telemetry

    def metrics(self) -> StorageMetrics:
        """The counters of this storage; sends no command, and may be called from any thread.

        Raises `StorageConfigError` unless `metrics: true` or `telemetry: otel` is configured.
        """
        if self._telemetry is None:
            raise StorageConfigError("storage.metrics() needs the option `metrics: true`")
        return self._telemetry.snapshot()

    def statistics(self) -> dict[str, dict[str, GroupCounts]]:
        """How often calls shared a command since the storage was made: by collection and kind.

        The kinds are `find`, `insert` and `update`, of one document each; see "Groups" in the README of
        `mongodb/`. Sends no command.
        """
        return self._driver.group_counts()

    async def setup(self, *, views: bool = False, shard: bool = False) -> None:
        """Create collections, validators and indexes, and upgrade the documents of an older version.

        With `views` also those of `views.py`, and with `shard` the large collections are distributed over a
        cluster's shards; see `set_up_views` and `shard_collections`.

        Idempotent; many processes may call it at once, and an upgrade that was interrupted continues with the
        next call. Where everything is there, it only reads. Raises `StorageConfigError`, and changes nothing,
        for a database of a newer version that this release cannot read, where a collection of our names is
        not ours, where an index or duplicates make the server refuse an index of ours, and where there
        is something to upgrade while `upgrade_at_start` is false.
        """
        if shard:
            await self.check_sharded_cluster()
        await self._apply(upgrade=self._config.upgrade_at_start)
        if views:
            await self.set_up_views()
        if shard:
            await self.shard_collections()

    async def set_up_views(self) -> list[str]:
        """Create the views of `views.py`, or change those of an older release; the names of these.

        Idempotent. Raises `StorageConfigError`, and changes nothing, where a collection or a view that is not
        ours has one of the names, and for `driver: mongomock`, which has no views.
        """
        if not self._config.has_server:
            raise StorageConfigError("views need a MongoDB server, which `driver: mongomock` does not have")
        return await set_up_views(self._driver, self._config.collection_prefix)

    async def check_sharded_cluster(self) -> None:
        """Raise `StorageConfigError` unless the server is the `mongos` of a sharded cluster."""
        await sharding.check_sharded_cluster(self._driver)

    async def shard_collections(self) -> list[str]:
        """Distribute the large collections over a cluster's shards; the names of those that were not yet.

        Idempotent. Raises `StorageConfigError`, and changes nothing, without a `mongos`, and where one of
        them is sharded by another key.
        """
        return await sharding.shard_collections(self._driver, self._config.collection_prefix)

    async def upgrade(self, report: Report = unreported) -> None:
        """As `setup()`, whatever `upgrade_at_start` is; `report` is called as the work goes on.

        It may be interrupted at any point, also by a kill, and continued by the next call.
        """
        await self._apply(upgrade=True, report=report)

    async def _apply(self, *, upgrade: bool, report: Report = unreported) -> None:
        config = self._config
        await migrations.apply(
            self._driver,
            config.collection_prefix,
            config.database,
            config.retention,
            upgrade=upgrade,
            report=report,
        )

    async def plan_upgrade(self) -> UpgradePlan:
        """What `upgrade()` would do, and about how long it may take; changes nothing."""
        config = self._config
        return await upgrade_plan.plan_upgrade(
            self._driver, config.collection_prefix, config.database, config.retention
        )

    async def check_set_up(self) -> None:
        """Raise `StorageConfigError` unless `setup()` has set up the database; changes nothing."""
        config = self._config
        await migrations.check_set_up(self._driver, config.collection_prefix, config.database)

    async def ping(self) -> None:
        await self._driver.command({"ping": 1})

    async def inspect(self) -> inspection.SchemaReport:
        """Report which collections and indexes exist, differ or are missing; changes nothing."""
        config = self._config
        return await inspection.inspect(self._driver, config.collection_prefix, config.retention)

    async def aclose(self) -> None:
        """Write the accepted run events, close the clients and release the embedded server; idempotent.

        A client that the caller made stays open. It takes at most 2 s, or as long as accepted events are
        being stored (10 s at most); those that are not stored then are counted in the log, and their callers
        get the error. The last user of an embedded server waits for its stop, usually 1 s.
        """
        self._driver.owner.refuse_others()
        try:
            await asyncio.gather(self._run_events.aclose(), self._close_saver())
            await self._driver.close()
        finally:
            if self._telemetry is not None:
                self._telemetry.close()
            await self._embedded.release()

    async def _close_saver(self) -> None:
        if self._saver is not None:
            await self._saver.aclose()

    def _collection(self, name: str, **options: Any) -> Collection:
        return self._driver.collection(
            self._config.collection_prefix + name, options, shares_lists=name not in _LARGE_DOCUMENTS
        )

    async def _had_retention(self) -> bool:
        return await migrations.had_retention(self._collection(schema.VERSIONS))

    async def _server_time(self) -> datetime:
        return (await self._driver.command({"hello": 1}))["localTime"].replace(tzinfo=UTC)

    def _event_store(self) -> MongoRunEventStore:
        return MongoRunEventStore(
            self._collection(schema.RUN_EVENTS),
            self._collection(schema.RUN_EVENTS, **READ_COMMITTED),
            self._collection(schema.RUNS, **READ_COMMITTED),
            ThreadOwners(self._collection(schema.THREADS)),
            self._had_retention,
            lambda pipeline: changes(self._driver, pipeline),
            self._config.timeout_ms,
        )

    async def _driver_options(self) -> DriverOptions:
        config = self._config
        url = config.url
        if url == EMBEDDED and self._driver.name != "mongomock":
            url = await self._embedded.url()
        if self._telemetry is None or not (self._makes_client and config.has_server):
            return DriverOptions(url, config.database, config.timeout_ms)
        return DriverOptions(url, config.database, config.timeout_ms, self._telemetry.listeners())


@with_options(MongoConfig.model_fields)
def create_mongo_storage(options: Mapping[str, Any], *, client: Any = None) -> MongoStorage:
    """The backend `mongodb` of `create_storage`: validates the options and builds the storage."""
    return MongoStorage(mongo_config(options), client=client)
