"""The laboratory's own servers: they come back on their port, and nothing of them outlives the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .servers import ReplicaSet, ServerError, SingleServer

OWNER = """
import json, sys, threading, time
from tests.faults.servers import ReplicaSet

cluster = ReplicaSet(1)
threading.Thread(target=cluster.__enter__).start()  # the thread ends, the server does not
while not cluster.members[0].hello().get("isWritablePrimary"):
    time.sleep(0.05)
member = cluster.members[0]
if "--frozen" in sys.argv:
    member.freeze()
print(json.dumps([member.pid, str(member.folder)]), flush=True)
time.sleep(600)
"""


def test_killed_frozen_and_deposed_primaries_are_replaced_and_come_back(replica_set: ReplicaSet) -> None:
    killed = replica_set.kill()
    assert replica_set.primary() is not killed
    killed.restart()
    replica_set.wait_until_healthy()
    frozen = replica_set.freeze()
    assert replica_set.primary() is not frozen
    frozen.resume()
    replica_set.wait_until_healthy()
    deposed = replica_set.step_down()
    assert replica_set.primary() is not deposed


@pytest.mark.parametrize("arguments", [[], ["--frozen"]])
def test_killed_test_leaves_no_server_and_no_folder(arguments: list[str]) -> None:
    with subprocess.Popen(  # noqa: S603 - our own code
        [sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, folder = json.loads(owner.stdout.readline())
        os.kill(pid, 0)
        owner.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (Path(folder).parent.exists() or _is_running(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _is_running(pid)
    assert not Path(folder).parent.exists()


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_closed_server_leaves_no_process_and_no_folder() -> None:
    with SingleServer() as server:
        pid, folder = server.pid, server.folder
        server.restart()
        assert server.pid != pid
        assert server.command({"ping": 1})["ok"] == 1
    assert not _is_running(server.pid)
    assert not folder.parent.exists()


def test_server_that_cannot_start_reports_the_end_of_its_log() -> None:
    with (
        pytest.raises(ServerError, match="no-such-option"),
        SingleServer(options=["--no-such-option"]),
    ):
        pass
