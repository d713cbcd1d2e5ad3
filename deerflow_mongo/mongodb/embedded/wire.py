"""One command at a time over the wire."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

REPLICA_SET = "deerflow"
_REPLICA_SET_SETTINGS = {"electionTimeoutMillis": 1000}
_NOT_YET_INITIALIZED = 94


def is_writable(server_socket: Path) -> bool:
    """Whether mongod takes writes; on the way there, makes it a replica set of one at its present address."""
    try:
        reply = command(server_socket, {"replSetGetConfig": 1})
        if reply.get("code") == _NOT_YET_INITIALIZED:
            members = [{"_id": 0, "host": str(server_socket)}]
            config = {"_id": REPLICA_SET, "members": members, "settings": _REPLICA_SET_SETTINGS}
            command(server_socket, {"replSetInitiate": config})
            return False
        config = cast("dict[str, Any] | None", reply.get("config"))
        if config and config["members"][0]["host"] != str(server_socket):
            config["members"][0]["host"] = str(server_socket)  # the folder was moved, or the socket had to
            config["version"] += 1
            command(server_socket, {"replSetReconfig": config, "force": True})
            return False
        return command(server_socket, {"hello": 1}).get("isWritablePrimary") is True
    except OSError:
        return False


def command(server_socket: Path, document: Mapping[str, Any], timeout_ms: int = 30_000) -> dict[str, Any]:
    """One command over the wire; a driver's client would bring threads into a process that forks."""
    import bson

    body = struct.pack("<IB", 0, 0) + bson.encode({**document, "$db": "admin"})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_ms / 1000)
        connection.connect(str(server_socket))
        connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)  # OP_MSG
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
