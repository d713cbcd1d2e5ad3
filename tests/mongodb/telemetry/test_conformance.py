"""A part of the conformance suite on a storage that records everything it can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from deerflow_mongo.testing import FollowingContract


class TestObserved(FollowingContract):
    @pytest.fixture
    def storage_config(self, mongodb_url: str, emptied_database: str) -> Mapping[str, Any]:
        return {
            "backend": "mongodb",
            "url": mongodb_url,
            "database": emptied_database,
            "telemetry": "otel",
            "slow_ms": 1,
        }
