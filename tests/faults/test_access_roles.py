"""The roles of `deerflow_mongo.mongodb.roles` suffice, under SCRAM and TLS, and every privilege is needed.

For each there is an operation here that fails without it, and that succeeds with it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import deerflow_mongo.mongodb
from deerflow_mongo import MongoStorage, StorageAccessError, ThreadMetaCreate
from deerflow_mongo.mongodb import roles, schema
from deerflow_mongo.mongodb.views import VIEWS
from deerflow_mongo.testing import (
    AccountContract,
    AdmissionContract,
    EventPageContract,
    FeedbackStoreContract,
    FollowingContract,
    NewAfterDeletionContract,
    RunEventContract,
    RunOwnershipContract,
    RunStoreContract,
    ThreadStoreContract,
    TokenUsageContract,
    case,
)
from deerflow_mongo.testing.contract import RUN
from deerflow_mongo.testing.methods import METHODS, OWNERSHIP_METHODS

from ..child_processes import run_child
from ..long_form import LONG_FORM
from .secured_server import SecuredServer, running_secured_server

DATABASE, APPLICATION, OPERATOR = "deerflow", "the application", "operator"

Privilege: TypeAlias = tuple[str, str]
"""Collection and action."""

_USERS = {
    roles.RUN_TIME_ROLE: APPLICATION,
    roles.SETUP_ROLE: OPERATOR,
    roles.VIEW_SETUP_ROLE: "view-operator",
    roles.REPORTS_ROLE: "charts",
}


@pytest.fixture(scope="module")
def secured() -> Iterator[SecuredServer]:
    with running_secured_server(DATABASE) as server:
        for role, user in _USERS.items():
            server.create_user(user, role)
        yield server


def _storage(secured: SecuredServer, role: str, **options: Any) -> MongoStorage:
    return MongoStorage.open({"url": secured.url_of(_USERS[role]), **options})


@pytest.fixture(scope="module")
def set_up(secured: SecuredServer) -> None:
    """The database as the operator sets it up; every test leaves it so."""
    asyncio.run(_set_up_all(secured))


async def _set_up_all(secured: SecuredServer) -> None:
    async with _storage(secured, roles.SETUP_ROLE):
        pass


class _AsTheRunTimeUser:
    @pytest.fixture
    def storage_config(self, secured: SecuredServer, set_up: None) -> Mapping[str, Any]:
        for name in roles.RUN_TIME:
            if name not in (roles.DATABASE, schema.VERSIONS):
                secured.database[name].delete_many({})
        return {"backend": "mongodb", "url": secured.url_of(APPLICATION)}


class TestRunsAndEventsAsTheRunTimeUser(_AsTheRunTimeUser, RunStoreContract, RunEventContract):
    """Every promise is checked elsewhere; here it is whether the privileges suffice."""


@pytest.mark.skipif(not LONG_FORM, reason="the long form")
class TestTheRestAsTheRunTimeUser(
    _AsTheRunTimeUser,
    TokenUsageContract,
    FeedbackStoreContract,
    ThreadStoreContract,
    EventPageContract,
    NewAfterDeletionContract,
    FollowingContract,
    AccountContract,
    RunOwnershipContract,
    AdmissionContract,
):
    """In the short form, every method once, below."""


@pytest.mark.usefixtures("set_up")
async def test_run_time_user_may_call_every_method(secured: SecuredServer) -> None:
    async with _storage(secured, roles.RUN_TIME_ROLE) as storage:
        for method in METHODS:
            with case(method.path):
                await method(storage)
        for method in OWNERSHIP_METHODS:
            with case(method.path):
                await method(storage)
                await storage.runs.delete(RUN, user_id=None)  # several methods create it


@pytest.mark.usefixtures("set_up")
@pytest.mark.parametrize("role", [roles.SETUP_ROLE, roles.RUN_TIME_ROLE])
async def test_either_user_gives_keys_to_the_accounts_of_an_older_release(
    secured: SecuredServer, role: str
) -> None:
    """Which needs the right to update accounts, and none to insert any."""
    users = secured.database[schema.USERS]
    async with _storage(secured, roles.RUN_TIME_ROLE) as storage:
        await storage.users.create("old", email="old@example.org")
    users.update_one({"_id": "old"}, {"$set": {"email": "Old@Example.org"}, "$unset": {"email_key": ""}})
    storage = _storage(secured, role)
    with _one_less(secured, role, (schema.USERS, "update")):
        await _assert_refused(storage.setup(), "update", schema.USERS)
    with _one_less(secured, role, (schema.USERS, "insert")) if role == roles.RUN_TIME_ROLE else nullcontext():
        await storage.setup()
    await storage.aclose()
    stored = users.find_one_and_delete({"_id": "old"})
    assert stored is not None
    assert stored["email_key"] == "old@example.org"


# -- one privilege less ----------------------------------------------------------------------------


def _without(role: str, privilege: Privilege) -> roles.Actions:
    collection, action = privilege
    actions = dict(roles.ROLES[role])
    left = tuple(allowed for allowed in actions.pop(collection) if allowed != action)
    return {**actions, collection: left} if left else actions


def _privileges(role: str) -> list[Privilege]:
    return [(name, action) for name, actions in roles.ROLES[role].items() for action in actions]


_EVENT: dict[str, Any] = {
    "thread_id": "t",
    "run_id": "r",
    "event_type": "said",
    "category": "message",
}
_ACCOUNT: dict[str, Any] = {
    "email": "a@example.org",
    "password_hash": None,
    "system_role": "user",
    "oauth_provider": None,
    "oauth_id": None,
    "needs_setup": False,
    "token_version": 0,
}
_CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}
_CHECKPOINT: Any = {
    "v": 1,
    "id": "1",
    "ts": "2026-04-22T03:26:38+00:00",
    "channel_values": {},
    "channel_versions": {},
    "versions_seen": {},
}


async def _put_checkpoint(storage: MongoStorage) -> None:
    await (await storage.checkpointer()).aput(_CONFIG, _CHECKPOINT, {}, {})


async def _put_writes(storage: MongoStorage) -> None:
    await (await storage.checkpointer()).aput_writes(_CONFIG, [("channel", 1)], "task")


async def _delete_checkpoints(storage: MongoStorage) -> None:
    await (await storage.checkpointer()).adelete_thread("t")


async def _follow(storage: MongoStorage) -> None:
    following = storage.run_events.follow("t")
    try:
        await anext(following)
    finally:
        await following.aclose()


Operation: TypeAlias = tuple[str, Callable[[MongoStorage], Awaitable[object]]]
"""The server's command, and a method that sends it."""

