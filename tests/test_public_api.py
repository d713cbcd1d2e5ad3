"""The public names: what `dir`, `help` and a vendored copy of the package show."""

from __future__ import annotations

import inspect
import shutil
import sys
import typing
from pathlib import Path

import deerflow_mongo
from deerflow_mongo import (
    AUTO,
    Accounts,
    Checkpointing,
    FeedbackStore,
    Following,
    MongoStorage,
    RunEventStore,
    RunStore,
    Storage,
    ThreadStore,
    UserId,
    UserStore,
)

from .child_processes import run_child

PACKAGE = Path(deerflow_mongo.__file__).parent


def storage() -> MongoStorage:
    return MongoStorage.open({"driver": "mongomock"})


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert dir(deerflow_mongo) == sorted([*deerflow_mongo.__all__, "__version__"])
    for name in dir(deerflow_mongo):
        assert getattr(deerflow_mongo, name) is not None


def test_storage_and_its_stores_inherit_the_protocols() -> None:
    opened = storage()
    assert isinstance(opened, Storage)
    assert isinstance(opened, Accounts)
    assert isinstance(opened, Checkpointing)
    assert isinstance(opened.run_events, Following)
    for protocol, store in (
        (RunStore, opened.runs),
        (FeedbackStore, opened.feedback),
        (ThreadStore, opened.threads),
        (RunEventStore, opened.run_events),
        (UserStore, opened.users),
    ):
        assert protocol in type(store).__mro__


def test_help_of_a_method_shows_the_contract() -> None:
    opened = storage()
    for method, text in (
        (opened.runs.create, "Raises `RunExistsError` for a known `run_id`"),
        (opened.feedback.upsert, "Any number of concurrent calls leave one vote"),
        (opened.threads.ensure_thread, "Raises `ThreadAccessError`"),
        (opened.run_events.put_batch, "those of one thread under consecutive numbers"),
        (opened.users.get_by_email, "whatever the case of its letters"),
    ):
        assert text in (inspect.getdoc(method) or "")  # what `help` and an editor show


def test_user_id_is_a_closed_type_and_the_default_of_reads() -> None:
    assert set(typing.get_args(UserId)) == {str, type(AUTO), type(None)}
    assert inspect.signature(storage().runs.get).parameters["user_id"].default is AUTO


def test_vendored_copy_finds_its_backend_without_metadata(tmp_path: Path) -> None:
    """Under another name, with no distribution installed for it."""
    target = tmp_path / "vendor" / "storage"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "from vendor.storage import create_storage; import sys; "
        "print(create_storage({'backend': 'mongodb', 'driver': 'mongomock'})); "
        "print(create_storage('mongodb://127.0.0.1:1')); "
        "print(create_storage('memory')); "
        "assert not [name for name in sys.modules if name.startswith('deerflow_mongo')]"
    )
    done = run_child([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MongoStorage(") == 2
    assert done.stdout.endswith("MemoryStorage()\n")
