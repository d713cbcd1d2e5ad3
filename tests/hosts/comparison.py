"""Compares two transcripts of one script, field by field.

Values that differ in every run are replaced first: an identifier by the place of its first appearance, a time
by whether it has an offset, a folder, a latency or duration. All other values must be equal, or be one of
`DIFFERENCES`, each with its reason; a reason that is not needed any more is reported as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from deerflow_mongo.hosts.deerflow import find_release
from deerflow_mongo.hosts.releases import RELEASES

from .http_script import Exchange, Transcript

MAIN, V2_0_0, KERNEL = (release.name for release in RELEASES)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
MISSING = "<missing>"
ANY = ".*"


@dataclass(frozen=True)
class Difference:
    """One field that differs; `path` has no positions in lists."""

    step: str
    path: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return f"[{self.step}] {self.path}: MongoDB {_short(self.ours)}, SQL {_short(self.theirs)}"


@dataclass(frozen=True)
class Reason:
    """Why a field may differ: the reason, and expressions that match the whole step, path and values."""

    why: str
    path: str
    ours: str = ANY
    theirs: str = ANY
    step: str = ANY
    releases: Sequence[str] = (MAIN, V2_0_0, KERNEL)
    """The releases of DeerFlow in which the field differs."""

    def explains(self, difference: Difference) -> bool:
        texts = (difference.step, difference.path, str(difference.ours), str(difference.theirs))
        wanted = (self.step, self.path, self.ours, self.theirs)
        return all(
            re.fullmatch(one, text, re.DOTALL) is not None for one, text in zip(wanted, texts, strict=True)
        )


_INSIDE_CONTENT = r"answer\[\]\.content(\.messages)?\[\].*"

DIFFERENCES: Sequence[Reason] = (
    Reason(
        "times read from SQLite have no offset; ours have UTC's",
        r"answer.*\.(created|updated)_at",
        "<time>",
        "<time without offset>",
        releases=(KERNEL,),
    ),
    Reason(
        "SQL marks in an event's metadata that it stores the content as text; ours comes back unchanged",
        r"answer.*\.metadata\.content_is_(dict|json)",
        MISSING,
        "True",
        releases=(KERNEL,),
    ),
    Reason(
        "messages and commands inside an event's content are JSON here; SQL stores their Python repr",
        _INSIDE_CONTENT,
        ANY,
        MISSING,
        "events of .*",
    ),
    Reason(
        "the same fields on SQL: the repr as text",
        _INSIDE_CONTENT,
        MISSING,
        r"(content=|Command\().*",
        "events of .*",
    ),
    Reason(
        'an event without content has "", as in the contract; SQL returns None',
        r"answer\[\]\.content",
        "",
        "None",
        "events of .*",
        releases=(KERNEL,),
    ),
    Reason(
        "tokens count for the models that answered; SQL counts a run for the model of its request",
        r"answer\.by_model\..*",
        step="token usage.*",
        releases=(KERNEL,),
    ),
    Reason(
        "a user may have feedback on a message beside the vote; SQL has one row per user and run, and fails",
        r"status|answer.*",
        step="feedback on a message beside the vote",
    ),
    Reason(
        "a message shows the user's newest feedback on its run: here, the one that SQL could not store",
        r"answer\[\]\.feedback\.(comment|feedback_id)",
        step="messages of all runs",
        releases=(MAIN,),
    ),
)
"""Everything that differs on MongoDB."""


def differences_of_installed_release() -> Sequence[Reason]:
    """Those of the DeerFlow that can be imported."""
    installed = find_release().name
    return [reason for reason in DIFFERENCES if installed in reason.releases]


@dataclass
class Comparison:
    """The result of a comparison."""

    reasons: Sequence[Reason]
    requests: int = 0
    equal_fields: int = 0
    explained: Counter[Reason] = field(default_factory=lambda: Counter[Reason]())
    """The number of fields that each reason explains."""
    unexplained: list[Difference] = field(default_factory=lambda: list[Difference]())

    @property
    def unneeded(self) -> list[str]:
        """Reasons that explain no field."""
        return [reason.why for reason in self.reasons if reason not in self.explained]

    def lines(self) -> list[str]:
        """The result as text."""
        different = sum(self.explained.values())
        lines = [
            f"{self.requests} requests: {self.equal_fields} fields equal, {different} differ for a reason"
        ]
        lines += [f"{count} fields: {reason.why}" for reason, count in self.explained.most_common()]
        lines += [f"UNEXPLAINED {difference}" for difference in self.unexplained]
        lines += [f"NOT NEEDED {why}" for why in self.unneeded]
        return lines


def compare(
    ours: Transcript,
    theirs: Transcript,
    folders: tuple[Path, Path],
    reasons: Sequence[Reason] = DIFFERENCES,
) -> Comparison:
    """Compare every field of every answer, with its status; `folders` are the gateways' own."""
    result = Comparison(reasons, requests=len(ours.exchanges))
    mine, other = (
        _Plain(folder).exchanges(transcript)
        for folder, transcript in zip(folders, (ours, theirs), strict=True)
    )
    for (step, left), (other_step, right) in zip(mine, other, strict=True):
        assert step == other_step, f"the scripts took different steps: {step}, {other_step}"
        _compare_fields(result, step, left, right)
    return result