_SETUP: Operation = ("listIndexes", lambda s: s.setup())
_VOTE: dict[str, Any] = {"run_id": "r", "thread_id": "t", "rating": 1, "user_id": "alice"}

RUN_TIME_OPERATIONS: Mapping[Privilege, Operation] = {
    (roles.DATABASE, "listCollections"): ("listCollections", lambda s: s.setup()),
    (roles.DATABASE, "find"): ("find", lambda s: s.runs.get("r", user_id=None)),
    (roles.DATABASE, "changeStream"): ("watch", _follow),
    (schema.RUNS, "insert"): ("insert", lambda s: s.runs.create("new", "t", user_id=None)),
    (schema.RUNS, "update"): ("update", lambda s: s.runs.update_status("r", "running")),
    (schema.RUNS, "remove"): ("delete", lambda s: s.runs.delete("r", user_id=None)),
    (schema.RUNS, "listIndexes"): _SETUP,
    (schema.FEEDBACK, "insert"): (
        "insert",
        lambda s: s.feedback.create(run_id="r", thread_id="t", rating=1),
    ),
    (schema.FEEDBACK, "update"): ("findAndModify", lambda s: s.feedback.upsert(**_VOTE)),
    (schema.FEEDBACK, "remove"): ("delete", lambda s: s.feedback.delete("f")),
    (schema.FEEDBACK, "listIndexes"): _SETUP,
    (schema.THREADS, "insert"): (
        "insert",
        lambda s: s.threads.create_thread_meta(ThreadMetaCreate(thread_id="new")),
    ),
    (schema.THREADS, "update"): ("update", lambda s: s.threads.update_thread_meta("t", status="busy")),
    (schema.THREADS, "remove"): ("delete", lambda s: s.threads.delete_thread("t")),
    (schema.THREADS, "listIndexes"): _SETUP,
    (schema.RUN_EVENTS, "insert"): ("insert", lambda s: s.run_events.put(**_EVENT)),
    (schema.RUN_EVENTS, "update"): ("update", lambda s: s.run_events.delete_by_thread("t")),
    (schema.RUN_EVENTS, "listIndexes"): _SETUP,
    (schema.USERS, "insert"): ("update", lambda s: s.users.create("new", email="new@example.org")),
    (schema.USERS, "update"): ("update", lambda s: s.users.update("u", **_ACCOUNT)),
    (schema.USERS, "listIndexes"): _SETUP,
    (schema.VERSIONS, "listIndexes"): _SETUP,
    (schema.CHECKPOINTS, "insert"): ("insert", _put_checkpoint),
    (schema.CHECKPOINTS, "update"): ("update", _put_checkpoint),
    (schema.CHECKPOINTS, "remove"): ("delete", _delete_checkpoints),
    (schema.CHECKPOINTS, "listIndexes"): _SETUP,
}


