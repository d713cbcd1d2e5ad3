"""Imported before the suite's tests: checks that pytest is installed and enables assert rewriting."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from ..contract.errors import MissingDependencyError

PACKAGES = {"pytest": "pytest", "pytest_asyncio": "pytest-asyncio"}
"""Module -> the package that provides it."""

for _module, _package in PACKAGES.items():
    try:
        import_module(_module)
    except ImportError as error:
        raise MissingDependencyError("deerflow_mongo.testing", _package, "testing") from error

import_module("pytest").register_assert_rewrite(
    *(
        f"{__package__}.{part.name}"
        for part in iter_modules([str(Path(__file__).parent)])
        if not part.name.startswith("_")
    )
)
