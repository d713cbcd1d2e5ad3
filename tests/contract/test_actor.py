"""The actor: the package's own context variable, and DeerFlow's where it is loaded."""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from deerflow_mongo import ActorMissingError
from deerflow_mongo.contract.actor import (
    AUTO,
    ActorContext,
    BoundActor,
    bind_actor_context,
    current_actor,
    get_actor_context,
    reset_actor_context,
    resolve_user_id,
)

from ..child_processes import run_child

SEED_HOST = """
from __future__ import annotations
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

@dataclass(frozen=True)
class ActorContext:
    user_id: str | None = None

_current: ContextVar[ActorContext | None] = ContextVar("actor", default=None)

class _Auto:
    pass

AUTO: Final = _Auto()

def bind_actor_context(actor):
    return _current.set(actor)

def reset_actor_context(token):
    _current.reset(token)

def get_actor_context():
    return _current.get()

def resolve_user_id(value, *, method_name="repository method"):
    return str(_current.get().user_id) if isinstance(value, _Auto) else value
"""

RELEASED_HOST = """
from contextvars import ContextVar

_current_user = ContextVar("user", default=None)

class _AutoSentinel:
    pass

AUTO = _AutoSentinel()

def set_current_user(user):
    return _current_user.set(user)

def reset_current_user(token):
    _current_user.reset(token)

def get_current_user():
    return _current_user.get()

def resolve_user_id(value, *, method_name="repository method"):
    return str(_current_user.get().id) if isinstance(value, _AutoSentinel) else value
"""

HEAVY = "import sys\nsys.modules['the_agent_framework'] = sys\n"


def _host(folder: Path, module: str, text: str) -> None:
    """A DeerFlow whose packages, when imported, would pull in an agent framework."""
    runtime = folder / "deerflow" / "runtime"
    runtime.mkdir(parents=True)
    for package in (folder / "deerflow", runtime):
        (package / "__init__.py").write_text(HEAVY, encoding="utf-8")
    (runtime / f"{module}.py").write_text(text, encoding="utf-8")


def _run(folder: Path, code: str) -> None:
    """The code in an interpreter that has no host loaded yet."""
    done = run_child([sys.executable, "-c", textwrap.dedent(code)], env={"PYTHONPATH": str(folder)})
    assert done.returncode == 0, done.stderr


async def test_auto_is_the_bound_actor_and_each_task_has_its_own() -> None:
    async def resolved(user: str) -> object:
        bind_actor_context(ActorContext(user_id=user))
        await asyncio.sleep(0)
        return resolve_user_id(AUTO)

    users = [f"user-{number}" for number in range(20)]
    assert await asyncio.gather(*map(resolved, users)) == users
    assert get_actor_context() is None


@pytest.mark.parametrize("actor", [None, ActorContext(), ActorContext(user_id=None)])
def test_auto_without_an_id_raises_an_error_that_names_the_method(actor: object) -> None:
    token = bind_actor_context(actor)
    try:
        with pytest.raises(
            ActorMissingError, match=r"^Store\.get called with user_id=AUTO but no actor context is set"
        ):
            resolve_user_id(AUTO, method_name="Store.get")
    finally:
        reset_actor_context(token)


def test_id_is_converted_to_text_and_an_empty_id_is_a_user() -> None:
    for user_id, expected in ((5, "5"), ("", "")):
        token = bind_actor_context(SimpleNamespace(id=user_id))
        assert resolve_user_id(AUTO) == expected
        assert current_actor() == BoundActor(expected)
        reset_actor_context(token)
    assert current_actor() is None


def test_auto_stays_itself_when_copied() -> None:
    assert copy.deepcopy(AUTO) is AUTO
    assert pickle.loads(pickle.dumps(AUTO)) is AUTO  # noqa: S301 - our own marker
    assert repr(AUTO) == "<AUTO>"


