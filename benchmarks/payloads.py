"""The payloads and sessions of the benchmarks, which `recordings.py` takes from recorded threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_IDS = frozenset({"thread_id", "run_id", "follow_up_to_run_id", "user_id"})


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a store: `path` is `store.method`."""

    path: str
    arguments: Mapping[str, Any]


Script = tuple[Call, ...]
"""The storage calls of a host during one thread, from its first run to its last."""


@dataclass(frozen=True, slots=True)
class Payloads:
    source: str
    run_metadata: tuple[dict[str, Any], ...]
    run_kwargs: tuple[dict[str, Any], ...]
    completions: tuple[dict[str, Any], ...]
    """Arguments of `update_run_completion` except the run's id, of runs with an answer."""
    events: tuple[dict[str, Any], ...]
    """Events without thread and run ids."""
    scripts: tuple[Script, ...]


def session(script: Script, names: Callable[[str], str]) -> Iterator[Call]:
    """The script with other ids: `names` maps each id to its replacement."""
    for call in script:
        arguments = _renamed(call.arguments, names)
        if "events" in arguments:
            arguments["events"] = [_renamed(event, names) for event in arguments["events"]]
        yield Call(call.path, arguments)


def _renamed(arguments: Mapping[str, Any], names: Callable[[str], str]) -> dict[str, Any]:
    return {
        name: names(value) if name in _IDS and value is not None else value
        for name, value in arguments.items()
    }
