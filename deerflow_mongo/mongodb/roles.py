"""The least privileges of a database user, as MongoDB roles: for run time, `setup()` and views. Data only.

`python -m deerflow_mongo.mongodb.roles DATABASE [PREFIX]` prints the `createRole` commands for mongosh.
Nothing in this package creates a role or a user: that is the operator's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from .documents.encoding import Document
from .schema import CHECKPOINTS, FEEDBACK, RUN_EVENTS, RUNS, THREADS, USERS, VERSIONS
from .views import VIEWS

DATABASE: Final = ""
"""In place of a collection: the database, with all of its collections."""

Actions: TypeAlias = Mapping[str, tuple[str, ...]]
"""For each collection, without its prefix, what a user may do."""

RUN_TIME_ROLE: Final = "deerflowRunTime"
SETUP_ROLE: Final = "deerflowSetup"
VIEW_SETUP_ROLE: Final = "deerflowViewSetup"
REPORTS_ROLE: Final = "deerflowReports"

RUN_TIME: Final[Actions] = {
    # The change stream that serves all followers is the database's, which needs both.
    DATABASE: ("listCollections", "find", "changeStream"),
    RUNS: ("insert", "update", "remove", "listIndexes"),
    FEEDBACK: ("insert", "update", "remove", "listIndexes"),
    THREADS: ("insert", "update", "remove", "listIndexes"),
    RUN_EVENTS: ("insert", "update", "listIndexes"),
    USERS: ("insert", "update", "listIndexes"),
    VERSIONS: ("listIndexes",),
    CHECKPOINTS: ("insert", "update", "remove", "listIndexes"),
}
"""The stores, `follow`, the checkpointer, and `setup()` of a database that is set up."""

_SET_UP = ("find", "update", "createCollection", "collMod", "createIndex", "dropIndex", "listIndexes")

SETUP: Final[Actions] = {
    DATABASE: ("listCollections",),
    **dict.fromkeys((RUNS, FEEDBACK, THREADS, RUN_EVENTS, USERS), _SET_UP),
    VERSIONS: ("find", "insert", "update", "collMod", "listIndexes"),  # "insert" includes "createCollection"
    CHECKPOINTS: ("find", "createCollection", "collMod", "createIndex", "listIndexes"),
}
"""`setup()` of a new database or of one of an older version."""

VIEW_SETUP: Final[Actions] = {
    DATABASE: ("listCollections",),
    **dict.fromkeys((RUNS, FEEDBACK, THREADS), ("find",)),
    **{view.name: ("createCollection", "collMod") for view in VIEWS},
}
"""`set_up_views()`, beside `SETUP`: who creates a view must be able to read what it reads."""

REPORTS: Final[Actions] = {DATABASE: ("listCollections",), **{view.name: ("find",) for view in VIEWS}}
"""MongoDB Compass, Atlas Charts and the like: the views and nothing else."""

ROLES: Final[Mapping[str, Actions]] = {
    RUN_TIME_ROLE: RUN_TIME,
    SETUP_ROLE: SETUP,
    VIEW_SETUP_ROLE: VIEW_SETUP,
    REPORTS_ROLE: REPORTS,
}


def privileges(actions: Actions, database: str, prefix: str = "") -> list[Document]:
    """As `createRole` takes them; each names one collection of this database, or all of the database."""
    return [
        {
            "resource": {"db": database, "collection": name and prefix + name},
            "actions": list(allowed),
        }
        for name, allowed in actions.items()
    ]


def create_role(name: str, database: str, prefix: str = "") -> Document:
    """The command, to be run in the database itself, that creates one of `ROLES`."""
    return {"createRole": name, "privileges": privileges(ROLES[name], database, prefix), "roles": []}


def main(arguments: list[str]) -> int:
    """Print the commands; 2 for wrong arguments."""
    if not 1 <= len(arguments) <= 2 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m deerflow_mongo.mongodb.roles DATABASE [PREFIX]\n")
        return 2
    for name in ROLES:
        command: dict[str, Any] = create_role(name, *arguments)
        sys.stdout.write(
            f"db.getSiblingDB({json.dumps(arguments[0])}).runCommand({json.dumps(command, indent=2)})\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
