"""Reading what `explain` returns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Document = dict[str, Any]


def plan_of_read(explained: Document) -> Document:
    """The plan that reads documents, of a `find` or of a pipeline."""
    return explained["stages"][0]["$cursor"] if "stages" in explained else explained


def winning_stages(plan: Document) -> list[Document]:
    """The stages of the plan that the server chose, the last one first."""
    return list(_stages(plan["queryPlanner"]["winningPlan"]))


def _stages(plan: Document) -> Iterator[Document]:
    plan = plan.get("queryPlan", plan)
    yield plan
    for inner in [plan.get("inputStage"), *plan.get("inputStages", ())]:
        if inner is not None:
            yield from _stages(inner)
