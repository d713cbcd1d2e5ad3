"""Moving DeerFlow from SQLite: its gateway on MongoDB gives the answers that it gave before the transfer."""

# pyright: reportMissingImports=false, reportUnknownVariableType=false, reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import importlib
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pymongo
import pytest

from deerflow_mongo.mongodb.embedded import EmbeddedServer
from deerflow_mongo.transfer.sql.databases import open_database
from deerflow_mongo.transfer.sql.recognition import Recognised, recognise

from ..transfer.sql.sources import RELEASES
from .comparison import compare, differences_of_installed_release
from .gateway_process import ON_MONGODB, ON_SQL, SLOW, needs_deerflow, running_gateway, write_config
from .http_script import ALICE, BOB, PASSWORD, Browser, Transcript, run_body
from .test_gateway import client_of

pytestmark = [needs_deerflow, SLOW]

Raw = pymongo.MongoClient[dict[str, Any]]
Cookies = Mapping[str, str]
SEARCHES: Mapping[str, dict[str, Any]] = {
    "all": {},
    "a page": {"limit": 1, "offset": 1},
    "by metadata": {"metadata": {"project": "deer"}},
    "by status": {"status": "idle"},
}


# -- a conversation, and everything that can be read of it -----------------------------------------


async def _converse(browser: Browser, email: str) -> None:
    """An account, two threads, runs, votes and feedback on a message."""
    await browser.register(email)
    for text in ("hello there", "clarify: which deer?"):
        body = {"metadata": {"project": "deer", "text": text, "a.b": {"$gt": 1}}}
        thread_id = (await browser.ask("POST", "/api/threads", json=body))["thread_id"]
        runs = f"/api/threads/{thread_id}/runs"
        await browser.ask("POST", f"{runs}/wait", json=run_body(text))
        await browser.send("POST", f"{runs}/wait", json=run_body("again", metadata={"n": 2}))
        first, second = [run["run_id"] for run in await browser.ask("GET", runs)]
        await browser.ask("PUT", f"{runs}/{first}/feedback", json={"rating": 1, "comment": "good"})
        await browser.ask("PUT", f"{runs}/{first}/feedback", json={"rating": -1})
        on_message = {"rating": 1, "message_id": "message-1"}
        await browser.ask("POST", f"{runs}/{second}/feedback", json=on_message)


async def _read(browser: Browser) -> None:
    """Every route that reads, recorded."""
    await browser.send("GET", "/api/v1/auth/me", step="who am I")
    for name, body in SEARCHES.items():
        await browser.send("POST", "/api/threads/search", step=f"search {name}", json=body)
    for number, thread in enumerate(await browser.ask("POST", "/api/threads/search", json={})):
        path = f"/api/threads/{thread['thread_id']}"
        for part in ("", "/state", "/messages", "/runs", "/token-usage"):
            await browser.send("GET", path + part, step=f"thread {number}{part}")
        await browser.send("POST", f"{path}/history", step=f"history of {number}", json={"limit": 100})
        for place, run in enumerate(await browser.ask("GET", f"{path}/runs")):
            run_path = f"{path}/runs/{run['run_id']}"
            for part in ("", "/messages", "/feedback", "/feedback/stats"):
                await browser.send("GET", run_path + part, step=f"run {number}.{place}{part}")
            await browser.send("GET", f"{run_path}/events", step=f"events of run {number}.{place}")
            await browser.send(
                "GET", f"/api/runs/{run['run_id']}/messages", step=f"run {number}.{place}, alone"
            )


async def _before(new_client: Any) -> tuple[Transcript, list[Cookies]]:
    transcript, cookies = Transcript(), list[Cookies]()
    for email in (ALICE, BOB):
        async with new_client() as client:
            browser = Browser(client, transcript)
            await _converse(browser, email)
            await _read(browser)
            cookies.append(dict(client.cookies))
    return transcript, cookies


async def _after(new_client: Any, cookies: list[Cookies]) -> Transcript:
    """The same reads: Alice's in her old session, Bob's after he has logged in again."""
    transcript = Transcript()
    for email, known in zip((ALICE, BOB), cookies, strict=True):
        async with new_client() as client:
            browser = Browser(client, transcript)
            if email == ALICE:
                client.cookies.update(known)
            else:
                assert (await browser.login(email, PASSWORD)).status == 200
            await _read(browser)
    return transcript


# -- the tests -------------------------------------------------------------------------------------


def test_gateway_answers_as_before_the_transfer(
    tmp_path: Path, server: EmbeddedServer, raw_client: Raw, new_database: str
) -> None:
    command = pytest.importorskip("deerflow_mongo.cli.app")
    testing = importlib.import_module("typer.testing")
    write_config(tmp_path)
    with running_gateway(tmp_path, ON_SQL) as gateway:
        before, cookies = asyncio.run(_before(lambda: client_of(gateway)))
    [file] = tmp_path.rglob("deerflow.db")

    arguments = ["transfer", "--from", f"sqlite:///{file}", "--url", server.url, "--database", new_database]
    result = testing.CliRunner().invoke(command.app, arguments)
    assert result.exit_code == 0, result.output
    assert "everything is in the target" in result.output
    assert raw_client[new_database]["users"].count_documents({}) == 2

    write_config(tmp_path, {"backend": "mongodb", "url": server.url, "database": new_database})
    with running_gateway(tmp_path, ON_MONGODB, name="moved") as gateway:
        after = asyncio.run(_after(lambda: client_of(gateway), cookies))

    compared = compare(after, before, (tmp_path, tmp_path), differences_of_installed_release())
    assert compared.unexplained == [], "\n".join(compared.lines())
    assert compared.equal_fields > 1_000
    assert [exchange.path for exchange in after.exchanges] == [exchange.path for exchange in before.exchanges]


async def _recognised(url: str) -> Recognised:
    database = await open_database(url)
    try:
        return await recognise(database)
    finally:
        await database.aclose()


async def test_tables_of_the_tests_are_those_of_the_installed_release(tmp_path: Path) -> None:
    engine = importlib.import_module("deerflow.persistence.engine")
    file = tmp_path / "deerflow.db"
    await engine.init_engine("sqlite", url=f"sqlite+aiosqlite:///{file}", sqlite_dir=str(tmp_path))
    await engine.close_engine()
    recognised = await _recognised(f"sqlite:///{file}")
    [release] = [name for name in RELEASES if name in recognised.layout.release]
    with closing(sqlite3.connect(file)) as connection:
        for table in recognised.layout.tables:
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table.name})")}
            assert columns == table.known_columns
            assert columns == RELEASES[release][table.name].keys()
