"""The direction of imports: `contract` knows no driver and nothing above it; no modules import in a circle.

Imports are read from the source, those inside functions included, so that a lazy import breaks the rule too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deerflow_mongo

PACKAGE = "deerflow_mongo"
ROOT = Path(deerflow_mongo.__file__).parent

MAY_IMPORT: dict[str, set[str]] = {
    "contract": {"contract"},
    "memory": {"contract", "memory"},
    "mongodb": {"contract", "mongodb"},
    "testing": {"contract", "testing"},
    "hosts": {"contract", "hosts"},
    "demo": {"contract", "mongodb", "demo"},
    "transfer": {"contract", "mongodb", "transfer"},
    "cli": {"contract", "mongodb", "demo", "hosts", "transfer", "cli"},
    "__main__": {"cli"},
    "__init__": {"contract", "mongodb"},
}
"""Room -> the rooms of this package that it may import. A new room needs a line here."""

OUTSIDE: dict[str, set[str]] = {
    "contract": {"yaml"},
    "memory": set(),
    "testing": {"pytest", "pytest_asyncio", "pydantic", "langchain_core", "numpy"},
}
"""What a room without a driver may import besides the standard library."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found: dict[str, Path] = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(module: str, *, at_import: bool = False) -> Iterator[str]:
    """What a module imports, by absolute names; with `at_import` only what its own import executes."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _statements(tree) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those in functions and under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from _statements(node)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_its_room_may(module: str) -> None:
    room = room_of(module)
    for imported in imports_of(module):
        if imported.split(".")[0] == PACKAGE:
            # The version is the one thing that all rooms may read from the package itself.
            allowed = imported == PACKAGE or room_of(imported) in MAY_IMPORT[room]
            assert allowed, f"{module} imports {imported}"
        elif room in OUTSIDE:
            name = imported.split(".")[0]
            assert name in sys.stdlib_module_names | OUTSIDE[room], f"{module} imports {imported}"


def test_no_circle_of_imports() -> None:
    graph = {
        module: {name for name in imports_of(module, at_import=True) if name in MODULES and name != module}
        for module in MODULES
        if module != PACKAGE  # its lazy names are loaded after it
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


def test_no_function_is_longer_than_sixty_lines() -> None:
    too_long = [
        f"{module}.{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 60
    ]
    assert too_long == []
