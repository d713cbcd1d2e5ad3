"""The storage's options in the environment: `DEER_FLOW_STORAGE_URL` is the option `url`, and so on.

Others write variables with this prefix as well: Kubernetes for every Service whose name begins with
`deer-flow-storage` (`..._SERVICE_HOST`, `..._PORT_27017_TCP`), Docker for its links. They are ignored with a
warning, as is a misspelt option. No value of a variable is logged.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from typing import Final

from ..contract.factory import backend_options
from .options import GATEWAY_OPTIONS

ENVIRONMENT_PREFIX: Final = "DEER_FLOW_STORAGE_"

BACKEND: Final = "backend"

_SERVICE_LINK = re.compile(
    r"(?:.+_)?(?:service_host|service_port(?:_.+)?|port_\d+_(?:tcp|udp|sctp)(?:_.+)?|env_.+)"
)
"""What Kubernetes and Docker append to a service's name, besides `port` and `name`, which may be options."""

_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")
_MIN_SIMILARITY: Final = 0.75

logger = logging.getLogger(__name__)


def variables_of_options(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables with our prefix by the options that they would set; an empty one is not set."""
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in variables.items()
        if name.startswith(ENVIRONMENT_PREFIX) and value.strip()
    }


def known_options(found: Mapping[str, str], backend: str) -> dict[str, str]:
    """Those of `found` that are options of the backend or the gateway; one warning names the others.

    For a backend that does not state its options: all but what looks like a service's address.
    """
    stated, own = backend_options(backend), {BACKEND, *GATEWAY_OPTIONS}
    if stated is None:
        options = {name: value for name, value in found.items() if not _is_service_link(name, value)}
    else:
        options = {name: value for name, value in found.items() if name in stated or name in own}
    known = own.union(options if stated is None else stated)
    ignored = [_described(name, known) for name in found if name not in options]
    if ignored:
        logger.warning(
            "environment variables are ignored, since the storage backend %r has no such options: %s",
            backend,
            ", ".join(sorted(ignored)),
        )
    return options


def _is_service_link(name: str, value: str) -> bool:
    if name == "port" or name.endswith("_port"):
        return _SERVICE_ADDRESS.match(value) is not None or _SERVICE_LINK.fullmatch(name) is not None
    return value.startswith("/") if name == "name" else _SERVICE_LINK.fullmatch(name) is not None


def _described(name: str, known: Iterable[str]) -> str:
    """The variable's name, and the option's that was probably meant."""
    nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=_MIN_SIMILARITY)
    hint = f" (did you mean {ENVIRONMENT_PREFIX}{nearest[0].upper()}?)" if nearest else ""
    return f"{ENVIRONMENT_PREFIX}{name.upper()}{hint}"
