"""Token counts by model of the runs that this process executes, summed from DeerFlow's events.

DeerFlow's completion of a run has token counts by caller and none by model; its event of an LLM response has
the response's usage and the model's name. The adapter of run events adds the events that are stored, the
adapter of runs stores the sums with the completion, so no LLM call costs a command. Nothing is stored here,
and no run is here before it was stored or after it has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from ...contract.arguments import is_valid_id
from ...contract.rows import UNKNOWN_MODEL, ModelTokenCounts

MAX_RUNS: Final = 4_096
"""Beyond this number the run whose last event is the oldest is forgotten: it ends without counts by model."""

MAX_MODEL_NAME_CHARACTERS: Final = 128
"""What DeerFlow stores of a model's name."""

RUN_START: Final = "run.start"
LLM_RESPONSE: Final = "llm.ai.response"
"""The events of DeerFlow's journal that name a model."""

LEAD_AGENT: Final = "lead_agent"

_NO_MODEL: Final = "default"
"""What DeerFlow calls the model in a run's metadata if its configuration has none."""


@dataclass(slots=True)
class Tokens:
    """Token counts of a model or of a run."""

    input: int = 0
    output: int = 0
    total: int = 0
    llm_calls: int = 0

    def add(self, other: Tokens) -> None:
        self.input += other.input
        self.output += other.output
        self.total += other.total
        self.llm_calls += other.llm_calls

    def without(self, other: Tokens) -> Tokens:
        """What remains; a count never falls below 0."""
        return Tokens(
            max(0, self.input - other.input),
            max(0, self.output - other.output),
            max(0, self.total - other.total),
            max(0, self.llm_calls - other.llm_calls),
        )

    def as_fields(self) -> ModelTokenCounts:
        return {
            "input_tokens": self.input,
            "output_tokens": self.output,
            "total_tokens": self.total,
            "llm_calls": self.llm_calls,
        }

    @classmethod
    def of(cls, counts: object, *, llm_calls: object = 0) -> Tokens:
        """The counts that LangChain and DeerFlow name `input_tokens` and so on; what is no count is 0."""
        fields = _mapping(counts)
        read, written = _count(fields.get("input_tokens")), _count(fields.get("output_tokens"))
        total = _count(fields.get("total_tokens")) or read + written
        return cls(read, written, total, _count(llm_calls))


@dataclass(slots=True)
class _Run:
    """One run; its names of models are None until an event has one."""

    has_model_name: bool
    configured_model: str | None = None
    lead_agent_model: str | None = None
    models: dict[str, Tokens] = field(default_factory=lambda: dict[str, Tokens]())
    counted_ids: set[str] = field(default_factory=lambda: set[str]())

    def add(self, event: Mapping[str, Any]) -> None:
        metadata = _mapping(event.get("metadata"))
        if event.get("event_type") == RUN_START:
            name = valid_model_name(metadata.get("model_name"))
            self.configured_model = self.configured_model or (None if name == _NO_MODEL else name)
        elif event.get("event_type") == LLM_RESPONSE:
            self._add_response(_mapping(event.get("content")), metadata)

    def _add_response(self, message: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        tokens = Tokens.of(metadata.get("usage"), llm_calls=1)
        response = _mapping(message.get("response_metadata"))
        model = valid_model_name(response.get("model_name") or response.get("model"))
        if model is None or tokens.total == 0:
            return
        # LangChain may report the end of one LLM call twice; DeerFlow counts it once and sends two events.
        message_id = message.get("id")
        if isinstance(message_id, str) and message_id:
            if message_id in self.counted_ids:
                return
            self.counted_ids.add(message_id)
        self.models.setdefault(model, Tokens()).add(tokens)
        if metadata.get("caller") == LEAD_AGENT:
            self.lead_agent_model = self.lead_agent_model or model


class CountsByModel:
    """The runs that were stored by this process and have not ended yet."""

    def __init__(self, max_runs: int = MAX_RUNS) -> None:
        self._max_runs = max_runs
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def __len__(self) -> int:
        return len(self._runs)

    def start(self, run_id: str, model_name: str | None) -> None:
        """Count this run, which has just been stored with this model's name."""
        self._runs[run_id] = _Run(has_model_name=bool(model_name))
        while len(self._runs) > self._max_runs:
            self._runs.popitem(last=False)

    def rename(self, run_id: str, model_name: str | None) -> None:
        """DeerFlow has stored another name of the run's model."""
        run = self._runs.get(run_id)
        if run is not None:
            run.has_model_name = bool(model_name)

    def add(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Count the LLM responses of a batch that is stored: DeerFlow sends a batch again after an error."""
        for event in events:
            run = self._runs.get(event["run_id"])
            if run is not None:
                self._runs.move_to_end(event["run_id"])
                run.add(event)

    def of_run(self, run_id: str, totals: Tokens) -> dict[str, ModelTokenCounts] | None:
        """The counts by model of a run with these totals; None if its events do not account for them.

        What no response with a model's name has spent counts as `UNKNOWN_MODEL`: DeerFlow sends no events of
        its subagents' LLM calls. So the counts add up to the totals.
        """
        run = self._runs.get(run_id)
        if run is None or not run.models:
            return None
        models, known = dict(run.models), Tokens()
        for tokens in models.values():
            known.add(tokens)
        if known.total > totals.total:
            return None
        rest = totals.without(known)
        if rest.total:
            rest.add(models.get(UNKNOWN_MODEL, Tokens()))
            models[UNKNOWN_MODEL] = rest
        return {model: tokens.as_fields() for model, tokens in models.items()}

    def missing_model_name(self, run_id: str) -> str | None:
        """The name of the lead agent's model, for a run that was stored without one.

        DeerFlow's own name of the model, as in the runs that have one; else the name in the lead agent's
        first response.
        """
        run = self._runs.get(run_id)
        if run is None or run.has_model_name:
            return None
        return run.configured_model or run.lead_agent_model

    def discard(self, run_id: str) -> None:
        """Forget the run: it has ended or is deleted."""
        self._runs.pop(run_id, None)


def counts_by_model(given: Mapping[str, object]) -> dict[str, ModelTokenCounts]:
    """DeerFlow's own counts by model, which its releases after 0.1.7 pass, with names that can be stored.

    Tokens that were read from the provider's cache are counted where DeerFlow counts them.
    """
    models: dict[str, Tokens] = {}
    cache_reads: dict[str, int] = {}
    for name, counts in given.items():
        model = valid_model_name(name) or UNKNOWN_MODEL
        models.setdefault(model, Tokens()).add(Tokens.of(counts))
        cache_read = _mapping(counts).get("cache_read_tokens")
        if cache_read is not None:
            cache_reads[model] = cache_reads.get(model, 0) + _count(cache_read)
    fields = {model: tokens.as_fields() for model, tokens in models.items()}
    for model, cache_read in cache_reads.items():
        fields[model]["cache_read_tokens"] = cache_read
    return fields


def valid_model_name(value: object) -> str | None:
    """`value` as DeerFlow stores a model's name; None if it is not a name that can be stored."""
    if not isinstance(value, str):
        return None
    name = value.strip()[:MAX_MODEL_NAME_CHARACTERS]
    return name if is_valid_id(name) else None


def _count(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