def _compare_fields(
    result: Comparison, step: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> None:
    for path in dict.fromkeys([*ours, *theirs]):
        left, right = ours.get(path, MISSING), theirs.get(path, MISSING)
        if type(left) is type(right) and left == right:
            result.equal_fields += 1
            continue
        difference = Difference(step, re.sub(r"\[\d+\]", "[]", path), left, right)
        reason = next((reason for reason in result.reasons if reason.explains(difference)), None)
        if reason is None:
            result.unexplained.append(difference)
        else:
            result.explained[reason] += 1


class _Plain:
    """A transcript as fields, without the values that differ in every run."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._names: dict[str, str] = {}

    def exchanges(self, transcript: Transcript) -> list[tuple[str, dict[str, Any]]]:
        found: list[tuple[str, dict[str, Any]]] = []
        for exchange in transcript.exchanges:
            step = self._text(exchange.step, "step")
            found.append((step, self._fields(step, exchange)))
        return found

    def _fields(self, step: str, exchange: Exchange) -> dict[str, Any]:
        found = {"status": exchange.status, "path": self._text(exchange.path, f"{step}: path")}
        for place, value in _flat("answer", exchange.answer):
            path = self._text(place, f"{step}: key")
            varying = _varying(step, path)
            if varying is not None:
                found[path] = varying
            else:
                found[path] = self._text(value, f"{step}: {path}") if isinstance(value, str) else value
        return found

    def _text(self, text: str, place: str) -> str:
        plain = text.replace(self._folder, "<folder>")
        plain = _UUID.sub(lambda found: self._names.setdefault(found[0], f"<id of {place}>"), plain)
        return _TIME.sub(lambda found: "<time>" if found[2] else "<time without offset>", plain)


_VARYING: Sequence[tuple[str, str, str]] = (
    (ANY, r".*\.latency_ms", "<milliseconds>"),
    (ANY, r".*\.(turn_duration|run_durations\..*)", "<whole seconds>"),
    # The cancelled run before it has as many events as it had time for.
    ("messages of the background run", r".*\.seq", "<number>"),
)
"""Step, path and replacement of values that depend on how long something took."""


def _varying(step: str, path: str) -> str | None:
    """The replacement of such a value; None for any other."""
    for of_step, of_path, replacement in _VARYING:
        if re.fullmatch(of_step, step) and re.fullmatch(of_path, path):
            return replacement
    return None


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in sorted(cast("dict[str, Any]", value).items()):
            yield from _flat(f"{path}.{key}", item)
    elif isinstance(value, list) and value:
        for position, item in enumerate(cast("list[Any]", value)):
            yield from _flat(f"{path}[{position}]", item)
    else:
        yield path, value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
