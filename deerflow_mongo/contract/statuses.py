"""The rule about a run's status that every store follows: a run that has ended is never started again.

The names of the statuses are in `rows.py`. A host may use others; whether a transition makes sense is up to
the host, except for this one.
"""

from __future__ import annotations

from .rows import ACTIVE_STATUSES, ENDED_STATUSES


def is_ending(status: str) -> bool:
    """Whether a completion with this status sets `ended_at`: any status but pending, starting and running."""
    return status not in ACTIVE_STATUSES


def restarts_ended_run(stored: str, status: str) -> bool:
    """Whether `status` would make a run active again that has ended: the stored status then stays."""
    return stored in ENDED_STATUSES and status in ACTIVE_STATUSES
