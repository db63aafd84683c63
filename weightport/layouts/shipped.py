"""The layouts that ship with weightport.

Promise: in the order of the tables, each as its text says, whether what is kept of it is fresh or not. Limit: read once
in a process.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from weightport.errors import LayoutError, closest
from weightport.layouts.compiled import decode
from weightport.layouts.layout import Layout
from weightport.layouts.table import parse_layout

#: Where the tables are, each with what was kept of it (:mod:`weightport.layouts.compiled`).
TABLES = os.path.join(os.path.dirname(__file__), "tables")


@functools.cache
def builtin() -> Mapping[str, Layout]:
    """The layouts that ship with weightport, by name, in the order of the tables.

    Raises:
        LayoutError: a shipped table is wrong (a bug).
    """
    found: dict[str, Layout] = {}
    for path in sorted(entry.path for entry in os.scandir(TABLES) if entry.name.endswith(".yaml")):
        with open(path, "rb") as file:
            text = file.read()
        for layout in _kept(path, text) or parsed(os.path.basename(path), text):
            found[layout.name] = layout
    return found


def parsed(name: str, text: bytes) -> list[Layout]:
    """The layouts of a shipped table, from its text.

    Raises:
        LayoutError: it is wrong.
    """
    import yaml  # only where a table has changed since it was kept

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    tables = yaml.load(text.decode("utf-8"), Loader=loader)
    return [parse_layout(key, table, f"{name} {key}") for key, table in tables.items()]


def _kept(path: str, text: bytes) -> list[Layout] | None:
    try:
        with open(path.removesuffix(".yaml") + ".json", "rb") as file:
            return decode(text, file.read())
    except FileNotFoundError:
        return None


def find_layout(name: str, own: Mapping[str, Layout] | None = None) -> Layout:
    """The layout of that name, a mapping's own ones first.

    Raises:
        LayoutError: no such layout, with the closest names.
    """
    layouts = {**builtin(), **(own or {})}
    if name not in layouts:
        raise LayoutError(f"no layout {name!r}; {closest(name, layouts) or 'weightport layouts lists them'}")
    return layouts[name]