HOSTS = {
    "actor_context": (SEED_HOST, "bind_actor_context", "reset_actor_context", "get_actor_context"),
    "user_context": (RELEASED_HOST, "set_current_user", "reset_current_user", "get_current_user"),
}


@pytest.mark.parametrize("first", ["deerflow_mongo", "host"])
@pytest.mark.parametrize("module", HOSTS)
def test_both_sides_see_the_actor_whichever_is_imported_first(
    tmp_path: Path, module: str, first: str
) -> None:
    text, bind, reset, get = HOSTS[module]
    _host(tmp_path, module, text)
    _run(
        tmp_path,
        f"""
        import {first if first != "host" else "deerflow.runtime." + module}
        import deerflow_mongo as ours
        import deerflow.runtime.{module} as host

        class User:
            id = user_id = 7

        token = host.{bind}(User())
        assert ours.resolve_user_id(ours.AUTO) == ours.resolve_user_id(host.AUTO) == "7"
        inner = ours.bind_actor_context(ours.ActorContext(user_id="bob"))
        assert host.{get}().id == host.{get}().user_id == "bob"
        assert ours.resolve_user_id(host.AUTO) == "bob"
        nobody = ours.bind_actor_context(None)
        assert host.{get}() is None and ours.get_actor_context() is None
        ours.reset_actor_context(nobody)
        ours.reset_actor_context(inner)
        assert ours.resolve_user_id(ours.AUTO) == "7"
        host.{reset}(token)
        for auto in (ours.AUTO, host.AUTO):
            try:
                ours.resolve_user_id(auto, method_name="m")
            except ours.ActorMissingError as error:
                assert "m called with user_id=AUTO but no actor context is set" in str(error)
            else:
                raise AssertionError
        """,
    )


@pytest.mark.parametrize("module", HOSTS)
def test_actor_bound_before_the_host_is_loaded_stays_bound(tmp_path: Path, module: str) -> None:
    _host(tmp_path, module, HOSTS[module][0])
    _run(
        tmp_path,
        f"""
        import deerflow_mongo as ours
        token = ours.bind_actor_context(ours.ActorContext(user_id="ann"))
        import deerflow.runtime.{module} as host
        assert ours.resolve_user_id(ours.AUTO) == ours.resolve_user_id(host.AUTO) == "ann"
        nobody = ours.bind_actor_context(None)
        assert ours.get_actor_context() is None
        ours.reset_actor_context(nobody)
        assert ours.resolve_user_id(ours.AUTO) == "ann"
        ours.reset_actor_context(token)
        assert ours.get_actor_context() is None
        """,
    )


@pytest.mark.parametrize("module", ["actor_context", "user_context"])
def test_no_file_of_the_host_is_imported_or_executed(tmp_path: Path, module: str) -> None:
    _host(tmp_path, module, "raise RuntimeError('executed')")
    _run(
        tmp_path,
        """
        import sys
        hooks = list(sys.meta_path)
        import deerflow_mongo as ours
        token = ours.bind_actor_context(ours.ActorContext(user_id="ann"))
        assert ours.resolve_user_id(ours.AUTO) == "ann"
        ours.reset_actor_context(token)
        assert sys.meta_path == hooks
        assert not [name for name in sys.modules if name.split(".")[0] in ("deerflow", "the_agent_framework")]
        """,
    )


def test_a_host_module_without_an_actor_is_ignored(tmp_path: Path) -> None:
    """While DeerFlow's module is being imported it has no functions yet."""
    _host(tmp_path, "user_context", "import deerflow_mongo as ours\nassert ours.get_actor_context() is None")
    _run(
        tmp_path,
        """
        import deerflow.runtime.user_context
        import deerflow_mongo as ours
        token = ours.bind_actor_context(ours.ActorContext(user_id="ann"))
        assert ours.resolve_user_id(ours.AUTO) == "ann"
        ours.reset_actor_context(token)
        assert ours.get_actor_context() is None
        """,
    )
