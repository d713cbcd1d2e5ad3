"""The gateway's own options, which stand beside the backend's in the section `storage:`.

A backend never gets them: whoever reads the section for a storage alone splits them off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..contract.errors import StorageConfigError
from ..contract.factory import with_environment

THREAD_DELETION: Final = "thread_deletion"
PURGE: Final = "purge"
"""A thread that is deleted goes with everything that belongs to it."""

DEERFLOW: Final = "deerflow"
"""As DeerFlow does on SQL: metadata, checkpoints and files go; runs, run events and feedback stay."""

GATEWAY_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {THREAD_DELETION: (PURGE, DEERFLOW)}
"""Each option and its values, the first of which is the default."""


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """The gateway's options, with their defaults, and the storage's. Raises `StorageConfigError`."""
    own: dict[str, str] = {}
    for name, values in GATEWAY_OPTIONS.items():
        given = with_environment({name: options.get(name)})[name]
        value = str(given).strip() if given is not None else ""
        if value not in ("", *values):
            raise StorageConfigError(f"`{name}` is {value!r}; expected one of {', '.join(values)}")
        own[name] = value or values[0]
    return own, {name: value for name, value in options.items() if name not in GATEWAY_OPTIONS}
