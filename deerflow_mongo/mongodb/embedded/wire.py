"""A minimal MongoDB client: one command per connection, and the replica set commands that a start needs.

Not a driver: a driver's client starts threads, which do not mix with the supervisor's forks.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

REPLICA_SET = "deerflow"
_REPLICA_SET_SETTINGS = {"electionTimeoutMillis": 1000}
_NOT_YET_INITIALIZED = 94
_COMMAND_TIMEOUT_MS = 30_000
_OP_MSG = 2013


def is_writable(server_socket: Path) -> bool:
    """Whether mongod accepts writes.

    While it does not, each call takes the next step towards it: initiate the replica set, or correct its
    member's address. False also when mongod cannot be reached yet.
    """
    try:
        reply = run_command(server_socket, {"replSetGetConfig": 1})
        if reply.get("code") == _NOT_YET_INITIALIZED:
            members = [{"_id": 0, "host": str(server_socket)}]
            config = {"_id": REPLICA_SET, "members": members, "settings": _REPLICA_SET_SETTINGS}
            run_command(server_socket, {"replSetInitiate": config})
            return False
        config = cast("dict[str, Any] | None", reply.get("config"))
        if config and config["members"][0]["host"] != str(server_socket):
            config["members"][0]["host"] = str(server_socket)  # the folder or its sockets were moved
            config["version"] += 1
            run_command(server_socket, {"replSetReconfig": config, "force": True})
            return False
        return run_command(server_socket, {"hello": 1}).get("isWritablePrimary") is True
    except OSError:
        return False


def request_shutdown(server_socket: Path) -> None:
    """Ask the mongod behind the socket, if there is one, to shut down."""
    with contextlib.suppress(OSError):
        run_command(server_socket, {"shutdown": 1, "force": True})


def run_command(server_socket: Path, command: Mapping[str, Any]) -> dict[str, Any]:
    """The reply to one command on the database `admin`. Raises OSError if the connection fails."""
    import bson

    body = struct.pack("<IB", 0, 0) + bson.encode({**command, "$db": "admin"})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_COMMAND_TIMEOUT_MS / 1000)
        connection.connect(str(server_socket))
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, _OP_MSG) + body)
        (length,) = struct.unpack("<i", _receive(connection, 4))
        message = _receive(connection, length - 4)
    return bson.decode(message[17:])  # pyright: ignore[reportUnknownMemberType] - its stubs say array


def _receive(connection: socket.socket, size_bytes: int) -> bytes:
    received = b""
    while len(received) < size_bytes:
        part = connection.recv(size_bytes - len(received))
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "mongod closed the connection")
        received += part
    return received
