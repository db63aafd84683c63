"""What a mapping says about files: where they are, which ones they must be.

Promise: a path leads beneath the mapping's own folder, whatever ``..`` and links say, or is refused; so is a URL: what
is fetched is what a user names, not what a mapping does. Limit: whether a
model is there is found out when it is opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from weightport.mapping.document import Document
from weightport.mapping.operations import Wrong, wrong
from weightport.mapping.patterns import shown
from weightport.mapping.rules import NamedSource, Side
from weightport.mapping.schema import SOURCE_NAME
from weightport.mapping.shape import Shape

#: What ``tf.train.ExponentialMovingAverage`` names its averages, below their variables.
AVERAGE = "ExponentialMovingAverage"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?://|:)")


def file_beneath(folder: str, text: str) -> str:
    """The absolute path of a file that is there.

    Raises:
        Wrong: it is outside the folder, or there is none.
    """
    path = beneath(folder, text)
    if not os.path.isfile(path):
        raise wrong(f"no file {shown(text)}", f"looked for in {Path(folder)}")
    return path


def beneath(folder: str, text: str) -> str:
    """The absolute path of something beneath the folder.

    Raises:
        Wrong: it is outside the folder, or no path.
    """
    if _URL.match(text):
        hint = "say it where the transfer is started: --source NAME=URL, or sources={NAME: URL}"
        raise wrong(f"{shown(text)} is a URL, which a mapping may not name", hint)
    try:
        root = Path(folder).resolve()
        path = (root / text).resolve()
        inside = not Path(text).is_absolute() and ".." not in Path(text).parts and path.is_relative_to(root)
    except (OSError, ValueError, RuntimeError) as error:  # a null character, a name too long, links in a circle
        raise wrong(f"{shown(text)} is no path: {getattr(error, 'strerror', None) or error}") from None
    if not inside:
        hint = "a mapping names files in its own folder, by relative paths"
        raise wrong(f"{shown(text)} is outside the mapping's folder", hint)
    return str(path)


def side(document: Document, shape: Shape, key: str) -> Side:
    """``source:`` or ``target:``."""
    table = document.data.get(key)
    found = table if isinstance(table, dict) else {}
    scope = found.get("scope") if shape.ok(key, "scope") else None
    return Side(scope or "", *_read_as(found, shape, key))


def named_sources(document: Document, shape: Shape) -> tuple[NamedSource, ...]:
    """``sources:``, whose problems are noted in the document."""
    tables = document.data.get("sources")
    found = []
    for name, table in tables.items() if isinstance(tables, dict) else ():
        trail = ("sources", name)
        if not re.fullmatch(SOURCE_NAME, name):
            hint = "letters, digits, _ and -, a letter first"
            document.fail(trail, f"{shown(name)} is no name for a source", hint)
        if not isinstance(table, dict) or not shape.ok(*trail):
            continue
        path = None
        if "path" in table:
            try:
                beneath(document.folder, table["path"])
                path = os.path.join(os.path.dirname(document.path), table["path"])  # as a person would spell it
            except Wrong as error:
                document.fail((*trail, "path"), *error.args)
        found.append(NamedSource(name, document.where(trail), path, *_read_as(table, shape, *trail)))
    scope = document.data.get("source")
    if found and isinstance(scope, dict) and scope.get("scope"):
        what = "the source has a scope, and there are further sources"
        document.fail(("source", "scope"), what, "write the scope in the names that the rules use")
    return tuple(found)


def _read_as(table: dict[str, Any], shape: Shape, *trail: str) -> tuple[str | None, str]:
    """The digest that a source has to have, and the name of the averages that are read in its variables' place."""
    sha256 = table.get("sha256") if shape.ok(*trail, "sha256") else None
    prefer = table.get("prefer") if shape.ok(*trail, "prefer") else None
    average = AVERAGE if isinstance(prefer, str) else prefer["ema"] if isinstance(prefer, dict) else ""
    return sha256.lower() if sha256 else None, average
