"""A SQL database that is only read: SQLite in short reads, PostgreSQL in one read-only transaction.

Blocking calls of a synchronous driver, each made in a thread, one at a time. Which tables there are to read
is not known here.
"""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from ...contract.errors import MissingDependencyError, StorageConfigError, StorageUnavailableError
from ...contract.factory import with_environment
from ...mongodb.drivers.threads import in_thread
from .. import sqlite_files
from ..sources import printable

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from .queries import Query

EXTRA: Final = "transfer"
EXPECTED: Final = "sqlite:///file (sqlite:////file for an absolute path) or postgresql://..."
CONNECT_TIMEOUT_S: Final = 15
FETCH_ROWS: Final = 200
"""How many rows PostgreSQL sends at once."""

_LIBRARIES: Final = ("sqlalchemy", "sqlite3", "psycopg")
"""Their errors are about the source."""

_Result = TypeVar("_Result")
SqlRow = Sequence[Any]


class Page(NamedTuple):
    """Some rows of a query; `is_last` where the query has no more."""

    rows: list[SqlRow]
    is_last: bool


def _imported(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError("deerflow-mongo transfer", package, EXTRA) from error


async def open_database(url: str, *, option: str = "--from") -> SqlDatabase:
    """The database at a URL; `$NAME` is read from the environment. Raises `StorageConfigError`."""
    url = with_environment({option: url})[option].strip()
    scheme, separator, _ = url.partition("://")
    dialect = _DIALECTS.get(scheme.lower().partition("+")[0]) if separator else None
    if dialect is None:
        given = f"{scheme}://..." if separator and re.fullmatch(r"[\w+.-]+", scheme) else "no URL"
        raise StorageConfigError(f"{option} is {given}; expected {EXPECTED}")
    _imported("sqlalchemy", "sqlalchemy")
    database = SqlDatabase(dialect(url, option))
    await database.run(lambda _: None)  # connects, so that a wrong URL is an error at once
    return database


class Dialect(Protocol):
    """What differs between the two databases."""

    name: str
    place: str
    """The URL without a login and options."""

    def engine(self) -> Engine: ...

    def begin(self, connection: Connection) -> None:
        """Prepare a new connection for reading."""
        ...

    def schema_state(self, connection: Connection) -> object:
        """What changes when the schema does; None where the transaction fixes it."""
        ...

    def needs_new_connection(self) -> bool: ...

    def size_bytes(self, connection: Connection) -> int: ...


class SqliteDialect:
    name = "sqlite"

    def __init__(self, url: str, option: str) -> None:
        self._file: Path = sqlite_files.file_of(url, option)
        self.place = printable(url)
        self._opened: sqlite_files.OpenedFile | None = None

    def engine(self) -> Engine:
        sqlalchemy = _imported("sqlalchemy", "sqlalchemy")
        return sqlalchemy.create_engine("sqlite://", creator=self._connect, poolclass=sqlalchemy.NullPool)

    def _connect(self) -> Any:
        self._opened = sqlite_files.open_file(self._file)
        return self._opened.connection

    def begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_master")

    def schema_state(self, connection: Connection) -> object:
        return connection.exec_driver_sql("PRAGMA schema_version").scalar()

    def needs_new_connection(self) -> bool:
        """Whether a host has begun to write to the file, which was opened as one that nobody writes to."""
        return self._opened is not None and self._opened.is_outdated()

    def size_bytes(self, connection: Connection) -> int:
        return sqlite_files.size_bytes(self._file)


class PostgresqlDialect:
    name = "postgresql"

    def __init__(self, url: str, option: str) -> None:
        self._psycopg = _imported("psycopg", "psycopg[binary]")
        self._url = re.sub(r"^\w+(\+\w+)?://", "postgresql://", url)
        self.place = printable(url)
        try:
            is_valid = bool(self._psycopg.conninfo.conninfo_to_dict(self._url))
        except self._psycopg.ProgrammingError:  # its text may quote a password
            is_valid = False
        if not is_valid or urlsplit(self._url).netloc.count("@") > 1:
            raise StorageConfigError(
                f"{option} is no URL of PostgreSQL: special characters of a login must be percent-encoded"
            ) from None

    def engine(self) -> Engine:
        sqlalchemy = _imported("sqlalchemy", "sqlalchemy")
        return sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            poolclass=sqlalchemy.NullPool,
            isolation_level="REPEATABLE READ",
        )

    def _connect(self) -> Any:
        connection = self._psycopg.connect(
            self._url,
            connect_timeout=CONNECT_TIMEOUT_S,
            prepare_threshold=None,  # works behind a pooler too
            application_name="deerflow-mongo transfer",
        )
        loader = importlib.import_module("psycopg.types.string").TextLoader
        for name in ("json", "jsonb"):  # as SQLite has them, so that both are decoded by one function
            connection.adapters.register_loader(name, loader)
        return connection

    def begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")

    def schema_state(self, connection: Connection) -> object:
        return None

    def needs_new_connection(self) -> bool:
        return False

    def size_bytes(self, connection: Connection) -> int:
        return connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0


