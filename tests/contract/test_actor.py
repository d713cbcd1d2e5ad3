"""The actor: our own context variable, and the host's where DeerFlow is importable."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deerflow_mongo.contract.actor import (
    AUTO,
    ActorContext,
    bind_actor_context,
    current_user_id,
    get_actor_context,
    reset_actor_context,
    resolve_user_id,
)

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
calls = []

def bind_actor_context(actor):
    return _current.set(actor)

def reset_actor_context(token):
    _current.reset(token)

def get_actor_context():
    return _current.get()

def resolve_user_id(value, *, method_name="repository method"):
    calls.append(method_name)
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
    done = subprocess.run(  # noqa: S603 - our own code, in an interpreter without a host loaded yet
        [sys.executable, "-c", textwrap.dedent(code)],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
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
def test_auto_without_an_id_is_an_error_that_names_the_method(actor: object) -> None:
    token = bind_actor_context(actor)
    try:
        with pytest.raises(
            RuntimeError, match=r"^Store\.get called with user_id=AUTO but no actor context is set"
        ):
            resolve_user_id(AUTO, method_name="Store.get")
    finally:
        reset_actor_context(token)


def test_an_id_that_is_no_text_is_made_text_and_an_empty_one_is_a_user() -> None:
    for user_id, expected in ((5, "5"), ("", "")):
        token = bind_actor_context(ActorContext(user_id=user_id))
        assert resolve_user_id(AUTO) == current_user_id() == expected
        reset_actor_context(token)
    assert current_user_id() is None


def test_auto_stays_itself_when_copied() -> None:
    assert copy.deepcopy(AUTO) is AUTO
    assert pickle.loads(pickle.dumps(AUTO)) is AUTO  # noqa: S301 - our own marker
    assert repr(AUTO) == "<AUTO>"


@pytest.mark.parametrize("first", ["deerflow_mongo", "deerflow.runtime.actor_context"])
def test_the_seed_hosts_own_actor_is_used_whichever_is_imported_first(tmp_path: Path, first: str) -> None:
    _host(tmp_path, "actor_context", SEED_HOST)
    _run(
        tmp_path,
        f"""
        import {first}
        import deerflow_mongo as ours
        import deerflow.runtime.actor_context as host
        assert host.__file__.endswith("actor_context.py") and host.__spec__.name == host.__name__
        assert ours.AUTO is host.AUTO and ours.ActorContext is host.ActorContext
        host.bind_actor_context(host.ActorContext(user_id="ann"))
        assert ours.resolve_user_id(ours.AUTO, method_name="m") == "ann" and host.calls == ["m"]
        token = ours.bind_actor_context(ours.ActorContext(user_id="bob"))
        assert host.get_actor_context().user_id == "bob"
        ours.reset_actor_context(token)
        assert ours.get_actor_context().user_id == "ann"
        """,
    )


@pytest.mark.parametrize("first", ["deerflow_mongo", "deerflow.runtime.user_context"])
def test_the_released_hosts_own_actor_is_used(tmp_path: Path, first: str) -> None:
    _host(tmp_path, "user_context", RELEASED_HOST)
    _run(
        tmp_path,
        f"""
        import {first}
        import deerflow_mongo as ours
        from deerflow.runtime import user_context as host
        assert ours.AUTO is host.AUTO
        try:
            ours.resolve_user_id(ours.AUTO, method_name="m")
        except RuntimeError as error:
            assert "m called with user_id=AUTO but no actor context is set" in str(error)
        else:
            raise AssertionError
        class User:
            id = 7
        token = host.set_current_user(User())
        assert ours.resolve_user_id(host.AUTO) == "7"
        host.reset_current_user(token)
        ours.bind_actor_context(ours.ActorContext(user_id="bob"))
        assert host.get_current_user().id == "bob"
        """,
    )


@pytest.mark.parametrize(
    ("module", "text"), [("actor_context", SEED_HOST), ("user_context", RELEASED_HOST), ("other", "")]
)
def test_the_rest_of_the_host_is_not_imported(tmp_path: Path, module: str, text: str) -> None:
    _host(tmp_path, module, text)
    _run(
        tmp_path,
        """
        import sys
        import deerflow_mongo
        assert "the_agent_framework" not in sys.modules
        assert not [name for name in sys.modules if name.split(".")[0] == "deerflow"]
        """,
    )


def test_a_host_that_cannot_be_loaded_leaves_us_our_own_actor(tmp_path: Path) -> None:
    _host(tmp_path, "actor_context", "raise RuntimeError('broken')")
    _run(
        tmp_path,
        """
        import deerflow_mongo as ours
        ours.bind_actor_context(ours.ActorContext(user_id="ann"))
        assert ours.resolve_user_id(ours.AUTO) == "ann"
        """,
    )
