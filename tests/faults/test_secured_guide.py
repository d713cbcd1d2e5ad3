"""The guide to a replica set with TLS and least-privilege roles: its configuration, scripts and commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from ..child_processes import run_child
from ..readmes import mongosh
from ..readmes.blocks import EXECUTED_BY, ROOT, Block, blocks_of
from .secured_server import PASSWORD
from .servers import HOST, ReplicaSet

GUIDE = ROOT / "deerflow_mongo" / "mongodb" / "OPERATIONS.md"
FOLDER = "/etc/mongodb"
_HOSTS = "mongo-1:27017,mongo-2:27017,mongo-3:27017"


def blocks() -> dict[str, list[Block]]:
    """The guide's blocks that this test executes, by language."""
    found: dict[str, list[Block]] = {}
    for block in blocks_of(GUIDE):
        if block.notes.get(EXECUTED_BY) == Path(__file__).relative_to(ROOT).as_posix():
            found.setdefault(block.language, []).append(block)
    return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ReplicaSet]:
    """A replica set of one with the guide's configuration, the files that it names, and no user yet."""
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(tmp_path / "ca.pem")
    issuer.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    (tmp_path / "key").write_text("a secret of all members")
    (tmp_path / "key").chmod(0o400)
    [configuration] = blocks()["yaml"]
    file = tmp_path / "mongod.conf"
    file.write_text(configuration.text.replace(FOLDER, str(tmp_path)))
    client_options = {"tls": True, "tlsCAFile": str(tmp_path / "ca.pem")}
    with ReplicaSet(1, options=["--config", str(file)], client_options=client_options) as started:
        yield started
        started.members[0].reconnect()


def execute(cluster: ReplicaSet, script: str) -> None:
    for found in mongosh.commands_of(script):
        cluster.members[0].client[found.database].command(found.command)


def test_guide_to_tls_and_roles_leads_to_a_checked_database(cluster: ReplicaSet, tmp_path: Path) -> None:
    """Step by step; the roles are those that the command prints."""
    admin, users = blocks()["javascript"]
    [created] = mongosh.commands_of(admin.text)
    cluster.members[0].command(created.command)
    cluster.members[0].reconnect(username="admin", password=PASSWORD)
    printed = run_child([sys.executable, "-m", "deerflow_mongo.mongodb.roles", "deerflow"], cwd=ROOT)
    execute(cluster, printed.stdout)
    execute(cluster, users.text)
    set_up, check = (run_commands(cluster, tmp_path, block) for block in blocks()["console"])
    assert set_up.returncode == 0, set_up.stderr
    assert check.returncode == 0, check.stdout + check.stderr
    assert "A host would work." in check.stdout


def run_commands(cluster: ReplicaSet, folder: Path, commands: Block) -> subprocess.CompletedProcess[str]:
    text = commands.text.replace(_HOSTS, cluster.members[0].address).replace(FOLDER, str(folder))
    text = re.sub(r"\bPASSWORD\b", quote(PASSWORD, safe=""), text).replace("=rs0", f"={cluster.name}")
    text = text.replace("deerflow-mongo ", f"{sys.executable} -m deerflow_mongo ")
    return run_child(["bash", "-euc", text], env={**os.environ, "PYTHONPATH": str(ROOT)})
