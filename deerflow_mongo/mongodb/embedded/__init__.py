"""A private MongoDB server for `url: embedded`: a `mongod` on a data folder, for one user of one machine.

The server is a replica set of one and listens on a unix socket only, in a folder that only its user may
enter: no network port, and so no password. A *keeper* process owns the `mongod`, starts it again when it
dies, and stops it when the last user is gone. The kernel counts the users: each holds a shared lock on a
file, which ends with the process however it ends. On Linux `mongod` ends with its keeper, too; on macOS a
killed keeper leaves it running until the next start on its folder, which stops it first. This is no way to
run a server for several users or machines, and it does not run on Windows.
"""

from __future__ import annotations

from .binary import find_mongod
from .server import EmbeddedServer, start_embedded

__all__ = ["EmbeddedServer", "find_mongod", "start_embedded"]
