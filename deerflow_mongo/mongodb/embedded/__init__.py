"""A private MongoDB server for `url: embedded`: one `mongod` on a data folder, for one user of one machine.

The server is a replica set of one member. It listens on a unix socket only, in a folder that only its user
may enter: there is no network port, and so no password. A *supervisor* process owns the `mongod`, restarts it
when it dies, and stops it when the last process that uses it is gone. Each of these processes holds a shared
lock on a file in the folder, which the kernel releases however the process ends. On Linux `mongod` also ends
with its supervisor; on macOS a killed supervisor leaves it running until the next start on the folder, which
stops it first. Not for several users or machines, and not for Windows.
"""

from __future__ import annotations

from .binary import find_mongod
from .server import EmbeddedServer, start_embedded

__all__ = ["EmbeddedServer", "find_mongod", "start_embedded"]
