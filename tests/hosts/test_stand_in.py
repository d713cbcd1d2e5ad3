"""This package on the interfaces of DeerFlow main, where no DeerFlow is installed: on a stand-in of them.

All checks run in one child process. Where there is a checkout of main, the stand-in is compared with it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pymongo
import pytest

from tests.child_processes import run_child

from .checkout import has_run_ownership, missing_checkout
from .stand_in import INTERFACES, OPTIONAL, SOURCES, Interface, write_framework, write_stand_in
from .stand_in_checks import CHECKS, attributes

ROOT = Path(__file__).parents[2]
DATABASE = "test_stand_in"


def run_python(folder: Path, arguments: Sequence[str]) -> Any:
    """A child process whose `app` and `deerflow` are the stand-in in `folder`."""
    inherited = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(filter(None, [str(folder / "stand_in"), str(ROOT), inherited]))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DEER_FLOW_")}
    return run_child([sys.executable, *arguments], cwd=folder, env={**environment, "PYTHONPATH": paths})


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory,
    mongodb_url: str,
    raw_client: pymongo.MongoClient[dict[str, Any]],
) -> Mapping[str, str | None]:
    """The traceback of each check that failed."""
    folder = tmp_path_factory.mktemp("main")
    write_stand_in(folder / "stand_in")
    write_framework(folder / "framework")
    ended = run_python(folder, ["-m", "tests.hosts.stand_in_checks", str(folder), mongodb_url, DATABASE])
    raw_client.drop_database(DATABASE)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_the_interfaces_of_main(check: str, outcomes: Mapping[str, str | None]) -> None:
    assert outcomes[check] is None, outcomes[check]


def test_release_that_does_not_fit_ends_with_one_sentence_and_exit_code_3(tmp_path: Path) -> None:
    write_stand_in(
        tmp_path / "stand_in",
        without=["deerflow.runtime.make_stream_bridge"],
        extra={"RunStore": "archive(run_id)"},
    )
    write_framework(tmp_path / "framework")
    script = "import sys; sys.path.append(sys.argv[1]); from deerflow_mongo.hosts.gateway import app"
    ended = run_python(tmp_path, ["-c", script, str(tmp_path / "framework")])
    assert ended.returncode == 3, ended.stderr
    assert "Traceback" not in ended.stderr
    [sentence] = ended.stderr.splitlines()
    assert "deerflow.runtime.make_stream_bridge" in sentence
    assert "0.1.7" in sentence


# -- a real checkout ---------------------------------------------------------------------------------

needs_main = pytest.mark.skipif(
    missing_checkout() is not None or not has_run_ownership(), reason="there is no checkout of DeerFlow main"
)


def signatures(owner: Any, auto: Any) -> dict[str, str]:
    """The coroutine functions of a class as the stand-in states them."""
    found: dict[str, str] = {}
    for name, method in attributes(owner).items():
        if not name.startswith("_") and inspect.iscoroutinefunction(method):
            parameters = [
                parameter.replace(
                    annotation=parameter.empty,
                    default="AUTO" if parameter.default is auto else parameter.default,
                )
                for parameter in list(inspect.signature(method).parameters.values())[1:]
            ]
            text = f"{name}{inspect.Signature(parameters)}".replace("'AUTO'", "AUTO")
            is_optional = owner.__abstractmethods__ and name not in owner.__abstractmethods__
            found[name] = f"{OPTIONAL if is_optional else ''}{text}"
    return found


@needs_main
@pytest.mark.parametrize("interface", INTERFACES, ids=lambda interface: interface.name)
def test_stand_in_has_the_signatures_of_the_checkout(interface: Interface) -> None:
    real = getattr(importlib.import_module(interface.module), interface.name)
    auto = importlib.import_module("deerflow.runtime.user_context").AUTO
    if not hasattr(real, "__abstractmethods__"):
        real.__abstractmethods__ = frozenset[str]()
    assert list(signatures(real, auto).values()) == list(interface.methods)


@needs_main
def test_stand_in_has_no_module_that_the_checkout_lacks() -> None:
    for module in SOURCES:
        importlib.import_module(module)
