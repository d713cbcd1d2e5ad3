"""HTML and SVG as text. Everything that is not markup already is escaped, so that no value becomes markup."""

from __future__ import annotations

import html
from typing import TypeAlias


class Markup(str):
    """Text that is markup, made by `element` or written in this package; never from data."""

    __slots__ = ()


Child: TypeAlias = "str | Markup | list[Child] | None"

_VOID = frozenset({"meta", "line", "rect", "col"})
"""Elements that have no content here, and so no end tag; those of SVG are closed in themselves."""

_SVG_VOID = frozenset({"line", "rect"})


def element(tag: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An element. In the names of attributes, `_` stands for `-`, and one at the end is dropped (`class_`).

    An attribute of None or False is left out, and True is one without a value.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}{' /' if tag in _SVG_VOID else ''}>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: Child) -> Markup:
    """Several pieces one after the other; text that is no markup is escaped."""
    return Markup("".join(map(_escaped, children)))


def _escaped(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, list):
        return "".join(map(_escaped, child))
    return str(child) if isinstance(child, Markup) else html.escape(child)


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'
