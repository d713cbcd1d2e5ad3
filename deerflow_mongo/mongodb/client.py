"""What a caller's client decides of a storage's configuration, and which clients cannot serve a storage."""

from __future__ import annotations

from typing import Any, cast

from pymongo.errors import ConfigurationError

from ..contract.errors import StorageConfigError
from .config import MongoConfig

# Module and class of a caller's client -> its driver. The mock's client claims to be Motor's, so it is first.
_CLIENT_CLASSES = {
    ("mongomock_motor", "AsyncMongoMockClient"): "mongomock",
    ("pymongo.asynchronous.mongo_client", "AsyncMongoClient"): "pymongo",
    ("motor.motor_asyncio", "AsyncIOMotorClient"): "motor",
}


def _driver_of(client: Any) -> str:
    bases = [(base.__module__, base.__name__) for base in type(client).__mro__]
    for known, driver in _CLIENT_CLASSES.items():
        if known in bases:
            return driver
    kind = cast("type[object]", type(client))
    hint = " (pass its client, and name the database with `database`)" if _is_part_of_client(client) else ""
    raise StorageConfigError(
        f"client is a {kind.__module__}.{kind.__qualname__}; expected an AsyncMongoClient of PyMongo, an "
        f"AsyncIOMotorClient or an AsyncMongoMockClient{hint}"
    )


def _is_part_of_client(value: Any) -> bool:
    """Whether it is a driver's database or collection."""
    return any(base.__name__.endswith(("Database", "Collection")) for base in type(value).__mro__)


def config_for_client(config: MongoConfig, client: Any) -> MongoConfig:
    """The configuration of a storage on a caller's client, which decides what the configuration leaves open.

    Raises `StorageConfigError` for a client that cannot serve a storage.
    """
    driver, given = _driver_of(client), config.model_fields_set
    if "driver" in given and config.driver != driver:
        raise StorageConfigError(
            f"`driver` is {config.driver} and client is one of {driver}: leave `driver` out, or pass the "
            "other client"
        )
    changes: dict[str, Any] = {"driver": driver}
    if driver != "mongomock":
        if not client.write_concern.acknowledged:
            raise StorageConfigError(
                "client has w=0, which acknowledges no write, so that no error would be reported: remove it"
            )
        state = cast("dict[str, Any]", vars(client if driver == "pymongo" else client.delegate))
        if state.get("_closed"):
            raise StorageConfigError("client is closed: pass one that is open")
        if "timeout_ms" not in given and client.options.timeout:
            changes["timeout_ms"] = max(1, round(client.options.timeout * 1000))
    if "database" not in given:
        name = _default_database_of(client)
        if name is not None:
            changes["database"] = name
    return config.model_copy(update=changes)


def _default_database_of(client: Any) -> str | None:
    try:
        return client.get_default_database().name
    except ConfigurationError:
        return None
