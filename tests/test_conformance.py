"""The conformance suite on PyMongo, the mock and memory, and what the suite promises to a backend's author.

Motor has a contract of its own in `tests/mongodb/drivers`: the stores above a driver are the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pymongo
import pytest

from deerflow_mongo import testing
from deerflow_mongo.mongodb.drivers import errors, mongomock
from deerflow_mongo.mongodb.drivers.mongomock import UNSUPPORTED
from deerflow_mongo.mongodb.events import store as event_store
from deerflow_mongo.mongodb.storage import MongoStorage
from deerflow_mongo.testing import (
    AccountContract,
    ActorContract,
    AdmissionContract,
    ContentionContract,
    Contract,
    ErrorContract,
    EventPageContract,
    FeedbackStoreContract,
    LeaseContract,
    RunEventContract,
    RunStoreContract,
    RunUpdateContract,
    SizeContract,
    StatusConditionContract,
    StorageConformance,
    ThreadMetadataContract,
    ThreadStoreContract,
    TokenUsageContract,
    VoteContract,
    needs,
    needs_new_database,
)

from .long_form import LONG_FORM
from .mongodb.drivers.forced_groups import forced_groups

pytest_plugins = ["pytester"]

PlainClient = pymongo.MongoClient[dict[str, Any]]


@pytest.fixture(scope="module")
def plain_client(mongodb_url: str) -> Iterator[PlainClient]:
    """A client that opens no connection in the background, where some tests promise that none is made."""
    with PlainClient(mongodb_url, serverMonitoringMode="poll") as client:
        yield client


@pytest.fixture(scope="module")
def reused_database(plain_client: PlainClient) -> Iterator[str]:
    """One database that stays set up, and is emptied for each test: ten times faster than a new one each."""
    name = f"conformance_{uuid.uuid4().hex[:12]}"
    yield name
    plain_client.drop_database(name)


class OnPyMongo:
    @pytest.fixture
    def storage_config(
        self,
        request: pytest.FixtureRequest,
        mongodb_url: str,
        plain_client: PlainClient,
        reused_database: str,
    ) -> Iterator[Mapping[str, Any]]:
        config = {"backend": "mongodb", "driver": "pymongo", "url": mongodb_url}
        if needs_new_database(request):
            name = f"{reused_database}_new"
            yield {**config, "database": name}
            plain_client.drop_database(name)
            return
        database = plain_client[reused_database]
        for collection in database.list_collection_names():
            database[collection].delete_many({})
        yield {**config, "database": reused_database}


class TestPyMongo(OnPyMongo, StorageConformance):
    pass


class InGroups(OnPyMongo):
    """Every call that may share a command goes as a group, also alone."""

    lacks: ClassVar[Mapping[str, str]] = {"processes": "only this one sends all calls as groups"}

    @pytest.fixture(autouse=True)
    def forced(self) -> Iterator[None]:
        with forced_groups():
            yield


class TestGroups(
    InGroups,
    ContentionContract,
    ErrorContract,
    ActorContract,
    RunStoreContract,
    RunUpdateContract,
    StatusConditionContract,
    TokenUsageContract,
    AdmissionContract,
    LeaseContract,
    FeedbackStoreContract,
    VoteContract,
    ThreadStoreContract,
    ThreadMetadataContract,
    AccountContract,
):
    """The parts that depend most on who gets which answer."""


if LONG_FORM:

    class TestWholeSuiteInGroups(InGroups, StorageConformance):
        """With `DEERFLOW_MONGO_FAULTS=long`: three quarters of a minute of CPU."""


class TestMongomock(StorageConformance):
    lacks = UNSUPPORTED

    @pytest.fixture
    def storage_config(self) -> Mapping[str, Any]:
        return {"backend": "mongodb", "driver": "mongomock"}


class TestMemory(StorageConformance):
    lacks: ClassVar[Mapping[str, str]] = {
        "processes": "the data is in this process",
        "durability": "the data is gone when the storage is closed",
        "server": "there is no server",
    }

    @pytest.fixture
    def storage_config(self) -> Mapping[str, Any]:
        return {"backend": "memory"}


def _with_limit(patch: pytest.MonkeyPatch, limit_bytes: int | None) -> Mapping[str, Any]:
    """The mock with another limit than MongoDB's."""
    for module in (errors, mongomock, event_store):
        patch.setattr(module, "MAX_DOCUMENT_BYTES", 2**62 if limit_bytes is None else limit_bytes)
    patch.setattr(MongoStorage, "max_payload_bytes", limit_bytes)
    return {"backend": "mongodb", "driver": "mongomock"}