def _remove_validator(secured: SecuredServer, name: str) -> None:
    secured.database.command({"collMod": name, "validator": {}})


def _drop_collection(secured: SecuredServer, name: str) -> None:
    secured.database[name].drop()


def _drop_an_index(secured: SecuredServer, name: str) -> None:
    [index, *_] = [found for found in secured.database[name].index_information() if found != "_id_"]
    secured.database[name].drop_index(index)


def _begin_an_upgrade(secured: SecuredServer, name: str) -> None:
    """With one old document, whose fields do not matter."""
    secured.database[schema.VERSIONS].update_one({}, {"$set": {"migrating_from": 1}})
    secured.database[name].delete_many({})
    secured.database[name].insert_one({"schema_version": 1}, bypass_document_validation=True)


def _remove_the_version(secured: SecuredServer, _: str) -> None:
    secured.database[schema.VERSIONS].delete_many({})


def _nothing(secured: SecuredServer, _: str) -> None:
    """The database as it is."""


Change: TypeAlias = Callable[[SecuredServer, str], None]

_CHANGES: Mapping[str, tuple[str, Change]] = {
    "listCollections": ("listCollections", _nothing),
    "listIndexes": ("listIndexes", _nothing),
    "find": ("find", _remove_validator),
    "createCollection": ("create", _drop_collection),
    "collMod": ("collMod", _remove_validator),
    "createIndex": ("createIndexes", _drop_an_index),
    "update": ("update", _begin_an_upgrade),
    "dropIndex": ("dropIndexes", _begin_an_upgrade),
}
"""For each action the server's command, and the state of a database in which `setup()` sends it."""

_CHANGES_OF: Mapping[Privilege, tuple[str, Change]] = {
    (schema.VERSIONS, "find"): ("find", _nothing),
    (schema.VERSIONS, "insert"): ("findAndModify", _remove_the_version),
    (schema.VERSIONS, "update"): ("findAndModify", _remove_the_version),
}


async def _assert_refused(call: Awaitable[object], command: str, collection: str) -> None:
    """By an error that names the command and the collection."""
    names = r"(\.\w+)?" if collection == roles.DATABASE else rf"\.{collection}"
    with pytest.raises(StorageAccessError) as refused:
        await call
    assert re.search(rf"`{command}` on `{DATABASE}{names}`", str(refused.value)), str(refused.value)


@contextmanager
def _one_less(secured: SecuredServer, role: str, privilege: Privilege) -> Generator[None]:
    """Inside, the role lacks this privilege."""
    with case(role, *privilege):
        secured.set_privileges(role, _without(role, privilege))
        try:
            yield
        finally:
            secured.set_privileges(role, roles.ROLES[role])


@pytest.mark.usefixtures("set_up")
async def test_run_time_user_needs_every_privilege(secured: SecuredServer) -> None:
    role = roles.RUN_TIME_ROLE
    assert sorted(RUN_TIME_OPERATIONS) == sorted(_privileges(role))
    async with _storage(secured, role) as storage:
        await _put_checkpoint(storage)
        await _put_writes(storage)
        for privilege, (command, operation) in RUN_TIME_OPERATIONS.items():
            with _one_less(secured, role, privilege):
                await _assert_refused(operation(storage), command, privilege[0])


