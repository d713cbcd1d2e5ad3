"""The tests of DeerFlow that cannot pass on our adapters, with the reason of each: names and reasons only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CANNOT_PASS: Final[Mapping[str, str]] = {}
"""Test -> why it fails. A test that a release does not have is not counted there."""
