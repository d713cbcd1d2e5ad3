"""Storages with telemetry, and what they reported."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.instrumentation.pymongo")
pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("prometheus_client")

from deerflow_mongo import MongoStorage
from deerflow_mongo.mongodb.telemetry.slow import LOGGER_NAME

from .reports import Reports

OpenObserved = Callable[..., MongoStorage]


@pytest.fixture
def reports() -> Iterator[Reports]:
    """What was exported, of all storages of the test."""
    created = Reports()
    logger = logging.getLogger(LOGGER_NAME)
    logger.addHandler(created.handler)
    yield created
    logger.removeHandler(created.handler)
    created.shutdown()


@pytest.fixture
def open_observed(mongodb_url: str, emptied_database: str, reports: Reports) -> OpenObserved:
    """A storage with OpenTelemetry, which reports to the test; not open yet."""

    def build(url: str = mongodb_url, *, client: Any = None, **options: Any) -> MongoStorage:
        config = {"url": url, "database": emptied_database, "telemetry": "otel", **options}
        return MongoStorage.open(
            config, client=client, tracer_provider=reports.tracers, meter_provider=reports.meters
        )

    return build


@pytest.fixture
async def observed(open_observed: OpenObserved, reports: Reports) -> AsyncIterator[MongoStorage]:
    """An open one, of which nothing was reported yet."""
    async with open_observed() as storage:
        reports.clear()
        yield storage
