"""A checkout of DeerFlow's repository, for the tests that need one: `DEERFLOW_BACKEND` names its `backend/`.

Such a test runs with the interpreter of the checkout's own environment. Without the variable it is skipped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest

VARIABLE: Final = "DEERFLOW_BACKEND"
ROOT: Final = Path(__file__).parents[2]


def _folder() -> Path:
    return Path(os.environ[VARIABLE]).resolve()


def missing_checkout() -> str | None:
    """Why there is no checkout, or None where there is one."""
    if VARIABLE not in os.environ:
        return f"{VARIABLE} does not name the backend folder of a checkout of DeerFlow"
    if not (_folder() / "app" / "gateway" / "app.py").is_file():
        return f"{VARIABLE} is {os.environ[VARIABLE]!r}, which has no app/gateway/app.py"
    return None


needs_checkout = pytest.mark.skipif(missing_checkout() is not None, reason=str(missing_checkout()))


def backend() -> Path:
    """The checkout's `backend/` folder; raises `SystemExit` without one."""
    missing = missing_checkout()
    if missing is not None:
        raise SystemExit(missing)
    return _folder()


def has_run_ownership() -> bool:
    """Whether the checkout is of a release with leases, in which several workers may run."""
    base = backend() / "packages/harness/deerflow/runtime/runs/store/base.py"
    return "renew_lease" in base.read_text()


def python_path() -> str:
    """`PYTHONPATH` for a child process: this repository before the checkout."""
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join(dict.fromkeys([str(ROOT), str(backend()), *inherited]))


def interpreter() -> str:
    return sys.executable