class TestWithoutALimit(SizeContract):
    @pytest.fixture
    def storage_config(self, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
        return _with_limit(monkeypatch, None)


class TestWithALimitOf1Mebibyte(SizeContract, RunEventContract, EventPageContract, ErrorContract):
    lacks = UNSUPPORTED

    @pytest.fixture
    def storage_config(self, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
        return _with_limit(monkeypatch, 1024 * 1024)


class TestWithALimitOf1Gibibyte(SizeContract):
    @pytest.fixture
    def storage_config(self, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
        return _with_limit(monkeypatch, 1024 * 1024 * 1024)


# -- the suite itself ------------------------------------------------------------------------------

_BACKEND_OF_ANOTHER_PACKAGE = """
    import pytest
    from deerflow_mongo.testing import Contract, FeedbackStoreContract, needs

    class Mock:
        @pytest.fixture
        def storage_config(self):
            return {"backend": "mongodb", "driver": "mongomock"}

    class DiskContract(Contract):
        @needs("durability")
        async def test_acknowledged_run_is_durable(self, storage):
            assert await storage.runs.get("run-1", user_id=None) is not None

    class TestWithoutADisk(Mock, DiskContract):
        lacks = {"durability": "no disk"}

    class TestWithABrokenDisk(Mock, DiskContract):
        expected_failures = {"test_acknowledged_run_is_durable": "broken"}

    class TestWithADisk(Mock, DiskContract):
        pass

    class TestFeedback(Mock, FeedbackStoreContract):
        expected_failures = {"test_get_of_unknown_feedback_returns_none": "it passes, which must be reported"}
"""


def _tests_in(*contracts: type[Contract]) -> int:
    return len({name for contract in contracts for name in dir(contract) if name.startswith("test_")})


def test_another_packages_backend_needs_no_plugin_of_ours(pytester: pytest.Pytester) -> None:
    """Known failures must fail, what lacks is skipped by name, and each class keeps its marks to itself."""
    pytester.makepyfile(_BACKEND_OF_ANOTHER_PACKAGE)
    result = pytester.runpytest_subprocess("-rfsxX", "-o", "asyncio_mode=strict", "-p", "no:cacheprovider")
    passed = _tests_in(FeedbackStoreContract) - 1
    result.assert_outcomes(passed=passed, failed=2, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*XPASS(strict)*it passes, which must be reported*",
            "*test_acknowledged_run_is_durable needs durability: no disk*",
            "XFAIL*TestWithABrokenDisk::test_acknowledged_run_is_durable*broken*",
            "FAILED*TestWithADisk::test_acknowledged_run_is_durable*",
        ]
    )


_TABLES_OF_CASES = """
    import pytest
    from deerflow_mongo.testing import Contract, case

    class Tables(Contract):
        async def test_some_fail(self):
            for number in range(5):
                with case("number", number), pytest.raises(ValueError, match="odd"):
                    if number != 1:
                        raise ValueError("odd" if number != 3 else "even")
            assert False, "the last line"

        def test_none_fails(self):
            for number in range(5):
                with case(number):
                    assert number < 5

    class TestTables(Tables):
        pass

    class TestKnown(Tables):
        expected_failures = {"test_some_fail": "known", "test_none_fails": "it passes"}

    def test_outside_of_a_contract():
        with case("first"):
            assert False
"""


def test_every_failed_case_of_a_table_is_reported(pytester: pytest.Pytester) -> None:
    """With its reason and its line, and what failed after the cases; a known failure stays strict."""
    pytester.makepyfile(_TABLES_OF_CASES)
    result = pytester.runpytest_subprocess("-rfxX", "-o", "asyncio_mode=strict", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=3, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            '>*with case("number", number), pytest.raises(*',
            "E*AssertionError: 2 of 5 cases failed",
            "E*  case number, 1: test_*.py:*: Failed: DID NOT RAISE*",
            "E*  case number, 3: test_*.py:*: AssertionError: Regex pattern did not match.",
            "E*  after the cases: test_*.py:*: AssertionError: the last line",
        ]
    )
    result.stdout.no_fnmatch_line("*case number, 2*")
    result.stdout.fnmatch_lines_random(
        [
            "*XPASS(strict)*it passes*",
            "FAILED*TestKnown::test_none_fails*",
            "*case: first*",
            "XFAIL*TestKnown::test_some_fail*known*",
        ]
    )


_EXAMPLE = re.compile(r"^```python\n# (\w+)\.py.*?^(.*?)^```$", re.MULTILINE | re.DOTALL)


def _make_example_of_a_host(pytester: pytest.Pytester) -> None:
    """The files of the section "For hosts" of the suite's README."""
    readme = Path(testing.__file__).with_name("README.md").read_text(encoding="utf-8")
    files = dict(_EXAMPLE.findall(readme))
    assert set(files) == {"conftest", "test_host", "test_my_backend", "test_storage"}
    pytester.makepyfile(**files)


def test_fixtures_for_hosts_give_each_test_an_empty_database(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, plain_client: PlainClient, mongodb_url: str
) -> None:
    """On the server that the environment names, where the database is dropped at the end."""
    monkeypatch.setenv("DEERFLOW_MONGO_TEST_URL", mongodb_url)
    _make_example_of_a_host(pytester)
    names = "TestStorage and (setup or new_database or thread_create or connection) and not processes"
    result = pytester.runpytest_subprocess(
        "-o", "asyncio_mode=strict", "-p", "no:cacheprovider", "-k", f"test_run_is_listed or {names}"
    )
    assert result.parseoutcomes().keys() == {"passed", "deselected"}
    assert result.parseoutcomes()["passed"] >= 10
    assert [name for name in plain_client.list_database_names() if name.startswith("deerflow_test_")] == []


def test_fixtures_for_hosts_start_one_embedded_server_for_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEERFLOW_MONGO_TEST_URL", raising=False)
    _make_example_of_a_host(pytester)
    pytester.makepyfile(
        test_server="""
        import pytest

        servers = set()

        @pytest.mark.asyncio
        @pytest.mark.parametrize("attempt", range(3))
        async def test_is_the_same(storage, mongodb_server, attempt):
            servers.add(mongodb_server)
            assert len(servers) == 1
        """
    )
    result = pytester.runpytest_subprocess(
        "-o", "asyncio_mode=strict", "-p", "no:cacheprovider", "test_host.py", "test_server.py"
    )
    result.assert_outcomes(passed=4)


def test_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown kind 'proceses'; expected one of durability, "):
        type("Misspelt", (RunStoreContract,), {"lacks": {"proceses": "a slip"}})
    with pytest.raises(ValueError, match="unknown kind 'proceses'"):
        needs("proceses")


def test_expected_failure_without_a_test_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown test 'test_no_such'"):
        type("Misspelt", (RunStoreContract,), {"expected_failures": {"test_no_such": "a slip"}})


def test_promise_that_hides_another_is_an_error() -> None:
    async def test_same(self: object) -> None: ...

    async def test_same_again(self: object) -> None: ...

    one = type("One", (RunStoreContract,), {"test_same": test_same})
    two = type("Two", (FeedbackStoreContract,), {"test_same": test_same_again})
    with pytest.raises(TypeError, match="more than one test_same"):
        type("Both", (one, two), {})


def test_the_whole_suite_is_the_sum_of_its_parts() -> None:
    parts = StorageConformance.__bases__
    assert _tests_in(StorageConformance) == _tests_in(*parts) == sum(map(_tests_in, parts))


@pytest.mark.parametrize("module", ["pytest", "pytest_asyncio"])
def test_without_pytest_the_suite_names_what_to_install(module: str) -> None:
    source = f"import sys; sys.modules[{module!r}] = None; import deerflow_mongo.testing"
    child = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)  # noqa: S603
    assert child.returncode == 1
    assert "MissingDependencyError" in child.stderr
    assert f"needs {module.replace('_', '-')}" in child.stderr
    assert "pip install 'deerflow-mongo[testing]'" in child.stderr
