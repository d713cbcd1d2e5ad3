"""Without the extras: what still works, and what the error of each missing one says."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from .child_processes import run_child

BLOCK = """
import sys

class WithoutExtras:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [WithoutExtras(finder) for finder in sys.meta_path]
"""

EXTRAS = (
    "{'motor', 'mongomock', 'mongomock_motor', 'fiftyone', 'typer', 'rich', 'yaml', 'pytest', "
    "'opentelemetry', 'prometheus_client'}"
)


def _run(blocked: str, code: str) -> subprocess.CompletedProcess[str]:
    """The code in an interpreter without the extras."""
    source = f"BLOCKED = {blocked}\n{BLOCK}\n{textwrap.dedent(code)}"
    return run_child([sys.executable, "-c", source], env={"PATH": ""})


def test_importing_the_package_loads_no_driver_and_no_extra() -> None:
    done = _run(
        EXTRAS,
        """
        import deerflow_mongo
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & (BLOCKED | {"pymongo", "bson"}), loaded
        for name in deerflow_mongo.__all__:
            getattr(deerflow_mongo, name)
        from deerflow_mongo import create_storage
        create_storage({"backend": "mongodb", "url": "mongodb://127.0.0.1:1"})
        assert not {name.split(".")[0] for name in sys.modules} & BLOCKED
        """,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ("motor", "create_storage({'backend': 'mongodb', 'url': 'mongodb://h', 'driver': 'motor'})"),
        ("mongomock", "create_storage({'backend': 'mongodb', 'driver': 'mongomock'})"),
        ("yaml", "load_config('config.yaml')"),
        ("testing", "import deerflow_mongo.testing"),
        ("otel", "create_storage({'backend': 'mongodb', 'url': 'mongodb://h', 'telemetry': 'otel'})"),
        ("prometheus", "import deerflow_mongo.mongodb.telemetry.prometheus"),
        (
            "embedded",
            "import asyncio; asyncio.run(create_storage({'backend': 'mongodb', 'url': 'embedded'}).setup())",
        ),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(extra: str, code: str) -> None:
    done = _run(EXTRAS, f"from deerflow_mongo import create_storage, load_config\n{code}")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("deerflow_mongo.contract.errors.MissingDependencyError: "), done.stderr
    assert last.endswith(f"Install it with: pip install 'deerflow-mongo[{extra}]'")


def test_the_command_without_its_extra_says_so_in_one_line() -> None:
    done = _run(EXTRAS, "sys.argv = ['deerflow-mongo', 'demo']\nfrom deerflow_mongo.cli import main\nmain()")
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.strip().splitlines()
    assert "pip install 'deerflow-mongo[cli]'" in line
