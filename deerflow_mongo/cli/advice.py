"""What to change when a server cannot be used, by the cause that the error's text or code shows: data."""

from __future__ import annotations

import re
from typing import Final

from ..contract.errors import StorageAccessError, StorageError, StorageUnavailableError
from ..mongodb.config import EMBEDDED, MongoConfig
from ..mongodb.drivers.errors import code_of

_LOGIN_CODES: Final = (18, 33, 8000)
_CHECK_LOGIN: Final = "Check the user, the password and authSource in `url`"
_GRANT: Final = "Log in (user:password@ in `url`), or grant the user the role readWrite on the database"

_BY_TEXT: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern, re.IGNORECASE), text)
    for pattern, text in (
        (
            r"replica set name|set named|name of the set",
            "Correct `replicaSet` in `url`, or leave it out for a single host: no server there belongs to a "
            "set of this name; `rs.status().set` shows the right one",
        ),
        (
            r"certificate|hostname mismatch|doesn't match",
            "Name the CA of the server's certificate with `tlsCAFile` in `url`, and each host as its "
            "certificate does",
        ),
        (
            r"\bssl\b|\btls\b|handshake",
            "Correct `tls` in `url`: the server does not use TLS (then leave it out), or refuses this client",
        ),
        (
            r"DNS|name or service not known|name resolution|nodename nor servname|getaddrinfo|no address",
            "Correct the host's name in `url`, or the DNS of this machine",
        ),
        (
            r"connection closed|connection reset|closed the connection",
            "Add `tls=true` to `url` if the server requires TLS; else see the server's log",
        ),
        (
            r"no primary|match selector",
            "Start a majority of the replica set's members: none of those that answered is the primary",
        ),
        (r"requires a username|requires a password", _CHECK_LOGIN),
    )
)
"""The first pattern found in the error's text names the cause."""

_START: Final = "Start it (a majority of a replica set), or correct the hosts in `url`"
_START_OR_NAME: Final = "Start it (a majority of the set), or correct the hosts or `replicaSet` in `url`"
_EMBEDDED: Final = (
    "If `mongod_path` is set, it must name a MongoDB server; see `mongod.log` in the data folder"
)

_BY_WRITE_CODE: Final = {
    2: "Remove `w` from `url`: a standalone server has no other members that could acknowledge a write",
    64: "Lower `w` in `url`, or start the members that it waits for",
    79: "Correct `w` in `url`: the replica set has no write concern of this name",
    100: "Lower `w` in `url`: the replica set has fewer members; without it, a majority acknowledges",
}


def advice_for(error: StorageError, config: MongoConfig) -> str:
    """A sentence; empty where the error's own text has it."""
    if isinstance(error, StorageAccessError):
        return _CHECK_LOGIN if code_of(error) in _LOGIN_CODES else _GRANT
    if config.url == EMBEDDED:
        return _EMBEDDED if isinstance(error, StorageUnavailableError) else ""
    text = f"{error} {error.__cause__}"
    found = next((advice for pattern, advice in _BY_TEXT if pattern.search(text)), None)
    if found is not None:
        return found
    if not isinstance(error, StorageUnavailableError):
        return ""
    return _START_OR_NAME if "replicaset=" in config.url.lower() else _START


def advice_for_write(error: StorageError) -> str:
    """What to change where the server answers and refuses a write."""
    return _BY_WRITE_CODE.get(code_of(error) or 0, "")