_DIALECTS: Final[dict[str, type[SqliteDialect | PostgresqlDialect]]] = {
    "sqlite": SqliteDialect,
    "postgresql": PostgresqlDialect,
    "postgres": PostgresqlDialect,
}
"""The first part of a URL's scheme -> its database."""


class SqlDatabase:
    """A database that is read by one call at a time, each in a thread. Raises `StorageUnavailableError`."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._schema: object = None
        self._lock = asyncio.Lock()

    @property
    def dialect(self) -> str:
        return self._dialect.name

    @property
    def place(self) -> str:
        return self._dialect.place

    async def run(self, call: Callable[[Connection], _Result]) -> _Result:
        """What `call` returns for the connection. A cancelled caller waits for the call's end."""
        async with self._lock:
            work = asyncio.ensure_future(in_thread(lambda: self._call(call)))
            try:
                return await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait({work})
                if not work.cancelled():
                    work.exception()
                raise

    def _call(self, call: Callable[[Connection], _Result]) -> _Result:
        dialect = self._dialect
        with self._explained():
            return sqlite_files.read_current(
                lambda: call(self._connected()), dialect.needs_new_connection, self._disconnect, self.place
            )

    def _connected(self) -> Connection:
        if self._connection is None:
            engine = self._engine = self._engine or self._dialect.engine()
            self._connection = engine.connect()
            self._dialect.begin(self._connection)
        return self._connection

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in _LIBRARIES:
                raise
            cause = getattr(error, "orig", None) or error
            text = " ".join(str(cause).split()) or type(cause).__name__
            raise StorageUnavailableError(f"{self.place} cannot be read: {text}") from error

    async def page(self, query: Query, *, max_rows: int, max_bytes: int) -> Page:
        """The first rows of a query, as many as fit; at least one, if there is one."""
        return await self.run(lambda connection: self._page(connection, query, max_rows, max_bytes))

    def _page(self, connection: Connection, query: Query, max_rows: int, max_bytes: int) -> Page:
        rows: list[SqlRow] = []
        size_bytes = 0
        streamed = connection.execution_options(stream_results=True, max_row_buffer=FETCH_ROWS)
        with closing(streamed.execute(query.limit(max_rows))) as result:
            for row in result:
                rows.append(row)
                size_bytes += sum(len(value) for value in row if isinstance(value, str | bytes))
                if size_bytes >= max_bytes:
                    break
        self._check_schema(connection)
        return Page(rows, len(rows) < max_rows and size_bytes < max_bytes)

    async def all_rows(self, query: Query) -> list[SqlRow]:
        """All rows of a query that has few."""

        def read(connection: Connection) -> list[SqlRow]:
            rows: list[SqlRow] = list(connection.execute(query))
            self._check_schema(connection)
            return rows

        return await self.run(read)

    async def tables(self) -> dict[str, frozenset[str]]:
        """The tables and their columns. From now on, a change of the schema is an error of every read."""

        def read(connection: Connection) -> dict[str, frozenset[str]]:
            import sqlalchemy

            inspector = sqlalchemy.inspect(connection)
            self._schema = self._dialect.schema_state(connection)
            return {
                name: frozenset(column["name"] for column in inspector.get_columns(name))
                for name in inspector.get_table_names()
            }

        return await self.run(read)

    async def has_unique_key(self, table: str, columns: Sequence[str]) -> bool:
        """Whether the database refuses a second row with these values."""

        def read(connection: Connection) -> bool:
            import sqlalchemy

            inspector = sqlalchemy.inspect(connection)
            constraints = [each["column_names"] for each in inspector.get_unique_constraints(table)]
            partial = f"{self.dialect}_where"
            indexes = [
                each["column_names"]
                for each in inspector.get_indexes(table)
                if each["unique"] and partial not in each.get("dialect_options", {})
            ]
            return any(set(names) == set(columns) for names in (*constraints, *indexes))

        return await self.run(read)

    def _check_schema(self, connection: Connection) -> None:
        if self._schema is not None and self._dialect.schema_state(connection) != self._schema:
            raise StorageUnavailableError(
                f"{self.place} has changed its schema while it was being read: repeat the command when the "
                "upgrade of DeerFlow has ended"
            )

    async def size_bytes(self) -> int:
        """The size of the whole database, indexes and checkpoints included."""
        return await self.run(self._dialect.size_bytes)

    async def aclose(self) -> None:
        async with self._lock:
            await in_thread(self._disconnect)
            if self._engine is not None:
                self._engine.dispose()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
