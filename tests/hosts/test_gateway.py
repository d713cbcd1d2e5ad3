"""DeerFlow's own gateway on MongoDB: the HTTP answers of its SQL storage, and nothing stored in SQL."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer

from .comparison import compare, differences_of_installed_release
from .gateway_process import (
    MODEL,
    ON_MONGODB,
    ON_SQL,
    PROVIDERS_MODEL,
    SLOW,
    Gateway,
    environment,
    needs_deerflow,
    running_gateway,
    write_config,
)
from .http_script import ALICE, Browser, Transcript, run_body, run_script
from .large_conversations import run_large_conversations

pytestmark = [needs_deerflow, SLOW]

Raw = pymongo.MongoClient[dict[str, Any]]
DATABASE = "test_gateway"


@dataclass(frozen=True)
class Session:
    """The scripts' transcripts at one gateway, with the gateway's folder and log."""

    transcript: Transcript
    large_conversations: Transcript
    folder: Path
    log: str


def client_of(gateway: Gateway) -> httpx.AsyncClient:
    """A client that opens a connection for each request: after an internal error the gateway closes it."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=gateway.url, timeout=180, limits=limits)


def _run_session(folder: Path, module: str) -> Session:
    with running_gateway(folder, module) as gateway:
        transcript = asyncio.run(run_script(lambda: client_of(gateway)))
        large = asyncio.run(run_large_conversations(lambda: client_of(gateway)))
    return Session(transcript, large, folder, gateway.log.read_text())


@pytest.fixture(scope="module")
def on_mongodb(
    tmp_path_factory: pytest.TempPathFactory, server: EmbeddedServer, raw_client: Raw
) -> Iterator[Session]:
    """The script at our gateway under uvicorn; its database remains for the tests."""
    folder = tmp_path_factory.mktemp("mongodb")
    options = {"backend": "mongodb", "url": server.url, "database": DATABASE}
    write_config(folder, {**options, "thread_deletion": "deerflow"})  # what SQL leaves is compared
    yield _run_session(folder, ON_MONGODB)
    raw_client.drop_database(DATABASE)


