"""A replica set of one with access control: SCRAM users, custom roles, and TLS with a certificate of its own.

An administrator creates the users whose privileges the tests change, and makes the states of the database
that they need.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import trustme
from pymongo import MongoClient

from deerflow_mongo.mongodb import roles
from deerflow_mongo.mongodb.documents.encoding import Document

from .servers import HOST, ReplicaSet

_ADMIN = "admin"
PASSWORD = "p@ss/word:%"  # noqa: S105 - of throw-away users; a URI needs it escaped


class SecuredServer:
    """The server of one database, as its administrator uses it, and the URLs of its users."""

    def __init__(self, cluster: ReplicaSet, ca_file: Path, database: str) -> None:
        self.database_name = database
        self._cluster = cluster
        self._ca_file = ca_file
        self.admin: MongoClient[Document] = cluster.members[0].client
        self.database = self.admin[database]

    def create_user(self, name: str, role: str) -> None:
        """A user of the database with this one role, which is created with all of its privileges."""
        self.database.command(roles.create_role(role, self.database_name))
        self.database.command({"createUser": name, "pwd": PASSWORD, "roles": [role]})

    def set_privileges(self, role: str, actions: roles.Actions) -> None:
        """What the role's user may do from now on, on the connections that are open too."""
        self.database.command(
            {"updateRole": role, "privileges": roles.privileges(actions, self.database_name)}
        )

    def url_of(self, name: str) -> str:
        """The URL of a user, as the README shows it."""
        login = f"{quote(name, safe='')}:{quote(PASSWORD, safe='')}"
        options = f"replicaSet={self._cluster.name}&tls=true&tlsCAFile={quote(str(self._ca_file), safe='/')}"
        return f"mongodb://{login}@{self._cluster.members[0].address}/{self.database_name}?{options}"


@contextmanager
def running_secured_server(database: str) -> Generator[SecuredServer]:
    with tempfile.TemporaryDirectory(prefix="deerflow-secured-") as folder:
        certificate, authority, key = (Path(folder) / name for name in ("server.pem", "ca.pem", "key"))
        issuer = trustme.CA()
        issuer.cert_pem.write_to_path(authority)
        issuer.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(certificate)
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
        options = [
            *("--auth", "--keyFile", str(key)),
            *("--tlsMode", "requireTLS", "--tlsCertificateKeyFile", str(certificate)),
            *("--tlsCAFile", str(authority), "--tlsAllowConnectionsWithoutCertificates"),
        ]
        client_options = {"tls": True, "tlsCAFile": str(authority)}
        with ReplicaSet(1, options=options, client_options=client_options) as cluster:
            _create_admin(cluster)
            yield SecuredServer(cluster, authority, database)
            cluster.members[0].reconnect()  # closes the client while there is a server to close it with


def _create_admin(cluster: ReplicaSet) -> None:
    """By the exception for localhost, which admits whoever comes first until there is a user."""
    [member] = cluster.members
    member.command({"createUser": _ADMIN, "pwd": PASSWORD, "roles": ["root"]})
    member.reconnect(username=_ADMIN, password=PASSWORD)