@pytest.mark.usefixtures("set_up")
async def test_operator_needs_every_privilege(secured: SecuredServer) -> None:
    """And what fails without one succeeds with it."""
    role = roles.SETUP_ROLE
    async with _storage(secured, role) as storage:
        for privilege in _privileges(role):
            name, action = privilege
            command, change = _CHANGES_OF.get(privilege) or _CHANGES[action]
            change(secured, name)
            with _one_less(secured, role, privilege):
                await _assert_refused(storage.setup(), command, name)
            await storage.setup()


@pytest.mark.usefixtures("set_up")
async def test_operator_changes_retention_and_the_run_time_user_opens_the_database_after_it(
    secured: SecuredServer,
) -> None:
    for days in (30, 7, None):
        async with _storage(secured, roles.SETUP_ROLE, run_events_ttl_days=days) as storage:
            assert (await storage.inspect()).retention_days.get("run_events") == days
        async with _storage(secured, roles.RUN_TIME_ROLE) as storage:
            assert (await storage.inspect()).retention_days.get("run_events") == days


@pytest.mark.usefixtures("set_up")
async def test_run_time_user_cannot_set_up_a_database(secured: SecuredServer) -> None:
    _drop_an_index(secured, schema.RUNS)
    storage = _storage(secured, roles.RUN_TIME_ROLE)
    await _assert_refused(storage.setup(), "createIndexes", schema.RUNS)
    await storage.aclose()
    await _set_up_all(secured)


@pytest.mark.usefixtures("set_up")
async def test_views_are_created_and_read_with_their_own_roles(secured: SecuredServer) -> None:
    async with aclosing(_storage(secured, roles.SETUP_ROLE)) as storage:
        with pytest.raises(StorageAccessError, match="`create`"):
            await storage.set_up_views()
    async with aclosing(_storage(secured, roles.VIEW_SETUP_ROLE)) as storage:
        assert len(await storage.set_up_views()) == len(VIEWS)
        await storage.driver.command({"collMod": VIEWS[0].name, "viewOn": schema.RUNS, "pipeline": _OLDER})
        assert await storage.set_up_views() == [VIEWS[0].name]
    async with aclosing(_storage(secured, roles.REPORTS_ROLE)) as reports:
        for view in VIEWS:
            assert await reports.driver.collection(view.name).aggregate([{"$limit": 1}]) is not None
        with pytest.raises(StorageAccessError):
            await reports.driver.collection(schema.RUNS).find_one({})


_OLDER: list[dict[str, Any]] = [{"$match": {"$comment": "deerflow-mongo, view version 1"}}]


# -- what operators read ---------------------------------------------------------------------------

_README = Path(deerflow_mongo.mongodb.__file__).with_name("README.md")


def _table() -> str:
    lines = ["| collection | run time | set-up |", "| --- | --- | --- |"]
    for name in roles.RUN_TIME:
        allowed = (", ".join(role[name]) for role in (roles.RUN_TIME, roles.SETUP))
        lines.append(f"| {f'`{name}`' if name else '(the whole database)'} | {' | '.join(allowed)} |")
    return "\n".join(lines) + "\n"


def test_readme_has_the_exact_roles() -> None:
    [found] = re.findall(
        r"<!-- roles: begin -->\n(.*?)<!-- roles: end -->", _README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found == _table()


def test_commands_for_mongosh_are_printed() -> None:
    printed = run_child([sys.executable, "-m", "deerflow_mongo.mongodb.roles", "my_database", "p_"])
    assert printed.returncode == 0, printed.stderr
    found = re.findall(
        r'^db\.getSiblingDB\("my_database"\)\.runCommand\((.*?)\)$', printed.stdout, re.MULTILINE | re.DOTALL
    )
    assert [json.loads(text) for text in found] == [
        roles.create_role(name, "my_database", "p_") for name in roles.ROLES
    ]
    refused = run_child([sys.executable, "-m", "deerflow_mongo.mongodb.roles"])
    assert (refused.returncode, refused.stderr.count("usage:")) == (2, 1)