@pytest.fixture(scope="module")
def on_sql(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """The script at DeerFlow's own gateway, on SQLite."""
    folder = tmp_path_factory.mktemp("sql")
    write_config(folder)
    return _run_session(folder, ON_SQL)


# -- the same answers ------------------------------------------------------------------------------


def test_every_answer_equals_sql_except_for_documented_differences(
    on_mongodb: Session, on_sql: Session
) -> None:
    folders = (on_mongodb.folder, on_sql.folder)
    reasons = differences_of_installed_release()
    result = compare(on_mongodb.transcript, on_sql.transcript, folders, reasons)
    assert (result.unexplained, result.unneeded) == ([], []), "\n".join(result.lines())
    assert result.equal_fields > 2_000


def test_conversations_above_the_document_limit_are_answered_as_on_sql(
    on_mongodb: Session, on_sql: Session
) -> None:
    folders = (on_mongodb.folder, on_sql.folder)
    reasons = differences_of_installed_release()
    result = compare(on_mongodb.large_conversations, on_sql.large_conversations, folders, reasons)
    assert result.unexplained == [], "\n".join(result.lines())
    assert on_sql.large_conversations.answer("ten images: the run")["status"] == "success"


def test_application_in_process_answers_as_under_uvicorn(
    on_mongodb: Session, gateway_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def session() -> Transcript:
        async with _application(gateway_folder, monkeypatch) as app:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            return await run_script(
                lambda: httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=180)
            )

    folders = (gateway_folder, on_mongodb.folder)
    result = compare(asyncio.run(session()), on_mongodb.transcript, folders, reasons=())
    assert result.unexplained == [], "\n".join(result.lines())


@asynccontextmanager
async def _application(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Any]:
    """The application started in this process, with DeerFlow's singletons as in a new process."""
    for name, value in environment(folder).items():
        monkeypatch.setenv(name, value)
    singletons: list[tuple[str, str, Any]] = [
        ("deerflow.config.paths", "_paths", None),
        ("app.gateway.auth.config", "_auth_config", None),
        ("app.gateway.routers.auth", "_login_attempts", {}),
        ("app.gateway.routers.auth", "_SETUP_STATUS_CACHE", {}),
    ]
    for module, name, value in singletons:
        monkeypatch.setattr(importlib.import_module(module), name, value)
    importlib.import_module("deerflow.config.app_config").reset_app_config()
    app = importlib.import_module("deerflow_mongo.hosts.gateway").create_app()
    async with app.router.lifespan_context(app):
        yield app
    importlib.import_module("deerflow.config.app_config").reset_app_config()


# -- what is stored --------------------------------------------------------------------------------


def test_everything_that_requests_stored_is_in_mongodb(on_mongodb: Session, raw_client: Raw) -> None:
    stored, answer = raw_client[DATABASE], on_mongodb.transcript.answer
    alice = answer("register")["id"]
    [account] = stored.users.find({"email": ALICE})
    assert (account["_id"], account["token_version"]) == (alice, 1)
    assert {row["system_role"] for row in stored.users.find()} == {"user", "admin"}

    for listed in answer("list all runs"):
        run = stored.runs.find_one({"_id": listed["run_id"]}) or {}
        assert (run["status"], run["user_id"]) == (listed["status"], alice)
    usage, runs = (
        answer("token usage of all runs"),
        stored.runs.find({"thread_id": _first_thread(on_mongodb)}),
    )
    assert sum(run["tokens"]["total"] for run in runs) == usage["total_tokens"] > 0

    for message in answer("messages of all runs"):
        event = stored.run_events.find_one({"thread_id": message["thread_id"], "seq": message["seq"]}) or {}
        assert (event["category"], event["user_id"]) == ("message", alice)
        assert event["content"] == message["content"]

    vote = stored.feedback.find_one({"_id": answer("vote again")["feedback_id"]}) or {}
    assert (vote["rating"], vote["user_id"], vote["vote"]) == (1, alice, True)
    assert stored.threads.find_one({"_id": _first_thread(on_mongodb)}) is None
    assert stored.threads.find_one({"_id": answer("a thread to cancel in")["thread_id"]}) is not None
    for thread_id, is_stored in (
        (answer("a thread to cancel in")["thread_id"], True),
        (_first_thread(on_mongodb), False),
    ):
        found = stored.checkpoint_data.find_one({"_id.thread": thread_id, "expires_at": None})
        assert (found is not None) is is_stored


def test_tokens_count_for_the_models_that_answered(on_mongodb: Session, raw_client: Raw) -> None:
    usage = on_mongodb.transcript.answer("token usage of all runs")
    assert usage["by_model"][PROVIDERS_MODEL]["tokens"] == usage["total_tokens"] > 0
    assert usage["by_model"][MODEL] == {"tokens": 0, "runs": 1}  # the one that failed before any answer
    for run in raw_client[DATABASE].runs.find({"status": "success"}):
        assert run["model_name"] == MODEL
        [counts] = run["tokens"]["by_model"].values()
        assert (counts["model"], counts["total"]) == (PROVIDERS_MODEL, run["tokens"]["total"])


def test_run_whose_request_names_no_model_is_stored_with_its_models_name(
    on_mongodb: Session, raw_client: Raw
) -> None:
    [run, _] = on_mongodb.transcript.answer("list it")
    stored = raw_client[DATABASE].runs.find_one({"_id": run["run_id"]}) or {}
    assert stored["model_name"] == MODEL
    usage = on_mongodb.transcript.answer("token usage with that run")
    assert set(usage["by_model"]) == {PROVIDERS_MODEL}


def test_failed_run_has_its_error_and_every_ended_run_its_times(on_mongodb: Session, raw_client: Raw) -> None:
    runs = list(raw_client[DATABASE].runs.find({"thread_id": _first_thread(on_mongodb)}))
    [failed] = [run for run in runs if run["status"] == "error"]
    assert "no-such-agent" in failed["error"]
    assert all(run["created_at"] <= run["started_at"] <= run["ended_at"] for run in runs)


def test_nothing_is_stored_in_sql(on_mongodb: Session, on_sql: Session) -> None:
    assert [file.name for file in on_sql.folder.rglob("*.db")] == ["deerflow.db"]
    assert list(on_mongodb.folder.rglob("*.db*")) == []
    assert "Persistence engine initialized" not in on_mongodb.log


def test_startup_logs_the_storage_and_what_works_on_sql_only(on_mongodb: Session) -> None:
    assert f"database='{DATABASE}'" in on_mongodb.log
    assert "python -m deerflow_mongo.hosts.reset_admin" in on_mongodb.log
    assert "there is no admin account yet" in on_mongodb.log


def _first_thread(session: Session) -> str:
    return session.transcript.answer("create a thread")["thread_id"]


# -- a restart in the middle -----------------------------------------------------------------------


async def test_conversation_continues_after_a_restart(gateway_folder: Path) -> None:
    with running_gateway(gateway_folder) as gateway:
        async with client_of(gateway) as client:
            alice = Browser(client)
            await alice.register(ALICE)
            thread_id = (await alice.ask("POST", "/api/threads", json={}))["thread_id"]
            runs = f"/api/threads/{thread_id}/runs"
            await alice.ask("POST", f"{runs}/wait", json=run_body("before"))
            before = await _all_answers(alice, thread_id)
            cookies = dict(client.cookies)
    with running_gateway(gateway_folder) as gateway:
        async with client_of(gateway) as client:
            client.cookies.update(cookies)
            alice = Browser(client)
            assert await _all_answers(alice, thread_id) == before
            state = await alice.ask("POST", f"{runs}/wait", json=run_body("after"))
            texts = [message["content"] for message in state["messages"]]
            assert [text for text in texts if text in ("before", "echo: before", "after", "echo: after")] == [
                "before",
                "echo: before",
                "after",
                "echo: after",
            ]
            assert len(await alice.ask("GET", runs)) == 2


async def _all_answers(browser: Browser, thread_id: str) -> list[Any]:
    thread = f"/api/threads/{thread_id}"
    paths = ("", "/runs", "/messages", "/token-usage", "/state")
    answers = [await browser.ask("GET", thread + path) for path in paths]
    for run in answers[1]:
        del run["updated_at"]  # the worker that ran it has its own clock's time
    return [*answers, await browser.ask("POST", "/api/threads/search", json={})]
