"""`python -m deerflow_mongo.hosts.reset_admin`, beside a running gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx

from .gateway_process import ROOT, SLOW, START_TIMEOUT_S, Gateway, environment, needs_deerflow
from .http_script import ADMIN, ALICE, NEW_PASSWORD, PASSWORD, Browser

pytestmark = [needs_deerflow, SLOW]


def reset(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "deerflow_mongo.hosts.reset_admin", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment(folder)},
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )


def _new_password(folder: Path) -> str:
    file = folder / "home/admin_initial_credentials.txt"
    assert file.stat().st_mode & 0o777 == 0o600
    [line] = [line for line in file.read_text().splitlines() if line.startswith("password: ")]
    return line.removeprefix("password: ")


async def test_admin_gets_a_new_password_and_every_session_ends(
    gateway: Gateway, gateway_folder: Path
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=180) as client:
        admin = Browser(client)
        await admin.ask("POST", "/api/v1/auth/initialize", json={"email": ADMIN, "password": PASSWORD})
        done = reset(gateway_folder)
        assert (done.returncode, done.stderr) == (0, ""), done
        password = _new_password(gateway_folder)
        assert ADMIN in done.stdout
        assert password not in done.stdout
        assert (await admin.send("GET", "/api/v1/auth/me")).status == 401
        client.cookies.clear()
        assert (await admin.login(ADMIN, PASSWORD)).status == 401
        assert (await admin.login(ADMIN, password)).answer["needs_setup"] is True
        new = {"current_password": password, "new_password": NEW_PASSWORD, "new_email": "boss@example.com"}
        await admin.ask("POST", "/api/v1/auth/change-password", json=new)
        assert (await admin.ask("GET", "/api/v1/auth/me"))["needs_setup"] is False


async def test_account_is_selected_by_its_email(gateway: Gateway, gateway_folder: Path) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=180) as client:
        alice = Browser(client)
        await alice.register(ALICE)
        assert reset(gateway_folder, "--email", ALICE).returncode == 0
        client.cookies.clear()
        assert (await alice.login(ALICE, _new_password(gateway_folder))).status == 200


def test_missing_account_is_reported_in_one_line(gateway_folder: Path) -> None:
    for arguments, message in (
        ((), "error: there is no admin account"),
        (("--email", "nobody@example.com"), "error: there is no account 'nobody@example.com'"),
    ):
        failed = reset(gateway_folder, *arguments)
        assert failed.returncode == 1
        assert failed.stderr.splitlines() == [message]
