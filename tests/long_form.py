"""Whether the tests try much more than in CI: `DEERFLOW_MONGO_FAULTS=long`."""

from __future__ import annotations

import os

LONG_FORM = os.environ.get("DEERFLOW_MONGO_FAULTS") == "long"
